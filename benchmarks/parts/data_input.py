"""What one loader process feeds, beside open_clip's and decoding alone (loader_speed.py)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import loader_speed
from benchmarks.frame import Row, in_turns
from benchmarks.peers import PeerProcess

SECONDS = 1.5


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    if not peers:
        print("input: CLIP's merges come with open_clip, which is not installed: run `make peer`")
        return
    with loader_speed.prepared(options.photos, options.open_clip) as ways:
        turns = in_turns({name: lambda way=way: way(SECONDS) for name, way in ways.items()}, 2 * options.turns)
    decoding, ours = turns["decoding"], turns["ours"]
    peers = {name: turns[name] for name in ("open_clip",) if name in turns}
    limit = {"limit_turns": decoding, "limit_work": 1, "limited_by": "decoding alone"}
    more = {"+ resize": [1 / turn.seconds for turn in turns["ours + resize"]]}
    what = f"{loader_speed.SIDE} px JPEGs, one process and thread"
    yield Row("input", what, "pictures/s", 1, ours, peers, **limit, more=more)

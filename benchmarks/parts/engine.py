"""The training loop beside a bare PyTorch loop that does the same arithmetic (engine_overhead.py), on one rank."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks import engine_overhead
from benchmarks.frame import Row, Turn
from benchmarks.peers import PeerProcess


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    turns, batch_size = 4 * options.turns, 32
    words = ["--turns", str(turns), "--batch-size", str(batch_size), "--threads", str(options.threads), "--stages", "0", "1", "3"]
    found = engine_overhead.on_ranks(engine_overhead.REPOSITORY / "benchmarks/engine_overhead.py", "step", 1, words)
    for stage, facts in found.items():
        loop, bare = ([Turn(**turn) for turn in turns] for turns in facts["turns"])
        yield Row("engine", f"tiny, batch {batch_size}, {stage}", "samples/s", batch_size, loop, {"bare loop": bare})

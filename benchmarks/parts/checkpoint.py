"""A save, its verification, and opening its weights for evaluation, beside plain writes and hashes of the same bytes.

    python -m benchmarks checkpoint

A save's time is what the training stands still; writing goes on beside it, and its rate is that of the file system's writer.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)

import torch  # noqa: E402

from benchmarks.engine_overhead import WARM_UP, add_arguments, configuration, measure_apart, on_ranks, run, scenes  # noqa: E402
from benchmarks.frame import Row, Turn, in_turns, timed  # noqa: E402
from benchmarks.limits import write_rate  # noqa: E402
from benchmarks.peers import PeerProcess  # noqa: E402
from sycoca_ds.engine.checkpoint.saving import Saver  # noqa: E402
from sycoca_ds.engine.checkpoint.seal import damage, sealed  # noqa: E402
from sycoca_ds.engine.checkpoint.weights import open_weights  # noqa: E402
from sycoca_ds.engine.ranks.runtime import Runtime  # noqa: E402

EVERY = 10
"""Steps between saves."""


def hash_alone(size: int) -> None:
    """As many bytes, from memory."""
    piece, found = bytes(1 << 20), hashlib.sha256()
    for _ in range(-(-size // len(piece))):
        found.update(piece)


def measure_saves(runtime: Runtime, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """ZeRO-1 with a save every `EVERY` steps, then the last checkpoint verified and opened, in turns with plain work."""
    steps = options.turns * EVERY + WARM_UP
    config = configuration(options, scenes(folder), folder / "saving", 1, steps, EVERY)
    with writes() as written:
        seconds = [turn.seconds for turn in run(config, runtime, None).turns]
    by_place: dict[str, list[float]] = {"saving": [], "after": [], "others": []}
    for step, taken in enumerate(seconds, 1):
        if step > WARM_UP:
            by_place["saving" if step % EVERY == 0 else "after" if step % EVERY <= 2 and step > EVERY else "others"].append(taken)
    usual = statistics.median(by_place["others"])
    checkpoint = sealed(Path(config.run.out) / "checkpoints")[-1]
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())

    size = sum(path.stat().st_size for path in files)

    def verified() -> None:
        problem = damage(checkpoint)
        if problem is not None:
            raise SystemExit(problem)

    ways = {"verify": verified, "hash": lambda: hash_alone(size), "open": lambda: open_weights(checkpoint)}
    stored = [path for path in files if path.suffix == ".pt"]
    ways["torch.load"] = lambda: [torch.load(path, map_location="cpu", weights_only=False) for path in stored]
    found = in_turns({name: timed(work) for name, work in ways.items()}, options.turns)
    return {
        "turns": {name: [asdict(turn) for turn in turns] for name, turns in found.items()},
        "stall": [taken - usual for taken in by_place["saving"]],
        "after": [taken - usual for taken in by_place["after"]],
        "usual": usual,
        "bytes": size,
        "plain": write_rate(folder, size),
        "written": written,
    }


@contextmanager
def writes() -> Iterator[list[float]]:
    """Seconds that each save takes to be on disk, as the run prints them."""
    found, said = [], Saver._say

    def say(self: Saver, writing: Any, result: dict[str, Any]) -> None:
        found.append(result["seconds"])
        said(self, writing, result)

    Saver._say = say
    try:
        yield found
    finally:
        Saver._say = said


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    words = ["--turns", str(max(2, options.turns)), "--batch-size", "16", "--threads", str(options.threads)]
    found = on_ranks(Path(__file__), "save", 1, words)
    megabytes = found["bytes"] / 1e6
    turns = {name: [Turn(**turn) for turn in turns] for name, turns in found["turns"].items()}
    stall = [Turn(max(taken, 1e-4), 0.0) for taken in found["stall"]]
    more = {"usual step": found["usual"], "steps after a save": found["after"]}
    size = {"detail": f"{megabytes:.0f} MB"}
    yield Row("checkpoint", "tiny: a step stands still", "MB/s", megabytes, stall, more=more, **size)
    if found["written"]:
        on_disk = [Turn(taken, 0.0) for taken in found["written"]]
        limit = {"limit": found["plain"] / 1e6, "limited_by": "plain writes"}
        yield Row("checkpoint", "tiny: written beside the training", "MB/s", megabytes, on_disk, **limit, **size)
    yield Row("checkpoint", "tiny: verified", "MB/s", megabytes, turns["verify"], {"sha256 from memory": turns["hash"]}, **size)
    opened = {"torch.load of all files": turns["torch.load"]}
    yield Row("checkpoint", "tiny: weights opened for evaluation", "MB/s", megabytes, turns["open"], opened, **size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    measure_apart(measure_saves, parser.parse_args())


if __name__ == "__main__":
    main()

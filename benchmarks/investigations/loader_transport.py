"""What a loader process adds to reading a batch itself, and what the trainer takes to receive it: processor time a picture.

    python benchmarks/investigations/loader_transport.py [--photos DIR] [--turns 5]

In turns: batches read in the trainer's own process; by a loader process through shared memory that is used again (data/batch.py);
and through torch's, new for every batch. Pictures as of `python -m benchmarks input`; the trainer reads one byte a page.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import psutil
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY)]

from benchmarks.loader_speed import BATCH, SIZE, write_data  # noqa: E402
from benchmarks.peers import write_clip_tokenizer  # noqa: E402
from sycoca_ds.data import batch as shared  # noqa: E402
from sycoca_ds.data.loader import PlannedBatches, TrainSet, train_loader  # noqa: E402
from sycoca_ds.data.plan import Plan  # noqa: E402
from sycoca_ds.data.sources import Sources  # noqa: E402
from sycoca_ds.data.tokenizer import Tokenizer  # noqa: E402
from sycoca_ds.data.transforms import Augmentation  # noqa: E402

BATCHES, WARM, PAGE = 60, 8, 4096


def turn(folder: Path, tokenizer: Path, workers: int, pieces: int) -> tuple[float, float]:
    """(loader processes', trainer's) microseconds a picture."""
    shared.PIECES = pieces
    sources = Sources.load([folder])
    plan = Plan(sources.kept, global_batch_size=BATCH, lanes=16, window=4096, seed=0)
    dataset = TrainSet(sources, plan, Tokenizer(tokenizer), augmentation=Augmentation(SIZE), context_length=77)
    batches = train_loader(dataset, PlannedBatches(plan, 0, 1_000, 1, 0, 1), workers, pin=False)

    def read() -> None:
        batch = next(batches)
        batch.pixels[::PAGE].sum()
        batch._give_back()

    for _ in range(WARM):
        read()
    children = psutil.Process().children(recursive=True)

    def spent() -> tuple[float, float]:
        return sum(sum(child.cpu_times()[:2]) for child in children), time.process_time()

    before = spent()
    for _ in range(BATCHES):
        read()
    return tuple(1e6 * (now - then) / BATCHES / BATCH for now, then in zip(spent(), before, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--open-clip", type=Path, default=REPOSITORY / "build/open_clip")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    ways = {"own process": (0, 0), "memory used again": (1, shared.PIECES), "new memory": (1, 0)}
    with tempfile.TemporaryDirectory() as temporary:
        folder, clip = Path(temporary) / "data", Path(temporary) / "clip.json"
        write_data(folder, options.photos)
        write_clip_tokenizer(options.open_clip, clip)
        found = {name: [] for name in ways}
        for _ in range(options.turns):
            for name, way in ways.items():
                found[name].append(turn(folder, clip, *way))
    print("| | loader process, us a picture | trainer |\n|---|---:|---:|")
    for name, turns in found.items():
        loader, trainer = (
            f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})" for values in zip(*turns, strict=True)
        )
        print(f"| {name} | {loader} | {trainer} |")


if __name__ == "__main__":
    main()

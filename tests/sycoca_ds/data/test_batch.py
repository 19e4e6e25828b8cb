"""Batches in shared memory that is used again: never while somebody may still read it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch

from sycoca_ds.data.batch import PIECES, Batch, Piece, SharedPieces
from sycoca_ds.data.loader import PlannedBatches, TrainSet, train_loader
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation
from sycoca_ds.engine.ranks.process_table import process_began
from tests.worlds import REPOSITORY
from tests.worlds.processes.watching import wait_until

STEPS = 60


def batches(folder: Path, workers: int, room: int = 0) -> Iterator[Batch]:
    """Crops of half the picture to the whole of it, so that batches differ in size. Args: room: what a batch is thought to take."""
    sources = Sources.load([folder])
    plan = Plan(sources.kept, global_batch_size=16, lanes=4, window=8, seed=3)
    tokenizer, augmentation = Tokenizer(folder / "tokenizer.json"), Augmentation(24, (0.5, 1.0))
    dataset = TrainSet(sources, plan, tokenizer, augmentation=augmentation, context_length=12)
    dataset._room = room
    return train_loader(dataset, PlannedBatches(plan, 0, STEPS, 1, 0, 1), workers, pin=False)


def on_device(batch: Batch) -> dict[str, torch.Tensor]:
    return batch.to_device(torch.device("cpu"), 24)


@pytest.fixture(scope="module")
def expected(data_set: Path) -> list[dict[str, torch.Tensor]]:
    return [on_device(batch) for batch in batches(data_set, workers=0)]


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name


@pytest.mark.parametrize("workers", [1, 2])
def test_memory_is_used_again_and_what_is_kept_stays(workers: int, data_set: Path, expected: list[dict[str, torch.Tensor]]) -> None:
    """Two batches are kept while all others come and go."""
    kept, places, without = {}, [], []
    for step, batch in enumerate(batches(data_set, workers)):
        if batch.piece is None:
            without.append(step)
        else:
            places.append(batch.pixels.data_ptr())
        if step in (10, 31):
            kept[step] = batch, batch.pixels.clone()
        else:
            assert_equal(on_device(batch), expected[step])
    assert step == STEPS - 1 and len(without) < 12, "until a process knows how much batches take"
    assert len(set(places)) <= 3 * workers * PIECES < len(places), "each piece may grow once or twice"
    for step, (batch, pixels) in kept.items():
        assert batch.piece is not None and torch.equal(batch.pixels, pixels)
        assert_equal(on_device(batch), expected[step])


def test_batches_that_nobody_gives_back_are_whole(data_set: Path, expected: list[dict[str, torch.Tensor]]) -> None:
    found = list(batches(data_set, workers=2))
    lent = [batch for batch in found if batch.piece is not None]
    assert PIECES <= len(lent) <= 2 * PIECES < len(found) == STEPS
    assert len({batch.pixels.data_ptr() for batch in lent}) == len(lent)
    for batch, wanted in zip(found, expected, strict=True):
        assert_equal(on_device(batch), wanted)


def test_a_batch_that_does_not_fit_goes_another_way(data_set: Path, expected: list[dict[str, torch.Tensor]]) -> None:
    lent = 0
    for batch, wanted in zip(batches(data_set, workers=1, room=100), expected, strict=True):
        lent += batch.piece is not None
        assert_equal(on_device(batch), wanted)
    assert STEPS - 10 < lent < STEPS


def test_a_batch_is_read_once(data_set: Path) -> None:
    """Its memory may hold another one by then."""
    loaded = batches(data_set, workers=1)
    batch = next(batch for batch in loaded if batch.piece is not None)
    on_device(batch)
    assert batch.piece is None and len(batch.pixels) == 0
    with pytest.raises((RuntimeError, IndexError)):
        on_device(batch)


def test_a_batch_outlives_its_loader(data_set: Path, expected: list[dict[str, torch.Tensor]]) -> None:
    loaded = batches(data_set, workers=1)
    found = [next(loaded) for _ in range(4)]
    del loaded
    assert isinstance(found[3].piece, Piece)
    for batch, wanted in zip(found, expected, strict=False):
        assert_equal(on_device(batch), wanted)


def test_two_loaders_of_one_data_set_have_their_own_memory(data_set: Path, expected: list[dict[str, torch.Tensor]]) -> None:
    sources = Sources.load([data_set])
    plan = Plan(sources.kept, global_batch_size=16, lanes=4, window=8, seed=3)
    tokenizer, augmentation = Tokenizer(data_set / "tokenizer.json"), Augmentation(24, (0.5, 1.0))
    dataset = TrainSet(sources, plan, tokenizer, augmentation=augmentation, context_length=12)
    both = [train_loader(dataset, PlannedBatches(plan, 0, 20, 1, 0, 1), 1, pin=False) for _ in range(2)]
    for wanted, *loaded in zip(expected[:20], *both, strict=True):
        for batch in loaded:
            assert_equal(on_device(batch), wanted)


def test_what_arrives_after_its_loader_has_ended_is_empty(data_set: Path) -> None:
    """In the thread that pins memory, which may be behind; nobody reads it."""
    for batch in batches(data_set, workers=1):
        if batch.piece is not None and not batch.piece.fresh:
            break
        on_device(batch)
    sent = ForkingPickler.dumps(batch)
    SharedPieces.met.clear()
    assert len(ForkingPickler.loads(sent).pixels) == 0


TRAINER = """
import sys, time
from pathlib import Path
from sycoca_ds.data.batch import Batch
from tests.sycoca_ds.data.test_batch import batches
plain = Batch.__getstate__
Batch.__getstate__ = lambda self: {**plain(self), "ballast": bytes(1 << 20)}  # as the texts of a large batch
found = batches(Path(sys.argv[1]), workers=2)
next(found)
print(" ".join(str(worker.pid) for worker in found._workers), flush=True)
time.sleep(600)
"""


def test_loader_processes_end_with_a_trainer_that_is_killed(data_set: Path) -> None:
    """What they have for it fills the pipe, on which they would wait for ever: each of them holds its other end, too."""
    words = [sys.executable, "-c", TRAINER, str(data_set)]
    trainer = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    workers = [int(word) for word in trainer.stdout.readline().split()]
    began = {pid: process_began(pid) for pid in workers}
    assert len(workers) == 2 and all(began.values())
    time.sleep(2)  # until the pipe is full
    trainer.kill()
    trainer.wait()
    assert wait_until(lambda: all(process_began(pid) != began[pid] for pid in workers), 30)

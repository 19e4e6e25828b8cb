"""The watchdog's threads, two ranks of them in one process: who is taken for silent, and who is not. What it does to real runs, and
their stopped and stuck ranks, is in test_faults.py."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sycoca_ds.config import WatchConfig
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.engine.safety.status import HEARTBEATS
from sycoca_ds.engine.safety.watchdog import Watchdog
from tests.worlds.processes.watching import wait_until

QUICK = WatchConfig(beat_seconds=0.2, silent_seconds=2.0)


class Told(Watchdog):
    """Says its verdict here, where the process goes on."""

    verdict = ""

    def _finish(self, verdict: str) -> None:
        self.verdict = verdict
        self._done.set()


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Told]]:
    """Two, with the store of rank 0."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    (tmp_path / HEARTBEATS).mkdir()
    made = [Told(tmp_path, Runtime(rank, rank, 2, torch.device("cpu"), 2), QUICK) for rank in range(2)]
    yield made
    for one in made:
        one._done.set()
    for one in made:
        for thread in one._threads:
            thread.join(5)


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_disk_that_hangs_makes_nobody_silent(stuck: int, ranks: list[Told], tmp_path: Path) -> None:
    """Who opens this file to write waits, as on a file server that does not answer for a while."""
    file = tmp_path / HEARTBEATS / f"rank_{stuck:05d}.json"
    os.mkfifo(file)
    for one in ranks:
        one.__enter__()
    time.sleep(2.5 * QUICK.silent_seconds)
    assert [one.verdict for one in ranks] == ["", ""]
    for one in ranks:
        one._done.set()
    reader = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # it answers again
    try:
        assert wait_until(lambda: not ranks[stuck]._threads[1].is_alive(), 5)
    finally:
        os.close(reader)


def test_a_rank_whose_beats_end_is_named(ranks: list[Told]) -> None:
    for one in ranks:
        one.__enter__()
    assert wait_until(lambda: ranks[0]._seen.get(1, (0,))[0] > 0, 10)
    ranks[1]._done.set()
    assert wait_until(lambda: ranks[0].verdict, 10)
    assert ranks[0].verdict.startswith("rank 1 on ") and "gives no sign of life for" in ranks[0].verdict

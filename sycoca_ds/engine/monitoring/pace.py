"""Which rank holds the others up. In every step all wait for each other, so each takes the slowest's time; what tells them apart is
what a rank does alone: one fixed matrix product on its device, and its wait for samples."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Sequence

import torch

from sycoca_ds.engine.ranks.runtime import Runtime

SLOWER = 1.5
"""A device is slow if the product takes it this many times what it takes the median rank."""
WAITS_MORE = 0.1
"""A loader is slow if its rank waits for samples this much more of the time than the median rank."""
IN_A_ROW = 3
"""Reports in a row in which a rank must be slow: other work on a machine comes and goes."""
SIDE = {"cpu": 256, "cuda": 2048}
TRIES = 5
"""Of the product, at each report; the quickest counts."""


class Pace:
    """Measures a rank's device, and judges all ranks from report to report."""

    def __init__(self, runtime: Runtime) -> None:
        """A collective: every rank tells its host."""
        self.runtime, side = runtime, SIDE[runtime.device.type]
        self.hosts = runtime.gather(socket.gethostname())
        self._a = torch.ones(side, side, device=runtime.device)
        self._in_a_row: dict[tuple[str, int], int] = {}

    def device_seconds(self) -> float:
        """What the product takes this rank's device now; 0 for a rank that is alone. About a millisecond a try."""
        return min(self._product() for _ in range(TRIES)) if self.runtime.world_size > 1 else 0.0

    def _product(self) -> float:
        self._wait()
        began = time.perf_counter()
        torch.mm(self._a, self._a)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()

    def judge(self, device_W: Sequence[float], wait_W: Sequence[float]) -> list[str]:
        """A sentence for each rank that is now known to be slow; each is said once, and again if it was well in between.

        Args:
            device_W: `device_seconds` of all ranks.
            wait_W: share of its time that each waited for samples.
        """
        usual, waits, said = statistics.median_low(device_W), statistics.median_low(wait_W), []
        for rank, (seconds, wait) in enumerate(zip(device_W, wait_W, strict=True)):
            times = seconds / max(usual, 1e-12)
            waiting = f"it waits for samples {wait:.0%} of the time, the median rank {waits:.0%}"
            for what, slow, text in (
                ("device", times > SLOWER, f"its device takes {times:.1f} times as long as the median rank's for one product"),
                ("loader", wait > waits + WAITS_MORE, waiting),
            ):
                count = self._in_a_row[what, rank] = self._in_a_row.get((what, rank), 0) + 1 if slow else 0
                if count == IN_A_ROW:
                    said.append(f"rank {rank} on {self.hosts[rank]} holds the others up: {text}, {IN_A_ROW} reports in a row")
        return said

    def numbers(self, device_W: Sequence[float], wait_W: Sequence[float]) -> dict[str, float]:
        """For the record: how far the slowest device lies behind the median one, and which ranks are slowest."""
        slowest = max(range(len(device_W)), key=lambda rank: device_W[rank])
        return {
            "slowest_device": device_W[slowest] / max(statistics.median_low(device_W), 1e-12),
            "slowest_device_rank": slowest,
            "slowest_loader_rank": max(range(len(wait_W)), key=lambda rank: wait_W[rank]),
        }

"""What is measured between two reports: losses, samples, floating-point operations, time, memory."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from sycoca_ds.config import LossConfig, ModelConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.question_sources import QuestionBatch
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.model.flops import answer_passes, step_flops
from sycoca_ds.model.text_encoder import real_tokens


def resident_gib() -> float:
    """Memory that this process holds (VmRSS), GiB; what its loader processes hold is not in it."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmRSS:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) / 2**20 if found else 0.0


@dataclass(frozen=True)
class Report:
    """What came out between two reports, on all ranks."""

    means: dict[str, float]
    """Of each loss, over micro-batches and ranks."""
    stand_ins: int
    """Samples that could not be read and were replaced."""
    tflops: float
    """Model FLOPs of all ranks, in units of 10^12."""
    seconds: float
    """Of rank 0, pauses left out."""
    device_W: list[float]
    """Each rank's `own_device_seconds`."""
    wait_W: list[float]
    """Share of that time which each rank spent waiting for samples."""
    memory_gib: float
    """Most memory that the fullest device ever had allocated; 0 without CUDA."""
    host_memory_gib: float
    """Of the fullest rank's process now."""

    @property
    def data_wait(self) -> float:
        """Of the rank that waited longest."""
        return max(self.wait_W)


class Meter:
    """Sums between two reports. Losses stay on the device: no step waits for the host."""

    def __init__(self, model: ModelConfig, runtime: Runtime, loss: LossConfig | None = None) -> None:
        self.model, self.runtime, self.loss = model, runtime, loss
        self.restart()

    def restart(self) -> None:
        """Forgets everything since the last report."""
        self._totals: dict[str, torch.Tensor] = {}
        self.micro_batches = self._stand_ins = 0
        self._tflops = self._spent = self._waited = 0.0
        self._since = time.perf_counter()

    def add(self, report: dict[str, torch.Tensor]) -> None:
        """The losses of one micro-batch."""
        for name, value in report.items():
            self._totals[name] = self._totals.get(name, 0) + value.detach().float()
        self.micro_batches += 1

    def count(self, loaded: list[Batch]) -> None:
        """What a step's micro-batches hold: stand-ins and work."""
        for batch in loaded:
            self._stand_ins += batch.stand_ins
            if isinstance(batch, QuestionBatch):
                self._tflops += question_tflops(self.model, batch)
            else:
                self._tflops += batch_tflops(self.model, batch.text_BL, self.loss)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for samples."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: validating, saving. It counts in no speed."""
        self._spent += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def report(self, own_device_seconds: float = 0.0) -> Report:
        """Everything since the last report; every rank calls it at the same step, with one collective."""
        device = self.runtime.device
        seconds = self._spent + time.perf_counter() - self._since
        allocated = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
        own = [float(self._stand_ins), self._tflops, own_device_seconds, self._waited / seconds, allocated, resident_gib()]
        losses = [value / self.micro_batches for value in self._totals.values()]
        rows_WK = self.runtime.rows(torch.stack([*losses, *torch.tensor(own, device=device)])[None])
        means = dict(zip(self._totals, rows_WK[:, : len(losses)].mean(0).tolist(), strict=True))
        stand_ins, tflops = rows_WK[:, -6:-4].double().sum(0).tolist()
        device_W, wait_W = rows_WK[:, -4:-2].T.tolist()
        report = Report(means, round(stand_ins), tflops, seconds, device_W, wait_W, *rows_WK[:, -2:].amax(0).tolist())
        self.restart()
        return report


def batch_tflops(model: ModelConfig, text_BL: torch.Tensor, loss: LossConfig | None = None) -> float:
    """Model FLOPs of one micro-batch's training step, in units of 10^12: the formula of model/flops.py at the real tokens that its
    captions have. Nothing that is computed twice (activation checkpointing, the encoders' first pass with several micro-batches)
    counts twice."""
    tokens = real_tokens(text_BL, model.text.eot_id).sum().item() / len(text_BL)
    return len(text_BL) * step_flops(model, text_tokens=tokens, loss=loss) / 1e12


def question_tflops(model: ModelConfig, batch: QuestionBatch) -> float:
    """The same of a micro-batch of questions."""
    questions = len(batch.text_BL)
    each = len(batch.answer_AL) / questions, len(batch.label_at_M) / questions
    return questions * 3 * sum(part.forward for part in answer_passes(model, batch.text_BL.shape[1], *each)) / 1e12

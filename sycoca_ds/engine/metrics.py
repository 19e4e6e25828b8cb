"""What the run tells: one record a report, to the console, to metrics.jsonl and to TensorBoard."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sycoca_ds.engine.runtime import Runtime

TAGS = {
    "loss": "loss/total",
    "itc": "loss/itc",
    "ic": "loss/ic",
    "mim": "loss/mim",
    "validation/loss": "loss_validation/total",
    "validation/itc": "loss_validation/itc",
    "validation/ic": "loss_validation/ic",
    "validation/mim": "loss_validation/mim",
    "i2t_accuracy": "train_accuracy/i2t",
    "t2i_accuracy": "train_accuracy/t2i",
    "validation/i2t_accuracy": "validation_accuracy/i2t",
    "validation/t2i_accuracy": "validation_accuracy/t2i",
    "lr": "optimizer/lr",
    "grad_norm": "optimizer/grad_norm",
    "logit_scale": "optimizer/logit_scale",
    "skipped_steps": "optimizer/skipped_steps",
    "samples_per_second": "speed/samples_per_second",
    "data_wait": "speed/data_wait_share",
    "samples": "samples/seen",
    "epoch": "samples/epoch",
    "stand_ins": "samples/stand_ins",
    "memory_gib": "speed/max_memory_gib",
}
"""Key in metrics.jsonl -> TensorBoard tag. TensorBoard sorts groups by name and opens the first two: no group may come before
`loss` and `loss_validation`."""


class Meter:
    """Means of the losses between two reports, kept on the device: no step waits for the host."""

    def __init__(self) -> None:
        self.totals: dict[str, torch.Tensor] = {}
        self.steps, self.stand_ins = 0, 0

    def add(self, report: dict[str, torch.Tensor]) -> None:
        for name, value in report.items():
            self.totals[name] = self.totals.get(name, 0) + value.detach().float()
        self.steps += 1

    def mean(self, runtime: Runtime) -> tuple[dict[str, float], int]:
        """(means over micro-batches and ranks, stand-ins on all ranks) since the last call."""
        values = torch.stack([*self.totals.values(), torch.tensor(float(self.stand_ins * self.steps), device=runtime.device)])
        *means, stand_ins = runtime.mean(values / self.steps).tolist()
        names = list(self.totals)
        self.totals, self.steps, self.stand_ins = {}, 0, 0
        return dict(zip(names, means, strict=True)), round(stand_ins * runtime.world_size)


class Chrono:
    """Time spent in steps: `paused` around evaluation and saving keeps those out of samples/s."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self._spent, self._since, self.waited = 0.0, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self._spent += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for data."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    @property
    def spent(self) -> float:
        """Seconds since `restart`, pauses left out."""
        return self._spent + time.perf_counter() - self._since


class Metrics:
    """Writes records of rank 0; on other ranks every method does nothing.

    On resume, records of later steps than the checkpoint's are dropped from metrics.jsonl and purged from TensorBoard, so
    that a curve has one point a step.
    """

    def __init__(self, run: Path, first_step: int, enabled: bool):
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines() if _step(line) <= first_step] if path.is_file() else []
        temporary = path.with_suffix(".jsonl.new")
        temporary.write_text("".join(line + "\n" for line in kept))
        os.replace(temporary, path)
        self._file = open(path, "a")
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def scalars(self, step: int, record: dict[str, float]) -> None:
        """One line in metrics.jsonl and a point in each curve."""
        if self.enabled:
            self._file.write(json.dumps({"step": step, **record}) + "\n")
            self._file.flush()
            for name, value in record.items():
                self._board.add_scalar(TAGS.get(name) or (f"samples/{name}" if name.startswith("epoch_of_") else name), value, step)

    def pictures(self, step: int, images: dict[str, np.ndarray], texts: dict[str, str]) -> None:
        """uint8 (H, W, 3) pictures and Markdown texts by tag."""
        if self.enabled:
            for tag, image_HWC in images.items():
                self._board.add_image(tag, image_HWC, step, dataformats="HWC")
            for tag, text in texts.items():
                self._board.add_text(tag, text, step)

    def close(self) -> None:
        if self.enabled:
            self._file.close()
            self._board.close()


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a half-written last line counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def format_record(step: int, steps: int, record: dict[str, Any]) -> str:
    """The console's line for one report."""
    losses = " ".join(f"{name} {record[name]:.3f}" for name in ("loss", "itc", "ic", "mim") if name in record)
    return (
        f"step {step}/{steps} {losses} | scale {record['logit_scale']:.1f} grad {record.get('grad_norm', float('nan')):.2f} "
        f"lr {record['lr']:.1e} | {record['samples_per_second']:.0f} samples/s, data wait {100 * record['data_wait']:.1f} %"
    )


def format_note(record: dict[str, Any]) -> str:
    """The same beside a bar, where there is little room."""
    return f"loss {record['loss']:.3f}, {record['samples_per_second']:.0f} samples/s"

"""What a run tells of itself, gathered from those who know it: one object that the loop calls."""

from __future__ import annotations

from pathlib import Path

import torch

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.data.loader import Batch
from sycoca_ds.engine.checkpoint.saving import Saver
from sycoca_ds.engine.guard import Guard
from sycoca_ds.engine.metrics import Chrono, Meter, Metrics, format_note, format_record
from sycoca_ds.engine.start import Session
from sycoca_ds.engine.watchdog import Watchdog

MAX_STAND_IN_SHARE = 0.01
"""Stop when more than this share of the samples had to be replaced: then the data is damaged, not a sample."""


class Reports:
    """Losses, speed and pictures to console, metrics.jsonl and TensorBoard. All ranks call all of it."""

    def __init__(self, session: Session, guard: Guard, saver: Saver) -> None:
        self.session, self.guard, self.saver = session, guard, saver
        self.metrics = Metrics(Path(session.config.run.out), session.position.step, enabled=session.runtime.leads)
        self.chrono, self.meter = Chrono(), Meter()

    def count(self, told: list[dict[str, torch.Tensor]], loaded: list[Batch]) -> None:
        """A step's losses and stand-ins, for the next report."""
        for report in told:
            self.meter.add(report)
        self.meter.stand_ins += sum(batch.stand_ins for batch in loaded)

    def write(self, bar: Progress, lr: float) -> None:
        """One report of the steps since the last.

        Raises:
            UserError: too many samples had to be replaced.
        """
        session, position = self.session, self.session.position
        runtime, batches, plan = session.runtime, session.batches, session.plan
        seconds, counted = self.chrono.spent, self.meter.steps / batches.accumulation_steps
        record, new = self.meter.mean(runtime)
        position.stand_ins += new
        norm = session.engine.get_global_grad_norm()
        record |= {
            "lr": lr,
            "skipped_steps": self.guard.skipped,
            "samples": position.data_step * batches.global_batch_size,
            "epoch": position.data_step / plan.steps_per_epoch,
            **{f"epoch_of_source_{n}": e for n, e in enumerate(plan.epochs(position.data_step), 1) if len(plan.sources) > 1},
            "stand_ins": position.stand_ins,
            "samples_per_second": counted * batches.global_batch_size / seconds,
            "data_wait": self.chrono.waited / seconds,
        }
        if norm is not None:  # without ZeRO in fp32, torch clips and DeepSpeed never learns the norm
            record["grad_norm"] = float(norm)
        if runtime.device.type == "cuda":
            record["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if position.stand_ins > max(8, MAX_STAND_IN_SHARE * record["samples"]):
            raise UserError(
                f"{position.stand_ins} of {record['samples']} samples up to step {position.step} could not be read: run `python -m "
                f"data_pipeline verify` on {' '.join(session.config.data.train)}"
            )
        self.metrics.scalars(position.step, record)
        bar.note(format_note(record))
        runtime.say(format_record(position.step, session.steps, record))
        self.chrono.restart()

    def look(self, watchdog: Watchdog) -> None:
        """Validation losses and pictures of the model as it is."""
        validation, engine, step = self.session.validation, self.session.engine, self.session.position.step
        if validation is None:
            return
        with watchdog.at("validation", step), self.chrono.paused():
            engine.eval()
            losses = validation.losses(engine)
            images, texts = validation.pictures(engine)
            engine.train()
            self.metrics.scalars(step, losses)
            self.metrics.pictures(step, images, texts)

    def go_back(self) -> None:
        """The session is back at an earlier step: later points of the curves are dropped."""
        self.metrics.close()
        self.metrics = Metrics(Path(self.session.config.run.out), self.session.position.step, enabled=self.session.runtime.leads)
        self.chrono, self.meter = Chrono(), Meter()

    def close(self) -> None:
        self.metrics.close()

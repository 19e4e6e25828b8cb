"""Everything that a run says of itself, as one object: the loop tells it what happens, on every rank, at the same steps."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from sycoca_ds.data.batch import Batch
from sycoca_ds.engine.checkpoint.saving import Saver
from sycoca_ds.engine.monitoring.best import Best
from sycoca_ds.engine.monitoring.curves import format_record, format_validation
from sycoca_ds.engine.monitoring.gradients import GradientNorms
from sycoca_ds.engine.monitoring.journal import Journal
from sycoca_ds.engine.monitoring.meters import Meter
from sycoca_ds.engine.monitoring.pace import Pace
from sycoca_ds.engine.monitoring.peaks import peak_tflops
from sycoca_ds.engine.safety.watchdog import Watchdog
from sycoca_ds.engine.start import Session
from sycoca_ds.eval.masking.verdict import warning
from sycoca_ds.eval.provenance import git_sha, hardware, versions
from sycoca_ds.options import to_json

MAX_STAND_IN_SHARE = 0.01
"""Stop when more than this share of the samples had to be replaced: then the data is damaged, not a sample."""


class Monitor:
    """Measures, writes down and reports. See docs/monitoring.md."""

    def __init__(self, session: Session):
        self.session, self.config, self.runtime, self.engine = session, session.config, session.runtime, session.engine
        config, runtime, step = session.config, session.runtime, session.position.step
        run, leads = Path(config.run.out), runtime.leads
        validation = session.validation
        shown = {"regions": validation is not None and validation.regions is not None, "answers": config.model.fusion}
        shown["unasked"] = validation.without() if validation is not None else ()
        self.journal = Journal(run, step, enabled=leads, **shown)
        self.best = Best(run, config.run.best_metric, step, self.journal.at(step)) if leads else None
        self.meter, self.norms = Meter(config.model, runtime, config.loss), GradientNorms(runtime)
        self.pace = Pace(runtime)
        self._sealed = session.position.step
        name = torch.cuda.get_device_name() if runtime.device.type == "cuda" else ""
        self.peak_tflops = config.run.peak_tflops or peak_tflops(name)
        self._told = False
        if leads:
            self.journal.show(step + 1, texts=self._texts())

    def _texts(self) -> dict[str, str]:
        """The configuration and the environment, as Markdown."""
        runtime = self.runtime
        known = {"commit": git_sha(), **versions(), **hardware(runtime.device)}
        known |= {"ranks": runtime.world_size, "ranks on a machine": runtime.local_world_size}
        known |= {"peak TFLOP/s of a device": self.peak_tflops}
        rows = "\n".join(f"| {name} | {value if value is not None else '-'} |" for name, value in known.items())
        # what DeepSpeed was given; as JSON, which has no classes
        policy = json.dumps(self.engine.config, indent=2, default=str)
        return {
            "run/configuration": f"```\n{to_json(self.config)}```",
            "run/deepspeed": f"```\n{policy}\n```",
            "run/environment": f"| | |\n|---|---|\n{rows}",
        }

    def due(self, step: int) -> bool:
        """Whether a report follows this step."""
        return step % self.config.run.log_every == 0 or step == self.session.steps

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the wait for a step's samples."""
        with self.meter.waiting():
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: it counts in no speed."""
        with self.meter.paused():
            yield

    def count(self, told: list[dict[str, torch.Tensor]], loaded: list[Batch]) -> None:
        """A step's losses and its micro-batches as they were loaded."""
        for report in told:
            self.meter.add(report)
        self.meter.count(loaded)

    def gradients(self) -> None:
        """Between a backward pass and the engine's step: the gradient of this step, where a report follows it. Before the last
        micro-batch it does nothing."""
        if self.due(self.session.position.step + 1) and self.engine.is_gradient_accumulation_boundary():
            self.norms.measure(self.engine)

    def report(self, *, lr: float, skipped_steps: int) -> dict[str, Any]:
        """Writes what happened since the last report.

        Raises:
            UserError: on all ranks, if too many samples could not be read.
        """
        position, batches = self.session.position, self.session.batches
        steps = self.meter.micro_batches / batches.accumulation_steps
        found = self.meter.report(self.pace.device_seconds())
        position.stand_ins += found.stand_ins
        world, plan = self.runtime.world_size, self.session.plan
        speed = steps * batches.global_batch_size / found.seconds
        record = {
            **found.means,
            **self.norms.read(),
            "lr": lr,
            "skipped_steps": skipped_steps,
            "samples": position.data_step * batches.global_batch_size,
            "epoch": position.data_step / plan.steps_per_epoch,
            **{f"epoch_of_source_{n}": e for n, e in enumerate(plan.epochs(position.data_step), 1) if len(plan.sources) > 1},
            "stand_ins": position.stand_ins,
            "samples_per_second": speed,
            "samples_per_second_per_device": speed / world,
            "model_tflops_per_second": found.tflops / found.seconds,
            "data_wait": found.data_wait,
            "host_memory_gib": found.host_memory_gib,
        }
        if self.peak_tflops:
            record["mfu"] = found.tflops / found.seconds / (world * self.peak_tflops)
        if self.runtime.device.type == "cuda":
            record["memory_gib"] = found.memory_gib
        if world > 1:
            record |= self.pace.numbers(found.device_W, found.wait_W)
        self.journal.scalars(position.step, record)
        self.runtime.say(format_record(position.step, self.session.steps, record))
        for sentence in self.pace.judge(found.device_W, found.wait_W) if world > 1 else ():
            self.runtime.say(sentence)
        if position.stand_ins > max(8, MAX_STAND_IN_SHARE * record["samples"]):
            raise UserError(
                f"{position.stand_ins} of {record['samples']} samples up to step {position.step} could not be read: run `python -m "
                f"data_pipeline verify` on {' '.join(self.config.data.train)}"
            )
        return record

    def look(self, watchdog: Watchdog) -> dict[str, float]:
        """Validates, if there is a validation folder; its numbers on rank 0."""
        step = self.session.position.step
        if self.session.validation is None:
            return {}
        began = time.monotonic()
        with watchdog.at("validation", step), self.paused():
            self.engine.eval()
            numbers = self.session.validation.numbers(self.engine)
            images, texts = self.session.validation.pictures(self.engine)
            self.engine.train()
            self.journal.scalars(step, {**numbers, "validation_seconds": time.monotonic() - began})
            self.journal.show(step, images, texts)
        if self.best is None:  # another rank
            return {}
        self.runtime.say(format_validation(step, numbers))
        self.best.validated(step, numbers)
        if self.session.validation.attends and "masking/caption_ignored" in numbers and step >= self._settled():
            masking = {name.removeprefix("masking/"): value for name, value in numbers.items() if name.startswith("masking/")}
            said = warning(masking)
            if said and not self._told:
                self.runtime.say(f"step {step}: {said}")
            self._told = said is not None
        return numbers

    def _settled(self) -> int:
        """The step from which on scores should mean something."""
        return max(self.config.model.masking.mask_warmup, self.config.optim.warmup_steps, 1)

    def saved(self, saver: Saver) -> None:
        """Looks whether another checkpoint is sealed, and what it took of the training's time."""
        step = saver.last_sealed
        if step is None or step == self._sealed:
            return
        self._sealed = step
        self.journal.scalars(step, {"checkpoint_seconds": saver.stalled})
        if self.best is not None and self.best.saved(step):
            self.runtime.say(f"step {step} is the best so far by {self.config.run.best_metric}")

    def go_back(self) -> None:
        """The session is back at an earlier step: what was measured and written since is forgotten."""
        step = self._sealed = self.session.position.step
        self.meter.restart()
        self.journal.go_back(step)
        if self.best is not None:
            self.best.go_back(step)

    def close(self) -> None:
        self.journal.close()

"""What must not reach the weights: gradients that are not finite, spikes, and what a faulty device computed.

A spike is a loss or a gradient norm beyond the mean of the last steps by some standard deviations. Those of a spike itself count
there as the most that is none: a level that has risen for good becomes the usual one within some steps, and one huge number does
not blind the guard to those that follow. It is decided on the device, between backward pass and update, from numbers that are the
same on all ranks: torch's fused AdamW leaves weights and moments alone where its `found_inf` is 1, so no host has to wait for the
answer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sycoca_ds.data.batch import Batch
from sycoca_ds.engine.checkpoint.saving import Saver
from sycoca_ds.engine.safety.self_test import faults
from sycoca_ds.engine.start import Session

SKIPPED_FILE = "skipped.jsonl"
HARDWARE = 1e-3
"""Relative difference between two computations of one step above which a device is to blame: sums in another order differ by some
1e-6, bf16 included, since the same kernels run on the same numbers."""


SPIKE = "spike"


def most(history: torch.Tensor, sigma: float, window: int) -> torch.Tensor:
    """The largest loss and gradient norm that are no spike: infinite before `window` steps are done, and with `sigma` 0.

    Args:
        history: float32 (2, steps), what `remember` has kept.
    """
    if sigma <= 0 or history.shape[1] < window:
        return history.new_full((2,), torch.inf)
    deviation, mean = torch.std_mean(history, dim=1)
    return mean + sigma * deviation


def remember(history: torch.Tensor, values: torch.Tensor, sigma: float, window: int) -> torch.Tensor:
    """The last `window` steps' loss and gradient norm with those of one more, a spike's as the most that is none."""
    newest = torch.minimum(values, most(history, sigma, window))
    return torch.cat([history, newest.unsqueeze(1)], dim=1)[:, -window:]


class FaultyDevice(RuntimeError):
    """The same step gave other numbers on the same rank."""


class Guard:
    """Stands between backward pass and update. All ranks call all of it together.

    Attributes:
        skipped: steps without an update, from the run's first step on.
        in_row: how many of the last steps were skipped.
        rewinds: how often the run went back since its last save.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.engine, self.runtime = session, session.engine, session.runtime
        self.config, self.file = session.config.guard, Path(session.config.run.out) / SKIPPED_FILE
        self.rewinds, self._went_to, self._zero = 0, None, torch.zeros((), device=self.runtime.device)
        self._restore(session.state)
        self._hold, self._bad, self._loss, self._norm = False, self._zero, None, None
        self._own_norms: list[torch.Tensor] = []
        if self.config.recompute:
            for parameter in self.engine.module.parameters():
                parameter.register_hook(lambda slope: self._own_norms.append(torch.linalg.vector_norm(slope.detach().float())))
        inner = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        self._on_host = not isinstance(inner, torch.optim.AdamW)  # DeepSpeed's AdamW on the CPU knows no found_inf
        self._held_back: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        inner.register_step_pre_hook(self._before_update)
        inner.register_step_post_hook(self._after_update)

    def _restore(self, state: dict[str, Any] | None) -> None:
        kept = {"skipped": 0, "in_row": 0, "history": [[], []]} if state is None else state["extra"]["guard"]
        self.skipped, self.in_row = kept["skipped"], kept["in_row"]
        self._history = torch.tensor(kept["history"], dtype=torch.float32, device=self.runtime.device)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, exactly: float32 numbers are decimals of JSON."""
        return {"skipped": self.skipped, "in_row": self.in_row, "history": self._history.tolist()}

    def attempts(self, batches: Sequence[Batch]) -> Iterator[None]:
        """`for _ in guard.attempts(batches)` around forward, backward and update of a step.

        Comes by once; where the step was skipped, with `guard.recompute`, once more with the update held back. Equal numbers: the
        data are to blame, the step stays skipped. Other numbers: a device is; then it comes a third time, and the step is taken if
        that computation is sound.

        Raises:
            RuntimeError: too many steps in a row were skipped, or the gradient is exactly zero.
            FaultyDevice: the numbers still differ at the third computation.
        """
        step, every = self.session.position.step + 1, self.config.self_test_every
        if every and (step - 1) % every == 0:
            wrong = faults(self.runtime)
            if wrong:
                raise FaultyDevice(f"step {step}: {'; '.join(wrong)}: take that machine out")
        yield
        reason = self._outcome()
        if not reason:
            self._accept()
            return
        told = self._told()
        if self.config.recompute:
            self._hold = True
            yield
            self._hold = False
            again = self._told()
            by_how_much = self.runtime.gather(_difference(told[0], again[0]))
            guilty = sorted((n for n, d in enumerate(by_how_much) if d > HARDWARE), key=lambda n: -by_how_much[n])
            if guilty or _difference(told[1], again[1]) > HARDWARE:
                who = f"rank {', '.join(map(str, guilty))}" if guilty else "a rank that its own loss and gradient do not show"
                self._log(step, f"a device computed something else the second time, of {who}", batches, told)
                yield
                reason = self._outcome()
                if reason:
                    raise FaultyDevice(f"step {step}: {reason}, and computed twice it gave different numbers ({who}): take it out")
                self._accept()
                return
        self.skipped, self.in_row = self.skipped + 1, self.in_row + 1
        if reason.startswith(SPIKE):
            self._remember()
        self._log(step, reason, batches, told)

    def _accept(self) -> None:
        """This step was taken."""
        self.in_row = 0
        self._remember()

    def _remember(self) -> None:
        """The step is one of those that later ones are held against."""
        values = torch.stack([self._loss, self._norm])
        self._history = remember(self._history, values, self.config.spike_sigma, self.config.spike_window)

    def wants_to_go_back(self, saver: Saver) -> bool:
        """Whether to rewind; where the run goes back to is saved.

        Raises:
            RuntimeError: so many steps were skipped that the run had better end.
        """
        many, run, step = self.config.rewind_after, self.session.config.run, self.session.position.step
        if self.in_row < (many or run.max_skipped_steps):
            return False
        saver.finish()
        if saver.last_sealed != self._went_to:
            self.rewinds = 0
        if many and saver.last_sealed is not None and self.rewinds < self.config.max_rewinds:
            self.rewinds += 1
            return True
        if self.in_row < run.max_skipped_steps and not (many and self.rewinds):
            return False
        raise RuntimeError(
            f"{self.in_row} steps in a row to step {step} were skipped for gradients that are not finite or spikes"
            + (f", after {self.rewinds} rewinds" if self.rewinds else "")
            + f": lower optim.lr or look at the data of these steps ({self.file})"
        )

    def go_back(self, state: dict[str, Any]) -> None:
        """The session is back at a checkpoint, of whose seal this is the content."""
        position = self.session.position
        self._restore(state)
        self._went_to = position.step
        self.runtime.say(
            f"went back to step {position.step}; from now on the data are {position.passed_over} steps further than the steps"
        )

    def before_step(self, told: Sequence[dict[str, torch.Tensor]]) -> None:
        """Between the last backward pass of a step and the engine's `step`.

        Args:
            told: what the model said of each micro-batch of this rank.
        """
        own = torch.stack([report["loss"].detach().float() for report in told]).mean()
        # of this rank alone, before gradients are added up over ranks: what a faulty device computed shows here, and only here
        self._own = torch.stack([own, torch.linalg.vector_norm(torch.stack(self._own_norms)) if self._own_norms else self._zero])
        self._own_norms.clear()
        self._loss = self.runtime.mean(own.clone())
        self._bad, self._norm = self._zero, None
        if self.engine.zero_optimization_stage() == 0:
            # the engine clips before its optimizer is called, and nobody else looks whether gradients are finite
            gradients = [p.grad for p in self.engine.module.parameters() if p.grad is not None]
            self._norm = torch.nn.utils.get_total_norm(gradients).float()

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Called by the optimizer, under ZeRO once for each of its groups."""
        if self._norm is None:
            norm = self.engine.optimizer._global_grad_norm  # of all ranks, before clipping
            self._norm = torch.as_tensor(norm, dtype=torch.float32, device=self.runtime.device)
        self._bad = self._judge()
        if not self._on_host:
            optimizer.found_inf = self._bad
        elif self._bad:
            for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                self._held_back.append((parameter, parameter.grad))
                parameter.grad = None  # of which it takes no notice

    def _after_update(self, *_: Any) -> None:
        """DeepSpeed finds its gradient buffers where it had put them."""
        for parameter, gradient in self._held_back:
            parameter.grad = gradient
        self._held_back.clear()

    def _judge(self) -> torch.Tensor:
        """1.0 for a step that must not be taken, on the device."""
        values = torch.stack([self._loss, self._norm])
        bad = ~torch.isfinite(values).all() | (self._norm == 0)
        if self._hold:
            bad = torch.ones_like(bad)
        return (bad | (values > most(self._history, self.config.spike_sigma, self.config.spike_window)).any()).float()

    def _outcome(self) -> str:
        """Why this step was skipped, "" if it was not. Reading waits for the device, as DeepSpeed's own step has just done."""
        if self._norm is None:  # DeepSpeed found it first: it never called its optimizer
            return "not finite: the gradient"
        if not self._bad.item():
            return ""
        loss, norm = self._loss.item(), self._norm.item()
        if norm == 0:
            raise RuntimeError(
                "the gradient is exactly zero: nothing would be learned; a part of the model does not take part in the loss, or "
                "the sharding policy keeps gradients from the optimizer"
            )
        if not (loss - loss == 0 and norm - norm == 0):
            return f"not finite: loss {loss}, gradient norm {norm}"
        deviation, mean = (part.tolist() for part in torch.std_mean(self._history, dim=1))
        return (
            f"{SPIKE}: loss {loss:.4g} (of late {mean[0]:.4g} +- {deviation[0]:.2g}), gradient norm {norm:.4g} "
            f"({mean[1]:.4g} +- {deviation[1]:.2g})"
        )

    def _told(self) -> tuple[list[float], list[float]]:
        """(what this rank computed alone, what all ranks computed together) in this attempt."""
        norm = math.inf if self._norm is None else self._norm.item()
        return self._own.tolist(), [self._loss.item(), norm]

    def _log(self, step: int, reason: str, batches: Sequence[Batch], told: tuple[list[float], list[float]]) -> None:
        keys = [int(key) for batch in batches for key in batch.key_B.tolist()]
        everywhere = self.runtime.gather({"loss": told[0][0], "keys": keys})
        self.runtime.say(f"step {step} skipped: {reason}; its samples are in {self.file}")
        if self.runtime.leads:
            try:
                with open(self.file, "a") as file:
                    file.write(json.dumps({"step": step, "reason": reason, "ranks": everywhere}) + "\n")
            except OSError as error:
                self.runtime.say(f"{self.file}: {error}")


def _difference(first: list[float], second: list[float]) -> float:
    """The largest relative difference; infinite where one of two numbers is not finite, none where both are not."""

    def between(a: float, b: float) -> float:
        if math.isfinite(a) and math.isfinite(b):
            return abs(a - b) / max(abs(a), abs(b)) if a != b else 0.0
        return 0.0 if math.isfinite(a) == math.isfinite(b) else math.inf

    return max(between(a, b) for a, b in zip(first, second, strict=True))

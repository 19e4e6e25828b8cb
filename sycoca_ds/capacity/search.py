"""Configurations of one run on one machine: each with its memory and speed, the largest micro-batch, the fastest that fits."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.capacity.machines import Machine
from sycoca_ds.capacity.memory import Peak, peak
from sycoca_ds.capacity.pieces import Checkpointing
from sycoca_ds.capacity.saves import Saves, saves
from sycoca_ds.capacity.speed import Speed, speed
from sycoca_ds.capacity.states import Sharding
from sycoca_ds.capacity.step import Step
from sycoca_ds.config import LossConfig, ModelConfig, TrainConfig
from sycoca_ds.engine.batches import BatchPlan, plan_batches
from sycoca_ds.engine.recompute import read_recompute

MOST = 1 << 16
"""No micro-batch above this is looked for."""
EQUALLY_FAST = 0.998
"""What differs by less than this is no difference: the assumptions are coarser by far."""
PARTS = ("image encoder", "text encoder", "text decoder", "image decoder")
EVERY = (0, 2, 1)
"""What the search tries for each part: nothing recomputed, every second layer, all."""


def word(every: int) -> str:
    return {0: "none", 1: "full"}.get(every, f"every_{every}")


@dataclass(frozen=True)
class Choice:
    """Activation checkpointing of each part, `every` in the order of PARTS; parts that a model lacks do not matter."""

    every: tuple[int, ...]

    @staticmethod
    def of(text: str) -> Choice:
        """Reads `run.activation_checkpointing`. Raises `UserError`."""
        found = read_recompute(text)
        return Choice(tuple(found[part.replace(" ", "_")] for part in PARTS))

    @property
    def by_part(self) -> Checkpointing:
        return dict(zip(PARTS, self.every, strict=True))

    def __str__(self) -> str:
        """As `run.activation_checkpointing` has it."""
        if len(set(self.every)) == 1:
            return word(self.every[0])
        return ",".join(f"{part.replace(' ', '_')}={word(k)}" for part, k in self.by_part.items() if k)


NONE, FULL = Choice((0,) * 4), Choice((1,) * 4)


@dataclass(frozen=True)
class Configuration:
    """One way to train the run; everything about it is computed when it is asked for."""

    name: str
    """Of its policy."""
    policy: Mapping[str, Any] = dataclasses.field(hash=False)
    checkpointing: Choice
    sharding: Sharding
    batches: BatchPlan
    model: ModelConfig
    machine: Machine
    workers: int
    ema: bool = False
    loss: LossConfig = LossConfig()

    @cached_property
    def step(self) -> Step:
        return Step(
            self.model,
            self.sharding,
            self.batches,
            self.checkpointing.by_part,
            cpu=self.machine.gpu.cpu,
            framework=self.machine.framework,
            caption_tokens=self.machine.assume.caption_tokens,
            ema=self.ema,
            loss=self.loss,
        )

    @cached_property
    def peak(self) -> Peak:
        return peak(self.step)

    @cached_property
    def speed(self) -> Speed:
        return speed(self.step, self.machine, self.workers)

    @cached_property
    def saves(self) -> Saves:
        return saves(self.step, self.machine, self.peak)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.machine.usable

    def with_micro_batch(self, size: int) -> Configuration:
        """The same in one micro-batch of another size, so of another global batch."""
        world = self.batches.world_size
        return replace(self, batches=BatchPlan(size * world, size, 1, world))

    def largest_micro_batch(self) -> int:
        """The largest that fits without accumulation; 0 if not even one sample does."""
        one, nine = (self.with_micro_batch(size).peak.total for size in (1, 9))
        if one > self.machine.usable:
            return 0
        guess = 1 + int(8 * (self.machine.usable - one) / max(1, nine - one))  # nearly a straight line
        fitting, above, stride = 1, MOST, 1
        at = min(guess, MOST - 1)
        while at > fitting and not self.with_micro_batch(at).fits:
            above, at, stride = at, at - stride, 4 * stride
        fitting = max(fitting, at)
        while fitting + stride < above and self.with_micro_batch(fitting + stride).fits:
            fitting, stride = fitting + stride, 4 * stride
        above = min(above, fitting + stride)
        while above - fitting > 1:
            middle = (fitting + above) // 2
            fitting, above = (middle, above) if self.with_micro_batch(middle).fits else (fitting, middle)
        return fitting


def precision_of(config: TrainConfig, stage: int) -> str:
    """bf16 or fp32; "auto" is bf16 but without ZeRO (`engine.preparation.settle`)."""
    if config.run.precision != "auto":
        return config.run.precision
    return "bf16" if stage > 0 else "fp32"


@dataclass(frozen=True)
class Search:
    """The run, the machine, and the policies to choose from: name -> content of the file."""

    config: TrainConfig
    machine: Machine
    policies: Mapping[str, Mapping[str, Any]]

    def configuration(
        self, name: str, checkpointing: Choice, accumulation_steps: int, precision: str | None = None
    ) -> Configuration:
        """One of them.

        Raises:
            UserError: the numbers do not divide, or the policy is none that can be planned.
        """
        stage = self.policies[name].get("zero_optimization", {}).get("stage", 0)
        config = replace(self.config, optim=replace(self.config.optim, accumulation_steps=accumulation_steps))
        return Configuration(
            name,
            self.policies[name],
            checkpointing,
            Sharding.of(self.policies[name], precision or precision_of(config, stage), name),
            plan_batches(config, self.machine.gpus),
            config.model,
            self.machine,
            config.data.workers,
            config.optim.ema_decay is not None,
            config.loss,
        )

    def asked(self) -> Configuration:
        """What the configuration says."""
        run = self.config.run
        return self.configuration(run.ds_config, Choice.of(run.activation_checkpointing), self.config.optim.accumulation_steps)

    def table(self) -> Iterator[Configuration]:
        """Every policy without and with checkpointing, and as it is asked for, in the batches that are asked for."""
        choices = dict.fromkeys((NONE, self.asked().checkpointing, FULL))
        for name, policy in self.policies.items():
            fp32 = policy.get("zero_optimization", {}).get("stage", 0) == 0
            for choice in choices:
                yield self.configuration(name, choice, self.config.optim.accumulation_steps, "fp32" if fp32 else None)

    def choices(self) -> list[Choice]:
        """All that are tried, the fewest operations first: those of a part that the model lacks would be others' twins."""
        model = self.config.model
        there = (True, True, model.captions, model.reconstructs)
        found = [Choice(every) for every in itertools.product(*(EVERY if part else (0,) for part in there))]
        found = [FULL if all(k == 1 for k, part in zip(one.every, there, strict=True) if part) else one for one in found]
        name = next(iter(self.policies))
        return sorted(found, key=lambda one: self.configuration(name, one, 1, "fp32").speed.hardware_flops)

    def fastest(self) -> Configuration | None:
        """The one with most samples a second among those that fit; None if none does.

        Of equally fast ones the one with the largest micro-batch, since small products are slow in a way that no formula here says;
        then the one that needs least memory. A run's precision stays: fp32 is never exchanged for bf16.
        """
        own, choices, found = self.config.optim.global_batch_size // self.machine.gpus, self.choices(), []
        precision, best = self.asked().sharding.precision, 0.0
        for steps in (k for k in range(1, own + 1) if own % k == 0):
            for name, policy in self.policies.items():
                if precision == "bf16" and policy.get("zero_optimization", {}).get("stage", 0) == 0:
                    continue
                if not self.configuration(name, FULL, steps, precision).fits:
                    continue
                for choice in choices:
                    one = self.configuration(name, choice, steps, precision)
                    if one.speed.samples_per_second < EQUALLY_FAST * best:
                        break
                    if one.fits:
                        found.append(one)
                        best = max(best, one.speed.samples_per_second)
        close = [one for one in found if one.speed.samples_per_second >= EQUALLY_FAST * best]
        return min(close, key=lambda one: (one.batches.accumulation_steps, one.peak.total), default=None)


def lanes_for(config: TrainConfig, gpus: int) -> TrainConfig:
    """The configuration with `data.lanes` that suit so many GPUs, its own if they do.

    Raises:
        UserError: the global batch does not divide over them.
    """
    batch, lanes = config.optim.global_batch_size, config.data.lanes
    if lanes % gpus == 0 and batch % lanes == 0:
        return config
    fitting = [n for n in range(gpus, batch + 1, gpus) if batch % n == 0]
    if not fitting:
        raise UserError(f"optim.global-batch-size = {batch} does not divide over {gpus} GPUs: choose a multiple")
    nearest = min(fitting, key=lambda n: abs(n - lanes))
    return replace(config, data=replace(config.data, lanes=nearest))

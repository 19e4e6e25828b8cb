"""Configurations of one run on one machine: each with its memory and speed, the largest micro-batch, the fastest that fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.capacity.machines import Machine
from sycoca_ds.capacity.memory import Peak, Step, peak
from sycoca_ds.capacity.pieces import Checkpointing
from sycoca_ds.capacity.saves import Saves, saves
from sycoca_ds.capacity.speed import Speed, speed
from sycoca_ds.capacity.states import Sharding
from sycoca_ds.config import BatchPlan, ModelConfig, TrainConfig, plan_batches

MOST = 1 << 16
"""No micro-batch above this is looked for."""
EQUALLY_FAST = 0.998
"""What differs by less than this is no difference: the assumptions are coarser by far."""
PARTS = ("image encoder", "text encoder", "text decoder", "image decoder")
CHOICES: dict[str, Checkpointing] = {"none": {}, "full": dict.fromkeys(PARTS, 1)}
"""What a run can be told: activation checkpointing of all blocks or of none."""


@dataclass(frozen=True)
class Configuration:
    """One way to train the run; everything about it is computed when it is asked for."""

    name: str
    """Of its policy."""
    policy: Mapping[str, Any] = dataclasses.field(hash=False)
    checkpointing: str
    sharding: Sharding
    batches: BatchPlan
    model: ModelConfig
    machine: Machine
    workers: int

    @cached_property
    def step(self) -> Step:
        labels = self.machine.assume.caption_tokens
        return Step(
            self.model,
            self.sharding,
            self.batches,
            CHOICES[self.checkpointing],
            cpu=self.machine.gpu.cpu,
            framework=self.machine.framework,
            labels=None if labels is None else labels - 1,
        )

    @cached_property
    def peak(self) -> Peak:
        return peak(self.step)

    @cached_property
    def speed(self) -> Speed:
        return speed(self.step, self.machine, self.workers)

    @cached_property
    def saves(self) -> Saves:
        return saves(self.step, self.machine)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.machine.usable

    def with_micro_batch(self, size: int) -> Configuration:
        """The same in one micro-batch of another size, so of another global batch."""
        world = self.batches.world_size
        return replace(self, batches=BatchPlan(size * world, size, 1, world))

    def largest_micro_batch(self) -> int:
        """The largest that fits without accumulation; 0 if not even one sample does."""
        fitting, above = 0, 1
        while above <= MOST and self.with_micro_batch(above).fits:
            fitting, above = above, 2 * above
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

    def configuration(self, name: str, checkpointing: str, accumulation_steps: int, precision: str | None = None) -> Configuration:
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
        )

    def asked(self) -> Configuration:
        """What the configuration says."""
        run = self.config.run
        choice = "full" if run.activation_checkpointing else "none"
        return self.configuration(run.ds_config, choice, self.config.optim.accumulation_steps)

    def table(self) -> Iterator[Configuration]:
        """Every policy with every choice of checkpointing, in the batches that are asked for."""
        for name, policy in self.policies.items():
            fp32 = policy.get("zero_optimization", {}).get("stage", 0) == 0
            for choice in CHOICES:
                yield self.configuration(name, choice, self.config.optim.accumulation_steps, "fp32" if fp32 else None)

    def fastest(self) -> Configuration | None:
        """The one with most samples a second among those that fit; None if none does.

        Of equally fast ones the one with the largest micro-batch, since small products are slow in a way that no formula here says;
        then the one that needs least memory. A run's precision stays: fp32 is never exchanged for bf16.
        """
        own, found = self.config.optim.global_batch_size // self.machine.gpus, []
        precision = self.asked().sharding.precision
        for name, policy in self.policies.items():
            if precision == "bf16" and policy.get("zero_optimization", {}).get("stage", 0) == 0:
                continue
            for choice in CHOICES:
                for steps in (k for k in range(1, own + 1) if own % k == 0):
                    found.append(self.configuration(name, choice, steps, precision))
        found.sort(key=lambda one: -one.speed.samples_per_second)
        first = next((one for one in found if one.fits), None)
        if first is None:
            return None
        slowest = EQUALLY_FAST * first.speed.samples_per_second
        close = [one for one in found if one.speed.samples_per_second >= slowest and one.fits]
        return min(close, key=lambda one: (one.batches.accumulation_steps, one.peak.total))


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

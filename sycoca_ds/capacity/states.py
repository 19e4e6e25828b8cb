"""What a DeepSpeed 0.19.8 policy keeps on one rank: weights, gradients, AdamW's state, buckets. In bytes, read off its source and
held against the tensors of real engines by a test (`tests/sycoca_ds/capacity/test_engines.py`).

P weights, N ranks, p = P / N rounded up as each stage pads. ZeRO (Rajbhandari et al., 2020) needs 16 P bytes in bf16 with AdamW and
cuts its parts by N; what DeepSpeed really holds is more:

    0, float32 only: weights 4 P, gradients 4 P, moments 8 P
    1, bf16: weights 2 P, float32 gradients of everything 4 P, master and moments 12 p; bf16 gradients 2 P in the backward pass
    2, bf16: weights 2 P, master and moments 12 p; float32 gradients 4 p from the backward pass to the update
    3, bf16: weights 2 p, gradients 4 p, master and moments 12 p, and a bucket that stays
    in float32: 4 bytes a weight instead of 2, and a master copy all the same; no sum of gradients of its own at stage 1
    a moving average of the weights: 4 p more, beside the master weights
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.capacity.parameters import Shape

BYTES = {"fp32": 4, "bf16": 2}
NOT_MODELLED: dict[str, Any] = {
    "offload_param": {"device": "none"},
    "zero_hpz_partition_size": 1,
    "zero_quantized_weights": False,
    "zero_quantized_gradients": False,
    "zenflow": None,
}
"""Keys of zero_optimization whose memory is not modelled here, with the value that turns each off."""
REDUCED_AT_ONCE = 500_000_000
"""Gradients that DeepSpeed flattens together without ZeRO and at bf16's stage 1 (MEMORY_OPT_ALLREDUCE_SIZE)."""


@dataclass(frozen=True)
class Sharding:
    """A policy file in numbers; defaults are DeepSpeed's."""

    stage: int
    precision: str
    """bf16 or fp32, of weights and activations."""
    offload: bool = False
    """AdamW's state and the gradients in host memory."""
    reduce_bytes: int = 4
    """Of a gradient while it is reduced (communication_data_type)."""
    reduce_bucket: int = 500_000_000
    """Gradients reduced together, in numbers."""
    overlap: bool = False
    """Reducing beside the backward pass: two buckets at stages 1 and 2."""
    contiguous: bool = True
    sub_group: int = 1_000_000_000
    """Weights that stage 3 updates together."""
    prefetch: int = 50_000_000
    """Weights that stage 3 gathers ahead."""
    reuse_distance: int = 1_000_000_000
    """A gathered weight that is used again before so many others is kept."""
    persistence: int = 100_000
    """Weights of at most so many numbers stay whole on every rank."""

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.precision]

    @staticmethod
    def of(policy: Mapping[str, Any], precision: str, where: str) -> Sharding:
        """Reads a policy as `engine.policy` would hand it to DeepSpeed.

        Raises:
            UserError: a key whose memory is not modelled here, or bf16 without ZeRO.
        """
        zero = policy.get("zero_optimization", {})
        stage = zero.get("stage", 0)
        for name, off in NOT_MODELLED.items():
            if zero.get(name, off) != off:
                raise UserError(f"{where}: zero_optimization.{name} is not modelled by the planner: leave it out to see a plan")
        offload = zero.get("offload_optimizer", {}).get("device", "none")
        if offload not in ("none", "cpu") or (offload == "cpu" and stage != 3):
            raise UserError(f"{where}: zero_optimization.offload_optimizer is modelled for stage 3 and device cpu alone")
        if precision == "bf16" and stage == 0:
            raise UserError(
                f"{where} is ZeRO stage 0, where DeepSpeed keeps no float32 weights: choose stage 1, or --run.precision fp32"
            )
        if policy.get("data_types", {}).get("grad_accum_dtype") != "fp32" and precision == "bf16":
            raise UserError(f"{where}: the planner models data_types.grad_accum_dtype fp32 alone, as the shipped policies have it")
        reduced = policy.get("communication_data_type") or precision
        given = {
            field: int(float(zero[key]))
            for field, key in (
                ("reduce_bucket", "reduce_bucket_size"),
                ("sub_group", "sub_group_size"),
                ("prefetch", "stage3_prefetch_bucket_size"),
                ("reuse_distance", "stage3_max_reuse_distance"),
                ("persistence", "stage3_param_persistence_threshold"),
            )
            if isinstance(zero.get(key), (int, float))
        }
        return Sharding(
            stage=stage,
            precision=precision,
            offload=offload == "cpu",
            reduce_bytes=BYTES[reduced],
            overlap=bool(zero.get("overlap_comm", stage == 3)),
            contiguous=bool(zero.get("contiguous_gradients", True)),
            **given,
        )


@dataclass(frozen=True)
class States:
    """Bytes of one rank by line of the report, between two steps. Host bytes are those of offloading."""

    weights: int
    gradients: int
    optimizer: int
    buckets: int
    host: int = 0


@dataclass(frozen=True)
class Engine:
    """A model's weights under a policy on so many ranks. `build_optimizer` makes two groups of them, matrices and the rest."""

    shapes: tuple[Shape, ...]
    sharding: Sharding
    ranks: int
    ema: bool = False
    """Whether a moving average of the weights is kept (`optim.ema_decay`)."""
    cpu: bool = False
    """Whether its memory is a host's, where a bucket's untouched pages cost nothing."""

    @cached_property
    def groups(self) -> list[list[int]]:
        """Numbers of each tensor, matrices first."""
        matrices = [math.prod(s) for s in self.shapes if len(s) >= 2]
        return [group for group in (matrices, [math.prod(s) for s in self.shapes if len(s) < 2]) if group]

    @cached_property
    def total(self) -> int:
        """P, without padding."""
        return sum(map(sum, self.groups))

    @cached_property
    def parts(self) -> list[int]:
        """p of each group: stages 1 and 2 pad a group to twice the ranks, stage 3 cuts every tensor for itself, 0 none."""
        if self.sharding.stage == 0:
            return [sum(group) for group in self.groups]
        if self.sharding.stage == 3:
            return [sum(-(-size // self.ranks) for size in group) for group in self.groups]
        return [-(-sum(group) // (2 * self.ranks)) * 2 for group in self.groups]

    @cached_property
    def part(self) -> int:
        """p."""
        return sum(self.parts)

    @property
    def padded(self) -> int:
        """P as stages 1 and 2 hold it."""
        return self.ranks * self.part

    @cached_property
    def persistent(self) -> list[int]:
        """Numbers of the tensors that stage 3 keeps whole."""
        return [size for group in self.groups for size in group if size <= self.sharding.persistence]

    def room(self, buckets: int) -> int:
        """Numbers that so many buckets take which are made before anything is in them."""
        made = buckets * self.sharding.reduce_bucket
        return min(made, self.total) if self.cpu else made

    def at_rest(self) -> States:
        """What is held between two steps, after the first one."""
        sharding, p, w, ema = self.sharding, self.part, self.sharding.weight_bytes, 4 * self.ema
        if sharding.stage == 0:
            return States(weights=4 * p, gradients=0, optimizer=(8 + ema) * p, buckets=0)
        if sharding.stage in (1, 2):
            gradients = 4 * self.padded if sharding.stage == 1 and w == 2 else 0
            return States(weights=w * self.padded, gradients=gradients, optimizer=(12 + ema) * p, buckets=0)
        bucket = sharding.reduce_bytes * self.room(1) if sharding.contiguous else 0
        bucket += w * sum(self.persistent) if self.ranks > 1 else 0
        if sharding.offload:  # twice the gradients: as they accumulate, and as the update reads them
            return States(weights=w * p, gradients=0, optimizer=0, buckets=bucket, host=(20 + ema) * p)
        return States(weights=w * p, gradients=4 * p, optimizer=(12 + ema) * p, buckets=bucket)

    def in_backward(self, done: int, pending: int, micro_batch: int) -> tuple[int, int]:
        """(gradients, buckets) on top of what is at rest, in the middle of a backward pass.

        Args:
            done: weights whose gradient is complete; pending: weights whose gradient still waits for an earlier use of them.
            micro_batch: its number within the step.
        """
        sharding, p, w, whole, later = self.sharding, self.part, self.sharding.weight_bytes, self.total, micro_batch > 0
        bucket = min(sharding.reduce_bucket, whole) if done else 0
        if sharding.stage == 0 or (sharding.stage == 1 and w == 2):
            return w * (whole if later else done + pending), 0
        if sharding.stage == 3:  # a bucket is put together anew, rank by rank, before it is reduced
            return w * pending, sharding.reduce_bytes * bucket
        buffers = w * self.room(1 + sharding.overlap) if sharding.contiguous else 0
        buffers += w * bucket + (sharding.reduce_bytes * bucket if sharding.reduce_bytes != w else 0)
        if w == 2:  # stage 2
            return w * pending + 4 * p, buffers
        own = 4 * p if done or later else 0  # float32: copies of the own part
        if sharding.stage == 1:
            return own + w * (whole if later else pending), buffers
        return own + (own if later else 0) + w * pending, buffers

    def in_update(self) -> tuple[int, int]:
        """(gradients, buckets) on top of what is at rest, at the highest moment of reducing and updating."""
        sharding, p, w = self.sharding, self.part, self.sharding.weight_bytes
        if sharding.stage == 0:
            return 4 * self.total, 4 * min(self.total, REDUCED_AT_ONCE + max(map(max, self.groups)))
        if sharding.stage == 1 and w == 2:  # groups' gradients are flat already: only what is reduced together is copied
            alone = sum(self.groups[0]) > REDUCED_AT_ONCE or len(self.groups) == 1
            return 2 * self.total, 0 if alone else 4 * self.total
        if sharding.stage in (1, 2):
            return (4 * p, 0) if w == 2 else (4 * p + 4 * max(self.parts), 0)
        return (0, 0) if sharding.offload else (4 * min(max(self.parts), sharding.sub_group), 0)

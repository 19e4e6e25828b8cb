"""Bytes that a step's collectives carry, by stage, as DeepSpeed 0.19.8 issues them; held against its comms_logger by a test.

What its documentation calls reduce-scatter is, at stages 1 and 2, an all-reduce of whole buckets, twice the bytes on the wire
(`use_multi_rank_bucket_allreduce`). Stage 3 really scatters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sycoca_ds.capacity.gathering import gathers
from sycoca_ds.capacity.parameters import numel, parts
from sycoca_ds.capacity.states import REDUCED_AT_ONCE
from sycoca_ds.capacity.step import Step

FEATURES = 4
"""Bytes of a feature in the contrast's gathers, float32."""


@dataclass(frozen=True)
class Traffic:
    """One kind of collective in a step."""

    what: str
    operation: str
    """all_reduce, all_gather or reduce_scatter."""
    bytes: int
    """Of the whole tensor, over the step: what an all-gather gives, what a reduction takes."""
    launches: int
    overlaps: bool
    """Whether DeepSpeed runs it beside computation."""

    def wire(self, ranks: int) -> float:
        """Bytes that each rank sends (and receives), by ring algorithms: (N - 1) / N of the tensor, an all-reduce twice that."""
        return self.bytes * (ranks - 1) / ranks * (2 if self.operation == "all_reduce" else 1)


def _by_stage(step: Step) -> Iterator[Traffic]:
    engine, sharding, k = step.engine, step.sharding, step.batches.accumulation_steps
    w, reduced, ranks = sharding.weight_bytes, sharding.reduce_bytes, engine.ranks
    if sharding.stage == 0:
        yield Traffic("gradients", "all_reduce", reduced * engine.total, math.ceil(engine.total / REDUCED_AT_ONCE), False)
    elif sharding.stage == 1 and w == 2:  # float32 sums of all micro-batches, after the last backward pass
        yield Traffic("gradients", "all_reduce", reduced * engine.padded, math.ceil(engine.total / REDUCED_AT_ONCE), False)
    elif sharding.stage in (1, 2):
        times = k if sharding.stage == 2 else 1
        launches = times * math.ceil(engine.total / sharding.reduce_bucket)
        yield Traffic("gradients", "all_reduce", times * reduced * engine.total, launches, sharding.overlap)
    if sharding.stage in (1, 2):
        yield Traffic("updated weights", "all_gather", w * engine.padded, len(engine.groups), False)
    if sharding.stage == 3:
        cut = 1 - sum(engine.persistent) / engine.total
        numbers = k * gathers(step.pieces, sharding, traced=k == 1).gathered
        if k > 1:  # both encoders without gradient, and what is fetched ahead for the order of another call
            once = sum(numel(part.shapes()) for name, part in parts(step.model).items() if "encoder" in name)
            kept = sharding.reuse_distance >= 2 * engine.total  # within a call, measured
            numbers = k * (engine.total + once) if kept else numbers + k * once + engine.total
        launches = 2 * k * len(step.pieces) if cut else 0  # one a block, each way; fetched ahead, several at once
        if k == 1 and sharding.prefetch:
            launches = min(launches, math.ceil(numbers * cut / sharding.prefetch))
        yield Traffic("weights", "all_gather", round(w * numbers * cut), launches, True)
        launches = k * math.ceil(engine.total / sharding.reduce_bucket)
        yield Traffic("gradients", "reduce_scatter", k * reduced * ranks * engine.part, launches, sharding.overlap)
        if engine.persistent:
            whole = sum(-(-n // ranks) * ranks for n in engine.persistent)
            yield Traffic("small weights", "all_gather", w * whole, 1, False)  # engine/zero3/upkeep.py


def traffic(step: Step) -> list[Traffic]:
    """Everything that one optimizer step sends; nothing on one rank."""
    if step.batches.world_size == 1:
        return []
    pairs = 2 * FEATURES * step.batches.global_batch_size * step.model.embed_dim
    features = Traffic("features", "all_gather", pairs, 2, False)
    return [*_by_stage(step), features, Traffic("features' gradients", "reduce_scatter", pairs, 2, False)]

"""The arithmetic of one optimizer step: how the global batch is cut over ranks and micro-batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from data_pipeline.errors import UserError
from sycoca_ds.config import TrainConfig


@dataclass(frozen=True)
class BatchPlan:
    """The arithmetic of one step: global = micro * accumulation * world."""

    global_batch_size: int
    micro_batch_size: int
    accumulation_steps: int
    world_size: int


def plan_batches(config: TrainConfig, world_size: int) -> BatchPlan:
    """Cuts the global batch over ranks and micro-batches.

    Raises:
        UserError: the numbers do not divide.
    """
    optim = config.optim
    if optim.global_batch_size < 1 or optim.accumulation_steps < 1:
        raise UserError(
            f"optim.global-batch-size = {optim.global_batch_size}, optim.accumulation-steps = "
            f"{optim.accumulation_steps}: expected both to be at least 1"
        )
    pieces = world_size * optim.accumulation_steps
    if optim.global_batch_size % pieces:
        raise UserError(
            f"optim.global-batch-size = {optim.global_batch_size} does not divide over {world_size} ranks x "
            f"optim.accumulation-steps = {optim.accumulation_steps}: choose a multiple of {pieces}"
        )
    lanes = config.data.lanes
    if lanes < 1 or lanes % world_size or optim.global_batch_size % lanes:
        fitting = [n for n in range(world_size, optim.global_batch_size + 1, world_size) if optim.global_batch_size % n == 0]
        near = sorted(sorted(fitting, key=lambda n: abs(math.log(n / max(1, lanes))))[:4])
        raise UserError(
            f"data.lanes = {lanes}: expected a multiple of the world size ({world_size}) that divides "
            f"optim.global-batch-size ({optim.global_batch_size}): choose among {', '.join(map(str, near))}"
        )
    return BatchPlan(optim.global_batch_size, optim.global_batch_size // pieces, optim.accumulation_steps, world_size)

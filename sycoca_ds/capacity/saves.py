"""Size of a checkpoint, whether a copy of it fits beside the run, and how often to save: the interval that loses least (Young,
1974; Daly, 2006, equation 37)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sycoca_ds.capacity.machines import GIB, Machine
from sycoca_ds.capacity.memory import Peak
from sycoca_ds.capacity.step import Step
from sycoca_ds.engine.ranks.host_memory import SPARE_MEMORY


def part_of_a_rank(step: Step) -> tuple[int, int]:
    """Bytes that (every rank, rank 0 on top of that) gives to a checkpoint: float32 weights, AdamW's two moments and the moving
    average, divided; the weights as they compute, below stage 3 all of them once. Without ZeRO rank 0 writes everything."""
    engine, w = step.engine, step.sharding.weight_bytes
    average = 4 * engine.total * engine.ema
    if step.sharding.stage == 0:
        return 0, 12 * engine.total + average
    each = 12 * engine.part + average // engine.ranks
    return each, w * engine.total if step.sharding.stage < 3 else 0


def checkpoint_bytes(step: Step) -> int:
    """What all ranks write."""
    each, first = part_of_a_rank(step)
    return step.engine.ranks * each + first


@dataclass(frozen=True)
class Saves:
    """How saving and failing cost time."""

    bytes: int
    copy: int
    """Bytes of it that the machine with rank 0 keeps in its memory while they are written."""
    copied: bool
    """Whether there is room for that; otherwise the training stands still until all is written."""
    seconds: float
    """For which a save stops the training."""
    mttf: float
    """Seconds between failures of the whole job."""
    interval: float
    """Seconds of training between two saves that lose least."""
    restart: float
    """Seconds from a failure to the first step after it."""

    def lost(self, interval: float) -> float:
        """Share of the time that goes to saves, repeated steps and restarts, to first order."""
        saving = self.seconds / (interval + self.seconds) if self.seconds else 0.0
        return min(1.0, saving + ((interval + self.seconds) / 2 + self.restart) / self.mttf)


def daly(save: float, mttf: float) -> float:
    """Seconds of work between saves of `save` seconds each; a save longer than two times `mttf` is none: then `mttf`.

    Daly's higher-order estimate; its first term is Young's sqrt(2 save mttf).
    """
    if save >= 2 * mttf:
        return mttf
    ratio = save / (2 * mttf)
    return math.sqrt(2 * save * mttf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def saves(step: Step, machine: Machine, highest: Peak) -> Saves:
    """Of that run on that machine; `highest` is what it needs otherwise."""
    assume, ranks, (each, first) = machine.assume, machine.gpus_per_node, part_of_a_rank(step)
    copy = ranks * each + first
    if machine.gpu.cpu:
        free = ranks * (machine.gpu.memory_gib * GIB - highest.total)
    else:
        free = math.inf if assume.host_gib is None else assume.host_gib * GIB - ranks * highest.host
    copied = copy + SPARE_MEMORY <= free
    seconds = (each + first) / (1e9 * (assume.save_gbytes if copied else assume.write_gbytes))
    seconds = seconds if assume.save_seconds is None else assume.save_seconds
    mttf, size = assume.node_mttf_days * 86400 / machine.nodes, checkpoint_bytes(step)
    return Saves(
        size, copy, copied, seconds, mttf, daly(seconds, mttf) if seconds > 0 else 0.0, restart=60 * assume.restart_minutes
    )

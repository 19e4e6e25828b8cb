"""Size of a checkpoint, and how often to save: the interval that loses least (Young, 1974; Daly, 2006, equation 37)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sycoca_ds.capacity.machines import Machine
from sycoca_ds.capacity.step import Step


def checkpoint_bytes(step: Step) -> int:
    """What DeepSpeed writes: float32 weights and AdamW's two moments, of all ranks; below stage 3 also the weights as they compute,
    once (without ZeRO these are the float32 ones). And the moving average of the weights, once."""
    engine, w = step.engine, step.sharding.weight_bytes
    average = 4 * engine.total * engine.ema
    if step.sharding.stage == 0:
        return 12 * engine.total + average
    held = 12 * engine.ranks * engine.part + average
    return held + (w * engine.total if step.sharding.stage < 3 else w * engine.ranks * sum(engine.persistent))


@dataclass(frozen=True)
class Saves:
    """How saving and failing cost time."""

    bytes: int
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
        return min(1.0, self.seconds / (interval + self.seconds) + ((interval + self.seconds) / 2 + self.restart) / self.mttf)


def daly(save: float, mttf: float) -> float:
    """Seconds of work between saves of `save` seconds each; a save longer than two times `mttf` is none: then `mttf`.

    Daly's higher-order estimate; its first term is Young's sqrt(2 save mttf).
    """
    if save >= 2 * mttf:
        return mttf
    ratio = save / (2 * mttf)
    return math.sqrt(2 * save * mttf) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def saves(step: Step, machine: Machine) -> Saves:
    """Of that run on that machine."""
    assume, size = machine.assume, checkpoint_bytes(step)
    seconds = size / (machine.gpus * assume.save_gbytes * 1e9) if assume.save_seconds is None else assume.save_seconds
    mttf = assume.node_mttf_days * 86400 / machine.nodes
    return Saves(size, seconds, mttf, daly(seconds, mttf) if seconds > 0 else 0.0, 60 * assume.restart_minutes)

"""Learning rate as a pure function of the step: nothing to save, nothing that can drift on a skipped step."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, warmup_steps: int, steps: int) -> float:
    """Linear warm-up to `peak`, then cosine decay to zero at `steps` (the paper's schedule; open_clip's `cosine_lr`).

    Args:
        step: 0 for the first optimizer step, which already has 1 / warmup_steps of the peak.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return 0.5 * peak * (1 + math.cos(math.pi * min(1.0, done)))

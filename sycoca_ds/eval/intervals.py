"""Intervals of numbers that are means over images: what another draw of as many images might have given."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RESAMPLES = 2000
HOW = f"bootstrap over images, 95 %, {RESAMPLES} resamples"


def bootstrap_interval(
    number: Callable[[np.ndarray], float], images: int, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """(2.5 %, 97.5 %) quantiles of `number` over resampled images; the same seed gives the same interval.

    number: (images,) int64 rows drawn with replacement -> the number on them.
    """
    random = np.random.default_rng(seed)
    drawn = [number(random.integers(0, images, images)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)

"""Intervals of numbers that are means over images: what another draw of as many images might have given."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 2000
AT_ONCE = 1 << 22
"""Numbers in one piece of `resampled`."""
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


def resampled(images: int, seed: int = 0, resamples: int = RESAMPLES) -> Iterator[np.ndarray]:
    """How often each image is drawn in each resample, piece by piece: (R, images) float64, R in all `resamples`. For many numbers
    at once, each a product with this."""
    random, most = np.random.default_rng(seed), max(1, AT_ONCE // images)
    for start in range(0, resamples, most):
        rows = min(most, resamples - start)
        drawn = random.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=rows * images).reshape(rows, images).astype(np.float64)

"""Which cases a model does best and worst."""

from __future__ import annotations

import numpy as np


def extremes(value_X: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(places of the highest values, best first; of the lowest, worst first), up to `most` of each and none in both; of equal
    values the first ones. NaN is neither."""
    place_N = np.flatnonzero(np.isfinite(value_X))
    most = min(most, len(place_N) // 2)
    best = place_N[np.argsort(-value_X[place_N], kind="stable")][:most]
    worst = place_N[np.argsort(value_X[place_N], kind="stable")]
    return best, worst[~np.isin(worst, best)][:most]

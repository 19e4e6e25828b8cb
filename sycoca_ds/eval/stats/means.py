"""Numbers that are means over what pictures hold, with their intervals. Legend: I pictures, X numbers, R resamples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sycoca_ds.eval.stats.intervals import resampled


@dataclass(frozen=True)
class Mean:
    """A number that is a mean over what pictures hold: a sum and a count of each picture, 0 where it holds nothing."""

    sum_I: np.ndarray
    count_I: np.ndarray

    @property
    def value(self) -> float | None:
        """None where no picture counts."""
        return float(self.sum_I.sum() / self.count_I.sum()) if self.count_I.sum() else None

    @property
    def value_I(self) -> np.ndarray:
        """Of each picture alone, NaN where it does not count. Pictures of many phrases weigh more in `value` than in their mean."""
        return np.divide(self.sum_I, self.count_I, out=np.full(len(self.sum_I), math.nan), where=self.count_I > 0)


def mean_of(value_I: np.ndarray) -> Mean:
    """Of the finite ones."""
    there_I = np.isfinite(value_I)
    return Mean(np.where(there_I, value_I, 0.0), there_I.astype(np.float64))


def mean_intervals(found: dict[str, Mean], seed: int = 0) -> dict[str, float]:
    """NAME_low and NAME_high, 95 % over resampled pictures, of all means that two pictures at least count for, those of chance
    left out."""
    names = [name for name, mean in found.items() if (mean.count_I > 0).sum() > 1 and not name.startswith("chance_")]
    if not names:
        return {}
    sum_IX, count_IX = (np.stack([getattr(found[name], part) for name in names], axis=1) for part in ("sum_I", "count_I"))
    drawn = []
    for times_RI in resampled(len(sum_IX), seed):
        with np.errstate(invalid="ignore"):  # a resample may hold no picture that counts
            drawn.append((times_RI @ sum_IX) / (times_RI @ count_IX))
    low_X, high_X = np.nanquantile(np.concatenate(drawn), [0.025, 0.975], axis=0).tolist()
    named = zip(names, low_X, high_X, strict=True)
    return {f"{name}_{side}": value for name, low, high in named for side, value in (("low", low), ("high", high))}

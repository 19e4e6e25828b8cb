"""Do two models differ on these pictures? Paired: which pictures are hard is the same for both and falls out.

Legend: I pictures, X statistics, R draws, M tests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sycoca_ds.eval.comparison import PERMUTATIONS
from sycoca_ds.eval.comparison.numbers import Additive
from sycoca_ds.eval.stats.intervals import RESAMPLES, resampled

POWER, LEVEL = 0.8, 0.05
AT_ONCE = 1 << 24
"""Numbers in one piece of draws."""
MCNEMAR, PERMUTATION = "McNemar", "permutation"


@dataclass(frozen=True)
class Difference:
    """The second model less the first."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    """95 % over resampled pictures."""
    p: float
    """Two-sided."""
    test: str
    smallest: float | None
    """Difference that so many pictures would have shown, at 5 %, in 80 of 100 draws of them; None where no picture tells the two
    apart, and nothing is known of how much they vary."""
    images: int
    changed: int
    """Pictures on which the two differ."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def difference(first: Additive, second: Additive, seed: int = 0, permutations: int = PERMUTATIONS) -> Difference | None:
    """None where the two have the number on no common picture, or it is not finite.

    A share of pictures is tested by McNemar's exact test, every other number by exchanging the two models' results picture by
    picture.
    """
    there_I = first.there_I & second.there_I
    first_IX, second_IX = first.rows_IX[there_I], second.rows_IX[there_I]
    if not len(first_IX):
        return None
    values = [float(of.of(rows.sum(0)[None])[0]) for of, rows in ((first, first_IX), (second, second_IX))]
    if not all(map(math.isfinite, values)):
        return None
    drawn_R = np.concatenate([second.of(r @ second_IX) - first.of(r @ first_IX) for r in resampled(len(first_IX), seed)])
    drawn_R = drawn_R[np.isfinite(drawn_R)]
    low, high = np.quantile(drawn_R, [0.025, 0.975]) if len(drawn_R) else (math.nan, math.nan)
    changed_I = (first_IX != second_IX).any(1)
    if first.hit_I is not None and second.hit_I is not None:
        hits = first.hit_I[there_I], second.hit_I[there_I]
        p, test = mcnemar(int((hits[0] & ~hits[1]).sum()), int((~hits[0] & hits[1]).sum())), MCNEMAR
    else:
        p, test = (
            permutation(first_IX[changed_I], second_IX[changed_I], first_IX[~changed_I].sum(0), first, seed, permutations),
            PERMUTATION,
        )
    spread = float(drawn_R.std(ddof=1)) if len(drawn_R) == RESAMPLES else math.nan
    return Difference(
        first=values[0],
        second=values[1],
        difference=values[1] - values[0],
        low=float(low),
        high=float(high),
        p=p,
        test=test,
        smallest=smallest_difference(spread) if changed_I.any() and math.isfinite(spread) else None,
        images=len(first_IX),
        changed=int(changed_I.sum()),
    )


def over_seeds(first: Sequence[Additive], second: Sequence[Additive], seed: int = 0) -> dict[str, Any] | None:
    """How far the second recipe lies above the first.

    Args:
        first, second: a number a training seed, of the same pictures in the same order; the n-th of both have one seed.

    Returns:
        difference, low, high (95 % interval of the mean over seeds, over resampled pictures: of these trainings, not of others),
        images (that have the number in all), seeds, seeds_above (of them, those with a difference above 0); None where no picture
        has it.

    Raises:
        ValueError: other seeds or pictures on one side.
    """
    if not first or len(first) != len(second) or len({len(of.there_I) for of in (*first, *second)}) > 1:
        raise ValueError("expected as many numbers of the same pictures on both sides, and at least one")
    there_I = np.all([of.there_I for of in (*first, *second)], axis=0)
    if not there_I.any():
        return None
    pairs = [(own, own.rows_IX[there_I], its, its.rows_IX[there_I]) for own, its in zip(first, second, strict=True)]

    def apart(times_RI: np.ndarray) -> np.ndarray:
        return np.stack([its.of(times_RI @ its_IX) - own.of(times_RI @ own_IX) for own, own_IX, its, its_IX in pairs])

    images = int(there_I.sum())
    difference_S = apart(np.ones((1, images)))[:, 0]
    low, high = np.nanquantile(np.concatenate([apart(drawn_RI).mean(0) for drawn_RI in resampled(images, seed)]), [0.025, 0.975])
    return {
        "difference": float(difference_S.mean()),
        "low": float(low),
        "high": float(high),
        "images": images,
        "seeds": len(pairs),
        "seeds_above": int((difference_S > 0).sum()),
    }


def mcnemar(only_first: int, only_second: int) -> float:
    """p of the exact test: of the pictures that only one model has right, each is as likely the one's as the other's."""
    from scipy.stats import binomtest

    pictures = only_first + only_second
    return float(binomtest(only_first, pictures, 0.5).pvalue) if pictures else 1.0


def permutation(
    first_IX: np.ndarray, second_IX: np.ndarray, same_X: np.ndarray, number: Additive, seed: int, permutations: int
) -> float:
    """p: share of exchanges, the one that was observed among them, that differ by at least as much.

    Args:
        first_IX, second_IX: the pictures on which the two differ.
        same_X: sums over all others.
    """
    if not len(first_IX):
        return 1.0
    first_X, apart_IX = first_IX.sum(0) + same_X, second_IX - first_IX
    both_X = first_X + second_IX.sum(0) + same_X

    def apart(exchanged_RI: np.ndarray) -> np.ndarray:
        sum_RX = first_X + exchanged_RI @ apart_IX
        return np.abs(number.of(both_X - sum_RX) - number.of(sum_RX))

    observed = float(apart(np.zeros((1, len(first_IX))))[0])
    # equal differences come by other sums, in another order: rounding must not tell them apart
    bound = observed - 1e-9 * max(1.0, observed)
    more = sum(int((apart(exchanged_RI) >= bound).sum()) for exchanged_RI in _exchanges(len(first_IX), seed, permutations))
    return (1 + more) / (1 + permutations)


def _exchanges(images: int, seed: int, permutations: int) -> Iterator[np.ndarray]:
    """(R, images) float64 of 0 and 1."""
    random, most = np.random.default_rng(seed), max(1, AT_ONCE // images)
    for start in range(0, permutations, most):
        yield random.integers(0, 2, (min(most, permutations - start), images), dtype=np.uint8).astype(np.float64)


def smallest_difference(spread: float) -> float:
    """At level `LEVEL`, two-sided, with power `POWER`, by the normal approximation.

    Args:
        spread: standard deviation of the difference over draws of as many pictures.
    """
    from scipy.stats import norm

    return float((norm.ppf(1 - LEVEL / 2) + norm.ppf(POWER)) * spread)


def holm(p_M: Sequence[float]) -> list[float]:
    """p values with which the chance of any false one among them stays below the level (Holm 1979)."""
    order, found, highest = np.argsort(p_M, kind="stable"), [1.0] * len(p_M), 0.0
    for place, test in enumerate(order.tolist()):
        highest = max(highest, min(1.0, (len(p_M) - place) * p_M[test]))
        found[test] = highest
    return found

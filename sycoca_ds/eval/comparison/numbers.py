"""How each number of an evaluation is made from what single pictures add to it.

Every one of them is a function of sums over pictures: means and weighted means of values, BLEU and METEOR of counts, a relative gap
of errors, a mean over classes of intersection over union of pixels. Whoever exchanges or redraws pictures adds rows and asks again.
Legend: I pictures, X statistics, R draws, K labels of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from sycoca_ds.eval.alignment.segmenting import MEASURES, measures
from sycoca_ds.eval.scorers.captions import DOMAINS, domain_prefix
from sycoca_ds.eval.scorers.corpus import bleu_of, meteor_of
from sycoca_ds.eval.stats.intervals import resampled


@dataclass(frozen=True)
class Additive:
    """A number of one model."""

    rows_IX: np.ndarray
    """float64, what each picture adds; 0 where it adds nothing."""
    of: Callable[[np.ndarray], np.ndarray]
    """Sums (R, X) -> the number (R,)."""
    there_I: np.ndarray
    """bool: pictures that have the number."""
    hit_I: np.ndarray | None = None
    """bool: of a share of pictures, each of which counts as much as the others, those that are in it."""

    @property
    def value(self) -> float:
        return float(self.of(self.rows_IX.sum(0)[None])[0])


def _ratio(sum_RX: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return sum_RX[:, 0] / sum_RX[:, 1]


def _gap(sum_RX: np.ndarray) -> np.ndarray:
    """controls.relative_gap of (own, other)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sum_RX[:, 1] == 0, 0.0, 100 * (sum_RX[:, 1] - sum_RX[:, 0]) / sum_RX[:, 1])


def _of_areas(sum_RX: np.ndarray, measure: str, shape: tuple[int, int]) -> np.ndarray:
    return measures(sum_RX.reshape(-1, *shape))[measure]


def _measure(name: str) -> tuple[str, str | None]:
    """(what stands before it, which of segmenting's measures a number is)."""
    return next(((name.removesuffix(measure), measure) for measure in MEASURES if name.endswith(measure)), (name, None))


OF_COUNTS: dict[str, dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "bleu_statistics": {f"bleu{n}": partial(bleu_of, words=n) for n in (1, 2, 3, 4)},
    "meteor_statistics": {"meteor": meteor_of},
}
"""{counts that are summed: {number: how the sums make it}}."""


def mean(value_I: np.ndarray, weight_I: np.ndarray | None = None) -> Additive:
    """Of the finite values."""
    value_I = np.asarray(value_I, np.float64)
    weight_I = np.ones(len(value_I)) if weight_I is None else np.nan_to_num(np.asarray(weight_I, np.float64))
    there_I = np.isfinite(value_I) & (weight_I > 0)
    rows_IX = np.where(there_I[:, None], np.stack([np.nan_to_num(value_I) * weight_I, weight_I], axis=1), 0.0)
    equal = len(np.unique(weight_I[there_I])) == 1
    found = set(np.unique(value_I[there_I]).tolist())
    share = equal and (found <= {0.0, 1.0} or found <= {0.0, 100.0})
    return Additive(rows_IX, _ratio, there_I, value_I > 0 if share else None)


def class_weights(class_I: np.ndarray) -> np.ndarray:
    """(I,) under which a mean over pictures is the mean over classes of the means within them."""
    weight_I, there_I = np.zeros(len(class_I)), np.isfinite(class_I)
    number_N, count_K = np.unique(class_I[there_I], return_inverse=True, return_counts=True)[1:]
    weight_I[there_I] = 1.0 / (len(count_K) * count_K[number_N])
    return weight_I


def additive_numbers(task: str, each: Mapping[str, np.ndarray], known: tuple[str, ...]) -> dict[str, Additive]:
    """{number: how it is made} of what a task has left picture by picture.

    Args:
        each: as `paired.read_each` gives it.
        known: the task's numbers, in their order; of others nothing is told.
    """
    found: dict[str, Additive] = {}
    if not each:
        return found
    for name in known:
        if name in each:
            weight_I = each.get(f"{name}_weight", each.get(f"{name}_count"))
            if task == "retrieval" and name.startswith(("t2i_", "mIR")):
                weight_I = each["t2i_captions"]
            found[name] = mean(each[name], weight_I)
    everything = np.ones(len(next(iter(each.values()))), bool)
    if "class" in each:
        found["mean_per_class"] = mean(each["top1"], class_weights(each["class"]))
    groups = {"": everything}
    if "domain" in each:
        groups |= {domain_prefix(domain): each["domain"] == domain for domain in DOMAINS}
    for prefix, there_I in groups.items():
        for name, of in OF_COUNTS.items():
            if name in each:
                rows_IX = np.where(there_I[:, None], each[name], 0.0)
                found |= {f"{prefix}{number}": Additive(rows_IX, score, there_I) for number, score in of.items()}
    for name in known:
        whose, gap, kind = name.partition("gap")
        errors = [each.get(f"{whose}{guide}_l1{kind}") for guide in ("own", "other")]
        if gap and errors[0] is not None:
            rows_IX = np.stack(errors, axis=1).astype(np.float64)
            there_I = np.isfinite(rows_IX).all(1)
            found[name] = Additive(np.where(there_I[:, None], rows_IX, 0.0), _gap, there_I)
    for name in known:
        under, measure = _measure(name)
        areas_I3K = each.get(f"{under}areas")
        if measure and areas_I3K is not None:
            rows_IX = areas_I3K.reshape(len(areas_I3K), -1).astype(np.float64)
            of = partial(_of_areas, measure=measure, shape=areas_I3K.shape[1:])
            found[name] = Additive(rows_IX, of, rows_IX.any(1))
    return {name: found[name] for name in known if name in found and found[name].there_I.any()}


def bounds(numbers: Mapping[str, Additive], seed: int = 0) -> dict[str, tuple[float, float]]:
    """{number: (2.5 %, 97.5 %) quantiles over resampled pictures}; those that a resample may leave without a picture are left
    out."""
    drawn: dict[str, list[np.ndarray]] = {name: [] for name in numbers}
    places = {name: np.flatnonzero(number.there_I) for name, number in numbers.items()}
    for images in {len(place) for place in places.values()}:
        for times_RI in resampled(images, seed):
            for name, number in numbers.items():
                if len(places[name]) == images:
                    drawn[name].append(number.of(times_RI @ number.rows_IX[places[name]]))
    found = {}
    for name, values in drawn.items():
        low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
        if np.isfinite([low, high]).all():
            found[name] = (float(low), float(high))
    return found

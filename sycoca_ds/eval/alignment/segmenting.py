"""Mean intersection over union, as PASCAL VOC counts it: intersections and unions are summed over the data set, a class at a time.

All from confusions, [label, guess], pixels. Legend: I pictures, K labels, R resamples.
"""

from __future__ import annotations

import math
import zlib

import numpy as np

from sycoca_ds.eval.stats.intervals import resampled

MEASURES = ("miou", "pixel_accuracy")


def confusion(label: np.ndarray, guess: np.ndarray, labels: int) -> np.ndarray:
    """int64 (K, K) of the pixels whose label is 0 or more. Args: labels: K."""
    there = label >= 0
    pairs = label[there].astype(np.int64) * labels + guess[there]
    return np.bincount(pairs, minlength=labels * labels).reshape(labels, labels)


def packed(confusion_KK: np.ndarray) -> bytes:
    """Deflated: nearly all of it is zero. The last byte is no zero, which numpy's texts of bytes would lose."""
    return zlib.compress(confusion_KK.astype(np.int32).tobytes(), 1) + b"."


def unpacked(data: bytes, labels: int) -> np.ndarray:
    """int64 (K, K)."""
    return np.frombuffer(zlib.decompress(data[:-1]), np.int32).reshape(labels, labels).astype(np.int64)


def areas(confusion_KK: np.ndarray) -> np.ndarray:
    """int64 (3, K): the pixels of each label that are in both, in the guess, in the labels."""
    return np.stack([confusion_KK.diagonal(), confusion_KK.sum(axis=0), confusion_KK.sum(axis=1)])


def ious(areas_X3K: np.ndarray) -> np.ndarray:
    """(.., K) float64, percent; NaN of a label that is neither there nor guessed, which no mean counts."""
    both, guessed, labelled = np.moveaxis(np.asarray(areas_X3K, np.float64), -2, 0)
    union = guessed + labelled - both
    return 100 * np.divide(both, union, out=np.full_like(union, math.nan), where=union > 0)


def measures(areas_X3K: np.ndarray) -> dict[str, np.ndarray]:
    """`MEASURES`, (..) float64, percent. At least one pixel is labelled."""
    areas_X3K = np.asarray(areas_X3K, np.float64)
    accuracy = 100 * areas_X3K[..., 0, :].sum(axis=-1) / areas_X3K[..., 2, :].sum(axis=-1)
    return {"miou": np.nanmean(ious(areas_X3K), axis=-1), "pixel_accuracy": accuracy}


def shuffled(confusion_KK: np.ndarray, background: bool) -> dict[str, float] | None:
    """`measures` where every class has another one's name: the mean over all shifts of the names by 1 to K - 1, in which each has
    each other's once. None of fewer than two classes.

    Args:
        background: label 0 is no class and keeps its name.
    """
    first = int(background)
    classes = len(confusion_KK) - first
    if classes < 2:
        return None
    found = []
    for shift in range(1, classes):
        order = [*range(first), *(first + (np.arange(classes) + shift) % classes)]
        found.append(measures(areas(confusion_KK[:, order])))
    return {name: float(np.mean([values[name] for values in found])) for name in MEASURES}


def chances(labelled_K: np.ndarray) -> dict[str, dict[str, float]]:
    """`measures` of a guess that never looks: at random, each label for an equal share of all pixels (from expected sums), and the
    one label for all of them that is best.

    Args:
        labelled_K: pixels of each label.
    """
    labelled_K = np.asarray(labelled_K, np.float64)
    pixels, labels = labelled_K.sum(), len(labelled_K)
    random = np.stack([labelled_K / labels, np.full(labels, pixels / labels), labelled_K])
    best = int(labelled_K.argmax())
    constant = np.stack([np.where(np.arange(labels) == best, values, 0) for values in (labelled_K, np.full(labels, pixels))])
    found = {"random": random, "constant": np.concatenate([constant, labelled_K[None]])}
    return {how: {name: float(value) for name, value in measures(areas_3K).items()} for how, areas_3K in found.items()}


def measure_intervals(areas_I3K: np.ndarray, seed: int = 0) -> dict[str, float]:
    """NAME_low and NAME_high of `measures`, 95 % over resampled pictures."""
    flat_IX, drawn = areas_I3K.reshape(len(areas_I3K), -1).astype(np.float64), []
    for times_RI in resampled(len(flat_IX), seed):
        drawn.append(measures((times_RI @ flat_IX).reshape(-1, *areas_I3K.shape[1:])))
    found = {}
    for name in MEASURES:
        low, high = np.nanquantile(np.concatenate([values[name] for values in drawn]), [0.025, 0.975]).tolist()
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found

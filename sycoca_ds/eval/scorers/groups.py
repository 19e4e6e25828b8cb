"""Scores of classification by class and by group, as WILDS has them (wilds/common/metrics/all_metrics.py).

Legend: N pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def macro_f1(guess_N: np.ndarray, label_N: np.ndarray) -> float:
    """Percent: F1 of each class that has a picture, averaged: scikit-learn's f1_score(average="macro", labels=unique(label_N))."""
    classes = int(max(guess_N.max(), label_N.max())) + 1
    label_K, guess_K = np.bincount(label_N, minlength=classes), np.bincount(guess_N, minlength=classes)
    right_K = np.bincount(label_N[guess_N == label_N], minlength=classes)
    there = label_K > 0
    return 100.0 * float((2 * right_K[there] / (label_K + guess_K)[there]).mean())


def worst_group(right_N: np.ndarray, group_N: Sequence[str]) -> tuple[float, str]:
    """Percent right in the group where it is least, and that group; of equal ones the first by name."""
    names, place_N = np.unique(np.asarray(group_N), return_inverse=True)
    share = np.bincount(place_N, weights=right_N) / np.bincount(place_N)
    worst = int(share.argmin())
    return 100.0 * float(share[worst]), str(names[worst])

"""What a classifier gets right, over all pictures, by class, and how sure that is.

Legend: N test pictures, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.stats.classes import class_rows, classification_metrics
from sycoca_ds.eval.stats.intervals import bootstrap_interval


def accuracies(logit_NK: np.ndarray, label_N: np.ndarray) -> dict[str, float | None]:
    """top1, top5, mean_per_class in percent, as of zero-shot classification."""
    return classification_metrics(torch.from_numpy(logit_NK), label_N)


def mean_per_class(right_N: np.ndarray, label_N: np.ndarray) -> float:
    """Percent right within each class, averaged over the classes that have a picture."""
    count_K = np.bincount(label_N)
    return 100.0 * float((np.bincount(label_N, weights=right_N)[count_K > 0] / count_K[count_K > 0]).mean())


def bounds(right_N: np.ndarray, label_N: np.ndarray, seed: int) -> dict[str, float]:
    """95 % intervals over resampled test pictures. Another draw of training pictures, which would move the numbers, too, is not in
    them."""
    found = {}
    for name, number in (
        ("top1", lambda rows: 100.0 * float(right_N[rows].mean())),
        ("mean_per_class", lambda rows: mean_per_class(right_N[rows], label_N[rows])),
    ):
        found[f"{name}_low"], found[f"{name}_high"] = bootstrap_interval(number, len(label_N), seed)
    return found


def each_class(right_N: np.ndarray, label_N: np.ndarray, train_N: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: pictures to train (with those to validate) and to test on, and percent right, None where none is tested."""
    trained_K = np.bincount(train_N, minlength=len(classes))
    return [
        {"class": row["class"], "train": int(trained), "test": row["images"], "right": row["right"]}
        for row, trained in zip(class_rows(right_N, label_N, classes), trained_K, strict=True)
    ]


def chances(train_N: np.ndarray, label_N: np.ndarray, classes: int) -> dict[str, float]:
    """What one gets who never looks and says the class, or one of the classes, with most training pictures."""
    count_K, tested_K = np.bincount(train_N, minlength=classes), np.bincount(label_N, minlength=classes)
    most = count_K == count_K.max()
    there = tested_K > 0
    return {
        "top1": 100.0 * float(tested_K[most].sum() / most.sum() / len(label_N)),
        "top5": min(100.0, 500.0 / classes),
        "mean_per_class": 100.0 * float((most & there).sum() / most.sum() / there.sum()),
    }

"""Classifiers made of names, and scores by class and by group.

Legend: N pictures, K classes, M templates, E embedding width.
Protocol: open_clip zero_shot_classifier.py = CLIP_benchmark zeroshot_classification.py = SLIP eval_zeroshot.py; groups as WILDS has
them (wilds/common/metrics/all_metrics.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.stats.cosines import exact_unit_vectors


def class_weights(encode: Callable[[list[str]], torch.Tensor], classes: Iterable[str], templates: Sequence[str]) -> torch.Tensor:
    """(K, E) float32, L2-normalised: per class the mean of the L2-normalised features of all its prompts, normalised
    again.

    encode: prompts -> (n, E) features. Leaving out the per-prompt L2 would weigh prompts by their length and change
    predictions.
    """
    prompts = [template.replace("{c}", name) for name in classes for template in templates]
    feature = encode(prompts).to(torch.float32)
    feature_KME = torch.nn.functional.normalize(feature, dim=-1).view(-1, len(templates), feature.shape[-1])
    return torch.nn.functional.normalize(feature_KME.mean(dim=1), dim=-1)


def class_scores(feature_NE: torch.Tensor, weight_KE: torch.Tensor) -> torch.Tensor:
    """(N, K) float64 cosines without a rounding (`cosines.QUANTUM`): in float32 two classes of one name differ in the last bit
    for half of the pictures, which ones depends on how many there are. UserError: features that are not finite."""
    return exact_unit_vectors(feature_NE) @ exact_unit_vectors(weight_KE).T


def own_class_ranks(logit_NK: torch.Tensor, label_N: np.ndarray) -> np.ndarray:
    """(N,) place of the own class, 0 the highest. At an equal logit the lower class index ranks ahead, so that nothing depends on a
    sort's whims."""
    label = torch.as_tensor(label_N, device=logit_NK.device)
    own = logit_NK.gather(1, label[:, None])
    position = torch.arange(logit_NK.shape[1], device=logit_NK.device)
    return ((logit_NK > own) | ((logit_NK == own) & (position < label[:, None]))).sum(dim=1).cpu().numpy()


def classification_metrics(logit_NK: torch.Tensor, label_N: np.ndarray) -> dict[str, float | None]:
    """Percent: `top1`, `top5` (null below 5 classes), `mean_per_class` (top-1 averaged over the classes that have an
    image)."""
    rank = own_class_ranks(logit_NK, label_N)
    hit = rank == 0
    per_class = [float(hit[label_N == k].mean()) for k in range(logit_NK.shape[1]) if (label_N == k).any()]
    return {
        "top1": 100.0 * float(hit.mean()),
        "top5": 100.0 * float((rank < 5).mean()) if logit_NK.shape[1] >= 5 else None,
        "mean_per_class": 100.0 * float(np.mean(per_class)),
    }


def class_rows(right_N: np.ndarray, label_N: np.ndarray, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a class: images, and percent right, None where there is none."""
    count_K = np.bincount(label_N, minlength=len(classes))
    right_K = np.bincount(label_N, weights=right_N, minlength=len(classes))
    return [
        {"class": name, "images": int(count_K[k]), "right": 100.0 * float(right_K[k] / count_K[k]) if count_K[k] else None}
        for k, name in enumerate(classes)
    ]


def confusions(label_N: np.ndarray, guess_N: np.ndarray, classes: tuple[str, ...], most: int = 5) -> list[dict[str, Any]]:
    """The pairs of classes that are mistaken most: class, taken_for, images."""
    pairs, counts = np.unique(np.stack([label_N, guess_N])[:, label_N != guess_N], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [{"class": classes[pairs[0, o]], "taken_for": classes[pairs[1, o]], "images": int(counts[o])} for o in order]


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

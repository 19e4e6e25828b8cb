"""Do scores find what the caption names? Measures against known regions, of one picture, as pure functions. Legend: N patches.

Each is an expectation over the order of equal scores, so that a score that is the same everywhere comes to exactly what chance
gives.
"""

from __future__ import annotations

import math

import numpy as np


def auc(score_N: np.ndarray, positive_N: np.ndarray, negative_N: np.ndarray) -> float:
    """Chance that a positive patch scores above a negative one, ties half; NaN where there is none of either.

    positive_N, negative_N: bool.
    """
    positive, negative = np.sort(score_N[positive_N]), np.sort(score_N[negative_N])
    if not len(positive) or not len(negative):
        return math.nan
    below = np.searchsorted(negative, positive, side="left").sum()
    not_above = np.searchsorted(negative, positive, side="right").sum()
    return float(below + not_above) / (2 * len(positive) * len(negative))


def pointing(score_N: np.ndarray, region_N: np.ndarray) -> float:
    """Whether the highest score lies in the region (Zhang et al. 2016, the pointing game), between several the share that does."""
    return float(region_N[score_N == score_N.max()].mean())


def word_iou(score_N: np.ndarray, region_N: np.ndarray) -> float:
    """Intersection over union of the region, k patches, and the k patches that score highest."""
    k = int(region_N.sum())
    lowest = np.partition(score_N, len(score_N) - k)[len(score_N) - k]
    above_N, tied_N = score_N > lowest, score_N == lowest
    sure, drawn = int((above_N & region_N).sum()), k - int(above_N.sum())
    return drawn_iou(int(tied_N.sum()), int((tied_N & region_N).sum()), drawn, k, sure)


def chance_iou(patches: int, k: int) -> float:
    """What `word_iou` of a region of k patches comes to where scores know nothing."""
    return drawn_iou(patches, k, k, k)


def drawn_iou(patches: int, inside: int, drawn: int, k: int, sure: int = 0) -> float:
    """Expected intersection over union of two sets of k patches that share `sure` and what falls `inside` of `drawn` patches drawn
    from `patches` without replacement (hypergeometric)."""
    ways = math.comb(patches, drawn)
    return sum(
        math.comb(inside, hit) * math.comb(patches - inside, drawn - hit) / ways * (sure + hit) / (2 * k - sure - hit)
        for hit in range(max(0, drawn - patches + inside), min(inside, drawn) + 1)
    )

"""From scores to accuracies: who wins, by strict inequality, within groups and over them, and what another draw of pictures gives.

Legend: N items, P views and C captions of an item, I pictures, G groups, H scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sycoca_ds.eval.stats.intervals import resampled

Bounded = tuple[float | None, float | None, float | None]
"""Value, lower and upper bound of its 95 % interval; None where nothing was asked."""


def own_wins(score_NPC: np.ndarray, tie: float = 0.0) -> np.ndarray:
    """bool (N,): items of one view whose own caption, the first, scores higher than the other. A tie is no win.

    Args:
        tie: scores that are no further apart are equal.
    """
    return score_NPC[:, 0, 0] - score_NPC[:, 0, 1] > tie


def winoground_wins(score_NPC: np.ndarray, tie: float = 0.0) -> dict[str, np.ndarray]:
    """{text, image, group: bool (N,)} of items of two views (Winoground's paper, eq. 1 to 3): each view gives its own caption more
    than the other one; each caption its own view; both. A tie is no win."""
    own_N2 = np.stack([score_NPC[:, 0, 0], score_NPC[:, 1, 1]], axis=1)
    text_N = (own_N2 - np.stack([score_NPC[:, 0, 1], score_NPC[:, 1, 0]], axis=1) > tie).all(1)
    image_N = (own_N2 - np.stack([score_NPC[:, 1, 0], score_NPC[:, 0, 1]], axis=1) > tie).all(1)
    return {"text": text_N, "image": image_N, "group": text_N & image_N}


@dataclass(frozen=True)
class Accuracies:
    """In percent, with intervals over resampled pictures: a picture is drawn with all its items, which fare alike."""

    groups: dict[str, Bounded]
    mean: Bounded
    """Of the groups that count, each as much as every other."""


def accuracies(
    won_N: np.ndarray, group_of: Sequence[str], picture_of: Sequence[object], counted: Sequence[str], seed: int = 0
) -> Accuracies:
    """
    Args:
        won_N: bool.
        group_of, picture_of: of each item.
        counted: the groups that are told, and whose mean is; one without an item has None, and so has the mean then. In a resample
            the mean is of those that were drawn.
    """
    pictures = {picture: number for number, picture in enumerate(dict.fromkeys(picture_of))}
    places = {group: number for number, group in enumerate(counted)}
    rows = [(pictures[p], places[g], w) for p, g, w in zip(picture_of, group_of, won_N.tolist(), strict=True) if g in places]
    if not rows:
        return Accuracies(dict.fromkeys(counted, (None, None, None)), (None, None, None))
    asked_IG, won_IG = np.zeros((2, len(pictures), len(counted)))
    picture, group, won = (np.array(column) for column in zip(*rows, strict=True))
    np.add.at(asked_IG, (picture, group), 1.0)
    np.add.at(won_IG, (picture, group), won.astype(np.float64))
    drawn_I = asked_IG.any(1)  # a picture of groups that do not count is none of this number's
    asked_IG, won_IG = asked_IG[drawn_I], won_IG[drawn_I]
    there_G = asked_IG.any(0)
    value_G = 100.0 * won_IG.sum(0)[there_G] / asked_IG.sum(0)[there_G]
    found = [_shares(weight_RI, won_IG[:, there_G], asked_IG[:, there_G]) for weight_RI in resampled(len(asked_IG), seed)]
    share_RG = np.concatenate(found)
    low_G, high_G = np.nanquantile(share_RG, [0.025, 0.975], axis=0)
    of = dict.fromkeys(counted, (None, None, None))
    of |= {
        name: (float(value), float(low), float(high))
        for name, value, low, high in zip(np.array(counted)[there_G].tolist(), value_G, low_G, high_G, strict=True)
    }
    if not there_G.all():
        return Accuracies(of, (None, None, None))
    low, high = np.quantile(np.nanmean(share_RG, axis=1), [0.025, 0.975])
    return Accuracies(of, (float(value_G.mean()), float(low), float(high)))


def by_picture(
    won_N: np.ndarray, group_of: Sequence[str], picture_of: Sequence[object], groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(value (I,) percent, weight (I,)) of each distinct picture, in order of appearance: the mean of the groups' shares is
    the mean of the values under the weights. NaN and 0 where a picture has no item of these groups."""
    pictures = {picture: number for number, picture in enumerate(dict.fromkeys(picture_of))}
    group_N = np.array(group_of)
    items = {group: int((group_N == group).sum()) for group in groups}
    weight_N = np.array([1 / (len(groups) * items[group]) if group in items else 0.0 for group in group_of])
    number_N = np.array([pictures[picture] for picture in picture_of])
    weight_I = np.bincount(number_N, weight_N, len(pictures))
    won_I = np.bincount(number_N, 100.0 * weight_N * won_N, len(pictures))
    return np.divide(won_I, weight_I, out=np.full(len(pictures), np.nan), where=weight_I > 0), weight_I


def _shares(weight_RI: np.ndarray, won_IG: np.ndarray, asked_IG: np.ndarray) -> np.ndarray:
    """(R, G) percent won in each resample, NaN where nothing of the group was drawn."""
    asked_RG = weight_RI @ asked_IG
    return np.divide(100.0 * (weight_RI @ won_IG), asked_RG, out=np.full_like(asked_RG, np.nan), where=asked_RG > 0)

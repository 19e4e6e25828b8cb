"""Measures against slow loops: over all pairs of patches, and over all orders of equal scores."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import hypergeom

from sycoca_ds.eval.masking.finding import auc, chance_iou, drawn_iou, pointing, word_iou


def cases(patches: int, levels: int, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(scores of which many are equal, a region that is neither nothing nor everything)."""
    random = np.random.default_rng(seed)
    found = []
    while len(found) < count:
        region = random.random(patches) < random.uniform(0.2, 0.8)
        if 0 < region.sum() < patches:
            found.append((random.integers(0, levels, patches).astype(np.float32), region))
    return found


@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_auc_is_the_share_of_pairs_in_order(levels: int) -> None:
    for score, positive in cases(25, levels, 50, seed=levels):
        negative = ~positive & (np.arange(25) % 3 > 0)
        pairs = [(score[i], score[j]) for i in np.flatnonzero(positive) for j in np.flatnonzero(negative)]
        slow = np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]) if pairs else math.nan
        assert auc(score, positive, negative) == pytest.approx(slow, nan_ok=True)
    assert math.isnan(auc(score, positive & False, positive)) and math.isnan(auc(score, positive, positive & False))


def by_all_orders(score: np.ndarray, region: np.ndarray) -> tuple[float, float]:
    """(pointing, IoU): mean over every order of equal scores, of the best patch and of the k best."""
    k, hits, overlaps = int(region.sum()), [], []
    for order in itertools.permutations(range(len(score))):
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order)):
            best = set(order[:k])
            inside = set(np.flatnonzero(region).tolist())
            hits.append(order[0] in inside)
            overlaps.append(len(best & inside) / len(best | inside))
    return float(np.mean(hits)), float(np.mean(overlaps))


@pytest.mark.parametrize("levels", [1, 2, 3, 100])
def test_pointing_and_iou_are_means_over_the_orders_of_equal_scores(levels: int) -> None:
    for score, region in cases(6, levels, 12, seed=10 + levels):
        hit, overlap = by_all_orders(score, region)
        assert pointing(score, region) == pytest.approx(hit)
        assert word_iou(score, region) == pytest.approx(overlap)
        if levels == 1:
            assert word_iou(score, region) == pytest.approx(chance_iou(6, int(region.sum())))
            assert pointing(score, region) == pytest.approx(region.mean())


def test_iou_of_distinct_scores_is_that_of_the_best_k() -> None:
    random = np.random.default_rng(1)
    for _, region in cases(49, 2, 30, seed=5):
        score = random.permutation(49).astype(float)
        best = set(np.argsort(-score)[: region.sum()].tolist())
        inside = set(np.flatnonzero(region).tolist())
        assert word_iou(score, region) == pytest.approx(len(best & inside) / len(best | inside))
        assert pointing(score, region) == (int(score.argmax()) in inside)
        assert word_iou(region.astype(float), region) == 1.0 and word_iou(-region.astype(float), region) < chance_iou(
            49, region.sum()
        )


@pytest.mark.parametrize(("patches", "k"), [(36, 4), (196, 30), (256, 200), (9, 9)])
def test_chance_is_what_scipys_hypergeometric_distribution_and_draws_give(patches: int, k: int) -> None:
    hit = np.arange(k + 1)
    expected = float(np.sum(hypergeom(patches, k, k).pmf(hit) * hit / (2 * k - hit)))
    assert chance_iou(patches, k) == pytest.approx(expected)
    random, region = np.random.default_rng(0), np.arange(patches) < k
    drawn = [word_iou(random.random(patches), region) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(expected, abs=4 * np.std(drawn) / 2000**0.5 + 1e-9)


def test_drawn_iou_by_hand() -> None:
    # one patch is sure, one of two tied ones is drawn, one of which is inside: 2 of 2 or 1 of 3
    assert drawn_iou(patches=2, inside=1, drawn=1, k=2, sure=1) == pytest.approx((1 + 1 / 3) / 2)

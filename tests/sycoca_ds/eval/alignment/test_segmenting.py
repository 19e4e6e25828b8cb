"""mIoU against a loop over pixels and classes, and at its two ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sycoca_ds.eval.alignment.segmenting import areas, chances, confusion, ious, measure_intervals, measures, shuffled

LABELS = 5
RANDOM = np.random.default_rng(3)


def pictures(count: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    """(labels, guesses) with pixels of which nothing is said, and a class that is nowhere."""
    return [(RANDOM.integers(-1, LABELS - 1, (7, 7)), RANDOM.integers(0, LABELS - 1, (7, 7))) for _ in range(count)]


def slow(pairs: list[tuple[np.ndarray, np.ndarray]], names: list[int] | None = None) -> tuple[list[float], float]:
    """IoU of each label over all pictures, pixel accuracy; names: what a guess of each label is called instead."""
    names, found, right, said = names or list(range(LABELS)), [], 0, 0
    for k in range(LABELS):
        both = union = 0
        for label, guess in pairs:
            for own, other in zip(label.flatten().tolist(), guess.flatten().tolist(), strict=True):
                if own >= 0:
                    both += own == k and names[other] == k
                    union += own == k or names[other] == k
        found.append(100 * both / union if union else math.nan)
    for label, guess in pairs:
        for own, other in zip(label.flatten().tolist(), guess.flatten().tolist(), strict=True):
            said += own >= 0
            right += own >= 0 and own == names[other]
    return found, 100 * right / said


def test_numbers_are_those_of_a_loop() -> None:
    pairs = pictures()
    each = np.stack([areas(confusion(*pair, LABELS)) for pair in pairs])
    expected, accuracy = slow(pairs)
    np.testing.assert_allclose(ious(each.sum(0)), expected)
    assert math.isnan(expected[-1]), "a class that is neither there nor guessed"
    found = measures(each.sum(0))
    assert found["miou"] == pytest.approx(np.nanmean(expected)) and found["pixel_accuracy"] == pytest.approx(accuracy)
    mean_of_pictures = np.mean([np.nanmean(slow([pair])[0]) for pair in pairs])
    assert abs(found["miou"] - mean_of_pictures) > 0.1, "sums over the data set are not a mean over pictures"


def test_sklearn_agrees() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    pairs = pictures(3)
    label, guess = (np.concatenate([pair[place].flatten() for pair in pairs]) for place in (0, 1))
    there = label >= 0
    expected = metrics.jaccard_score(label[there], guess[there], average=None, labels=range(LABELS - 1))
    total = np.sum([areas(confusion(*pair, LABELS)) for pair in pairs], axis=0)
    np.testing.assert_allclose(ious(total)[:-1], 100 * expected)
    np.testing.assert_array_equal(
        np.sum([confusion(*pair, LABELS) for pair in pairs], axis=0),
        metrics.confusion_matrix(label[there], guess[there], labels=range(LABELS)),
    )


@pytest.mark.parametrize("background", [True, False])
def test_shuffled_names_are_a_mean_over_shifts(background: bool) -> None:
    pairs, first = pictures(), int(background)
    total = np.sum([confusion(*pair, LABELS) for pair in pairs], axis=0)
    classes, means = list(range(first, LABELS)), []
    for shift in range(1, len(classes)):
        names = [*range(first), *(classes[(place - shift) % len(classes)] for place in range(len(classes)))]
        means.append(np.nanmean(slow(pairs, names)[0]))
    assert shuffled(total, background)["miou"] == pytest.approx(np.mean(means))
    assert shuffled(np.eye(2, dtype=np.int64), True) is None, "one class has no other name"


def test_everything_right_is_full_and_shuffled_nothing() -> None:
    right = np.diag([7, 5, 3, 2])
    assert measures(areas(right)) == {"miou": 100, "pixel_accuracy": 100}
    assert shuffled(right, False) == {"miou": 0, "pixel_accuracy": 0}
    assert shuffled(right, True)["pixel_accuracy"] == pytest.approx(100 * 7 / 17), "the background keeps its name"


def test_chances_are_those_of_guesses_that_never_look() -> None:
    label = np.repeat(np.arange(4), [60_000, 20_000, 15_000, 5_000])
    found = chances(np.bincount(label))
    random = measures(areas(confusion(label, np.random.default_rng(0).integers(0, 4, len(label)), 4)))
    constant = [measures(areas(confusion(label, np.full(len(label), k), 4))) for k in range(4)]
    for name in ("miou", "pixel_accuracy"):
        assert found["random"][name] == pytest.approx(random[name], rel=0.02)
        assert found["constant"][name] == pytest.approx(max(each[name] for each in constant))


def test_intervals_cover_what_other_draws_give() -> None:
    random = np.random.default_rng(1)

    def drawn(count: int) -> np.ndarray:
        label = random.integers(0, 3, (count, 40))
        guess = np.where(random.random((count, 40)) < random.random((count, 1)), label, random.integers(0, 3, (count, 40)))
        return np.stack([areas(confusion(*pair, 3)) for pair in zip(label, guess, strict=True)])

    truth, hits = measures(drawn(4000).sum(0))["miou"], 0
    for seed in range(40):
        found = measure_intervals(drawn(60), seed)
        hits += found["miou_low"] <= truth <= found["miou_high"]
    assert 33 <= hits <= 40, "95 % of 40 is 38"

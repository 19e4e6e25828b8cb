"""Numbers of a probe against slow loops."""

import numpy as np
import pytest

from sycoca_ds.eval.probe.scoring import accuracies, bounds, chances, each_class, mean_per_class


def drawn(count=300, seed=0):
    random = np.random.default_rng(seed)
    label = random.choice([0, 1, 2, 5], count, p=[0.5, 0.3, 0.15, 0.05])
    return label, random.random(count) < np.array([0.9, 0.5, 0.2, 0, 0, 0.7])[label]


def test_mean_per_class_and_rows_of_classes():
    label, right = drawn()
    expected = [100 * np.mean([bool(r) for r, k in zip(right, label, strict=True) if k == own]) for own in (0, 1, 2, 5)]
    assert mean_per_class(right, label) == pytest.approx(np.mean(expected))
    logits = np.full((300, 6), -np.inf)
    logits[np.arange(300), np.where(right, label, (label + 1) % 6)] = 1.0
    found = accuracies(logits, label)
    assert found["top1"] == pytest.approx(100 * right.mean()) and found["mean_per_class"] == pytest.approx(np.mean(expected))
    rows = each_class(right, label, np.array([0, 0, 3]), tuple("abcdef"))
    assert [row["class"] for row in rows] == list("abcdef") and [row["train"] for row in rows] == [2, 0, 0, 1, 0, 0]
    assert [row["right"] for row in rows if row["test"]] == pytest.approx(expected)
    assert [row["right"] for row in rows if not row["test"]] == [None, None]


def test_intervals_are_those_of_another_draw():
    """95 of 100 intervals hold the truth; a loop draws by itself."""
    label, right = drawn(400)
    found = bounds(right, label, seed=0)
    assert found == bounds(right, label, seed=0)
    random, loop = np.random.default_rng(7), []
    for _ in range(1500):
        rows = [int(row) for row in random.integers(0, 400, 400)]
        hit: dict[int, list[bool]] = {}
        for row in rows:
            hit.setdefault(int(label[row]), []).append(bool(right[row]))
        loop.append((100 * np.mean([right[row] for row in rows]), np.mean([100 * np.mean(hits) for hits in hit.values()])))
    low, high = np.quantile(np.array(loop), [0.025, 0.975], axis=0)
    assert [found["top1_low"], found["mean_per_class_low"]] == pytest.approx(low.tolist(), abs=0.9)
    assert [found["top1_high"], found["mean_per_class_high"]] == pytest.approx(high.tolist(), abs=0.9)


def test_chance_is_what_the_most_frequent_class_gets():
    balanced = np.repeat(np.arange(4), 5)
    assert chances(balanced, balanced, 4) == {"top1": 25.0, "top5": 100.0, "mean_per_class": 25.0}
    uneven = np.array([0, 0, 0, 1, 2])
    assert chances(uneven, np.array([0, 1, 1, 1]), 4)["top1"] == 25.0 and chances(uneven, uneven, 4)["top1"] == 60.0
    assert chances(balanced, np.array([0, 0, 0, 1]), 4)["top1"] == 25.0, (
        "each class as often as the others: a quarter of the time right"
    )
    assert chances(uneven, np.array([1, 2]), 4)["mean_per_class"] == 0.0

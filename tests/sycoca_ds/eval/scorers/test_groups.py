"""Scores by class and by group against scikit-learn and a loop."""

import numpy as np
import pytest
from sklearn.metrics import f1_score

from sycoca_ds.eval.scorers.groups import macro_f1, worst_group


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    """As WILDS calls it: classes that are only guessed are no part of the mean."""
    random = np.random.default_rng(seed)
    label_N, guess_N = random.integers(0, 7, 60), random.integers(0, 9, 60)
    label_N[label_N == 3] = 2
    expected = f1_score(label_N, guess_N, average="macro", labels=np.unique(label_N))
    assert macro_f1(guess_N, label_N) == pytest.approx(100 * expected)
    assert macro_f1(label_N, label_N) == 100 and macro_f1(np.full(60, 8), label_N) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_group_is_that_of_a_loop(seed):
    random = np.random.default_rng(seed)
    right_N, group_N = random.random(50) < 0.5, [f"region {number}" for number in random.integers(0, 6, 50)]
    shares = {
        name: np.mean([right for right, group in zip(right_N, group_N, strict=True) if group == name])
        for name in sorted(set(group_N))
    }
    value, worst = worst_group(right_N, group_N)
    assert value == pytest.approx(100 * min(shares.values())) and worst == min(shares, key=shares.get)
    assert worst_group(np.ones(50), group_N)[0] == 100

"""Paired tests: what they say of equal models, of models whose labels are exchanged, and of known differences."""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import partial
from math import comb

import numpy as np
import pytest

from sycoca_ds.eval.comparison.numbers import Additive, additive_numbers, mean
from sycoca_ds.eval.comparison.testing import MCNEMAR, PERMUTATION, difference, holm, mcnemar, over_seeds, smallest_difference
from sycoca_ds.eval.scorers.corpus import bleu_of


def values(random: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models of which each picture's result is as likely the one's as the other's."""
    hard_I = random.normal(50, 20, images)
    both = np.stack([hard_I + random.normal(0, 5, images), hard_I + random.normal(3, 8, images)])
    order_I = random.integers(0, 2, images)
    return np.take_along_axis(both, order_I[None], 0)[0], np.take_along_axis(both, 1 - order_I[None], 0)[0]


def shares(random: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    first, second = values(random, images)
    return 100.0 * (first > 50), 100.0 * (second > 50)


def counts(random: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """BLEU's, of captions of about ten words."""
    length_MI = random.integers(8, 13, (2, images))
    right = [random.binomial(length_MI - k, 0.6 / (k + 1)) for k in range(4)]
    rows = np.stack([length_MI, random.integers(9, 12, (2, images)), *(length_MI - k for k in range(4)), *right], axis=2)
    order_I = random.integers(0, 2, images)
    rows[:, order_I == 1] = rows[::-1, order_I == 1]
    return rows[0].astype(np.float64), rows[1].astype(np.float64)


def bleu4(rows_IX: np.ndarray) -> Additive:
    return Additive(rows_IX, lambda sum_RX: bleu_of(sum_RX, 4), np.ones(len(rows_IX), bool))


@pytest.mark.parametrize("number", [mean, bleu4])
def test_two_copies_of_one_model(number) -> None:
    rows = counts(np.random.default_rng(0), 90)[0] if number is bleu4 else values(np.random.default_rng(0), 90)[0]
    found = difference(number(rows), number(rows.copy()))
    assert (found.difference, found.low, found.high, found.p, found.smallest, found.changed) == (0, 0, 0, 1, None, 0)
    assert found.images == 90 and found.test == PERMUTATION


def test_two_copies_of_a_share() -> None:
    rows = shares(np.random.default_rng(0), 90)[0]
    found = difference(mean(rows), mean(rows))
    assert (found.difference, found.p, found.smallest, found.test) == (0, 1, None, MCNEMAR)


@pytest.mark.parametrize(("draw", "number"), [(values, mean), (counts, bleu4), (shares, mean)])
def test_labels_exchanged_between_models_give_uniform_p(draw, number) -> None:
    """300 draws of 80 pictures, seed fixed. A test of discrete shares is exact: at most 5 %."""
    from scipy.stats import kstest

    random = np.random.default_rng(7)
    p = [difference(*(number(rows) for rows in draw(random, 80)), permutations=400).p for _ in range(300)]
    below = np.mean(np.array(p) < 0.05)
    if draw is shares:
        assert 0.005 < below <= 0.075 and min(p) > 0
        return
    assert 0.025 < below < 0.08
    assert kstest(p, "uniform").pvalue > 0.01


def test_intervals_leave_out_the_truth_in_one_of_twenty() -> None:
    random = np.random.default_rng(8)
    found = [difference(*map(mean, values(random, 80)), permutations=1) for _ in range(300)]
    assert 0.02 < np.mean([not each.low <= 0 <= each.high for each in found]) < 0.09


@pytest.mark.parametrize("kind", ["share", "mean"])
def test_the_smallest_difference_is_what_four_of_five_draws_show(kind: str) -> None:
    """Differences of that size, over other draws of as many pictures: p below 0.05 in 80 %."""
    images, random = 400, np.random.default_rng(9)

    def draw(gain: float) -> tuple[Additive, Additive]:
        hard_I = random.uniform(0, 1, images)
        if kind == "mean":
            return mean(100 * hard_I + random.normal(0, 10, images)), mean(100 * hard_I + gain + random.normal(0, 10, images))
        flips = random.uniform(0, 1, (2, images)) < 0.08
        lifted = random.uniform(0, 1, images) < 2 * gain / 100  # half of the pictures had it before
        first, second = (hard_I > 0.5) ^ flips[0], ((hard_I > 0.5) ^ flips[1]) | lifted
        return mean(100.0 * first), mean(100.0 * second)

    gain = float(np.mean([difference(*draw(0.0), permutations=1).smallest for _ in range(8)]))
    if kind == "share":  # the difference itself adds to what varies: once more at its size
        gain = float(np.mean([difference(*draw(gain), permutations=1).smallest for _ in range(8)]))
    found = [difference(*draw(gain), permutations=300) for _ in range(150)]
    assert abs(np.mean([each.difference for each in found]) - gain) < 0.15 * gain
    assert 0.7 < np.mean([each.p < 0.05 for each in found]) < 0.88
    weak = [difference(*draw(gain / 4), permutations=300).p < 0.05 for _ in range(60)]
    assert np.mean(weak) < 0.3


def test_the_smallest_difference_by_hand() -> None:
    assert smallest_difference(1.0) == pytest.approx(1.959964 + 0.841621, abs=1e-6)
    first, second = values(np.random.default_rng(1), 900)
    apart_I = second - first
    found = difference(mean(first), mean(second), permutations=1)
    assert found.smallest == pytest.approx(2.801585 * apart_I.std() / 30, rel=0.05)  # 2,000 resamples


def test_known_differences_are_found() -> None:
    random = np.random.default_rng(2)
    first, second = values(random, 300)
    found = difference(mean(first), mean(second + 3.0))
    assert found.p < 0.001 and 1 < found.low < 3 < found.high < 5 and found.smallest < 3
    rows, others = counts(random, 300)
    others[:, 6:] = np.minimum(others[:, 6:] + 1, others[:, 2:6])
    assert difference(bleu4(rows), bleu4(others)).p < 0.001
    shown = difference(mean(100.0 * (np.arange(100) < 20)), mean(100.0 * (np.arange(100) < 30)))
    assert (shown.p, shown.difference, shown.changed) == (pytest.approx(2 / 2**10), 10, 10)


def test_mcnemar_is_the_sum_over_all_coin_tosses() -> None:
    for only_first, only_second in itertools.product(range(9), repeat=2):
        tosses = only_first + only_second
        tail = sum(comb(tosses, k) for k in range(min(only_first, only_second) + 1))
        assert mcnemar(only_first, only_second) == pytest.approx(float(min(Fraction(1), Fraction(2 * tail, 2**tosses))), rel=1e-12)
    assert mcnemar(59, 6) == pytest.approx(2 * sum(comb(65, k) for k in range(7)) / 2**65, rel=1e-9)


@pytest.mark.parametrize("number", ["mean", "weighted", "bleu"])
def test_permutations_are_all_exchanges_of_a_small_set(number: str) -> None:
    """Against all 2^8, with plain code; equal differences by other sums count."""
    found = []
    for seed in range(5):
        random, make = np.random.default_rng(seed), bleu4
        first, second = counts(random, 8) if number == "bleu" else random.integers(0, 5, (2, 8)) / 3 * 10  # many equal sums
        if number != "bleu":
            make = partial(mean, weight_I=np.ones(8) if number == "mean" else random.integers(1, 4, 8).astype(float))
        apart = []
        for swapped in itertools.product([False, True], repeat=8):
            mixed = [
                make(np.stack([other if swap else own for own, other, swap in zip(a, b, swapped, strict=True)])).value
                for a, b in ((first, second), (second, first))
            ]
            apart.append(abs(mixed[1] - mixed[0]))
        exact = float(np.mean(np.array(apart) >= apart[0] - 1e-9))
        found.append(exact)
        assert difference(make(first), make(second), permutations=20_000).p == pytest.approx(exact, abs=0.014)
    assert len(set(found)) > 2 and min(found) < 0.6


def test_holm_is_its_definition() -> None:
    def slow(p: list[float], level: float) -> list[bool]:
        refused, left = [False] * len(p), sorted(range(len(p)), key=p.__getitem__)
        for place, test in enumerate(left):
            if p[test] > level / (len(p) - place):
                break
            refused[test] = True
        return refused

    random = np.random.default_rng(4)
    for count in (1, 2, 7, 30):
        p = (random.uniform(0, 1, count) ** 4).tolist()
        for level in (0.01, 0.05, 0.2):
            assert [value <= level for value in holm(p)] == slow(p, level)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and holm([]) == []


def test_only_pictures_that_both_have_are_compared() -> None:
    first, second = np.array([1.0, np.nan, 3.0, 4.0]), np.array([2.0, 5.0, np.nan, 4.0])
    found = difference(mean(first), mean(second))
    assert (found.images, found.difference, found.changed) == (2, 0.5, 1)
    assert difference(mean(first), mean(np.full(4, np.nan))) is None
    weighted = additive_numbers("masking", {"pointing": first, "pointing_count": np.array([3.0, 0, 1, 1])}, ("pointing",))
    assert weighted["pointing"].value == pytest.approx((3 * 1 + 3 + 4) / 5)


def of_seeds(first: list[np.ndarray], second: list[np.ndarray]) -> dict | None:
    return over_seeds([mean(value_I) for value_I in first], [mean(value_I) for value_I in second])


def test_what_is_the_same_for_both_models_falls_out():
    """Hard and easy pictures differ by 100, the models by 1 +- 0.1: the interval knows only the latter."""
    random = np.random.default_rng(0)
    hard_I = random.uniform(0, 100, 400)
    first = [hard_I + random.normal(0, 0.1, 400) for _ in range(3)]
    found = of_seeds(first, [values + 1 + random.normal(0, 0.1, 400) for values in first])
    assert found["low"] < found["difference"] < found["high"] and abs(found["difference"] - 1) < 0.02
    assert found["high"] - found["low"] < 0.03
    assert (found["images"], found["seeds"], found["seeds_above"]) == (400, 3, 3)


def test_intervals_hold_what_they_promise():
    """Of two equal models, the interval over pictures leaves out 0 in about one of twenty draws."""
    random, outside = np.random.default_rng(1), 0
    for _ in range(100):
        first, second = random.integers(0, 2, (2, 1, 150)) * 100.0
        found = of_seeds(list(first), list(second))
        outside += not found["low"] <= 0 <= found["high"]
    assert 1 <= outside <= 13


def test_pictures_without_the_number_in_one_of_the_runs_are_left_out():
    first, second = (
        [np.array([1.0, np.nan, 3.0]), np.array([1.0, 2.0, 3.0])],
        [np.array([2.0, 5.0, 3.0]), np.array([1.0, 9.0, 4.0])],
    )
    found = of_seeds(first, second)
    assert found["images"] == 2 and found["difference"] == 0.5 and found["seeds_above"] == 2
    assert of_seeds([np.array([np.nan])], [np.array([1.0])]) is None
    for wrong in ([], [first[0]], [first[0][:2], first[1]]):
        with pytest.raises(ValueError, match="as many numbers"):
            of_seeds(wrong, second)


def test_seeds_are_compared_by_the_numbers_of_the_table():
    """Not by plain means over pictures: where pictures count for more than one question, a gap is made of summed errors."""
    value_SI, count_I = np.array([[0.0, 100.0, 100.0], [100.0, 100.0, 0.0]]), np.array([1.0, 1.0, 2.0])
    found = over_seeds([mean(value_SI[0], count_I)], [mean(value_SI[1], count_I)])
    assert found["difference"] == -25.0 and value_SI[1].mean() - value_SI[0].mean() == 0
    errors = {"own_l1": np.array([1.0, 3.0]), "other_l1": np.array([2.0, 6.0])}
    (first, second) = (
        additive_numbers("reconstruction", each, ("gap",))["gap"] for each in (errors, {**errors, "own_l1": np.zeros(2)})
    )
    assert over_seeds([first], [second])["difference"] == 50.0

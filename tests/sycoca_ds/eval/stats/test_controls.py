"""Wrong captions, the gap and its interval."""

import itertools

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.stats.controls import gap_metrics, relative_gap, wrong_captions


def check_wrong(captions):
    other = wrong_captions(captions)
    assert sorted(other.tolist()) == list(range(len(captions)))
    for image, source in enumerate(other):
        own = {" ".join(caption.lower().split()) for caption in captions[image]}
        assert source != image
        assert " ".join(captions[source][0].lower().split()) not in own
    return other


def test_wrong_captions_roll_where_all_differ():
    assert check_wrong([["a"], ["b"], ["c"]]).tolist() == [1, 2, 0]


@pytest.mark.parametrize("seed", range(20))
def test_wrong_captions_with_repeats_and_several_captions(seed):
    rng = np.random.default_rng(seed)
    captions = [[f"Scene  {rng.integers(6)}", *(f"scene {rng.integers(6)}" for _ in range(rng.integers(0, 2)))] for _ in range(25)]
    first = check_wrong(captions)
    assert first.tolist() == wrong_captions(captions).tolist()


def test_images_that_cannot_swap_pass_their_captions_on():
    """No roll by one and no swap: of the 6 permutations this one alone is wrong everywhere."""
    assert check_wrong([["a", "b"], ["b", "c"], ["c", "a"]]).tolist() == [2, 0, 1]


@pytest.mark.parametrize("seed", range(8))
def test_a_permutation_is_found_wherever_there_is_one(seed):
    rng, found = np.random.default_rng(seed), 0
    for _ in range(50):
        captions = [[f"scene {number}" for number in rng.permutation(4)[: rng.integers(1, 4)]] for _ in range(5)]
        there = any(
            all(image != source and captions[source][0] not in captions[image] for image, source in enumerate(order))
            for order in itertools.permutations(range(5))
        )
        found += there
        if there:
            check_wrong(captions)
        else:
            with pytest.raises(UserError, match="no wrong caption"):
                wrong_captions(captions)
    assert 5 < found < 50


def test_no_wrong_caption_is_an_error():
    with pytest.raises(UserError, match="nearly all captions of the data set are equal"):
        wrong_captions([["a"], ["A "], ["a"], ["b"]])
    with pytest.raises(UserError, match="at least 2 images"):
        wrong_captions([["a"]])


def test_gap_by_hand():
    assert relative_gap(0.19, 0.2) == pytest.approx(5.0)
    numbers = gap_metrics(np.array([0.1, 0.3, 0.2]), np.array([0.2, 0.2, 0.4]))
    assert numbers["own_l1"] == pytest.approx(0.2) and numbers["other_l1"] == pytest.approx(0.8 / 3)
    assert numbers["gap"] == pytest.approx(25.0) and numbers["better_share"] == pytest.approx(200 / 3)


def test_interval_equals_the_normal_approximation_and_repeats():
    """For many images the bootstrap interval of a ratio of means is the delta method's."""
    rng = np.random.default_rng(1)
    other = rng.uniform(0.5, 1.5, 4000)
    own = 0.9 * other + rng.normal(0, 0.05, 4000)
    numbers = gap_metrics(own, other, seed=4)
    ratio = own.mean() / other.mean()
    half = 100 * 1.96 * np.std(own - ratio * other) / other.mean() / np.sqrt(4000)
    assert numbers["gap_low"] == pytest.approx(numbers["gap"] - half, abs=0.1 * half)
    assert numbers["gap_high"] == pytest.approx(numbers["gap"] + half, abs=0.1 * half)
    assert numbers == gap_metrics(own, other, seed=4)
    assert numbers != gap_metrics(own, other, seed=5)


def test_gap_needs_pairs():
    with pytest.raises(ValueError, match="equally long"):
        gap_metrics(np.ones(3), np.ones(2))

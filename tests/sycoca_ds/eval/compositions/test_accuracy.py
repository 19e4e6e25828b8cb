"""Official arithmetic against slow loops: strict wins, Winoground's three numbers, means over groups, intervals over pictures."""

from __future__ import annotations

import numpy as np
import pytest

from sycoca_ds.eval.compositions.accuracy import accuracies, own_wins, winoground_wins


def coarse(*shape: int, seed: int = 0) -> np.ndarray:
    """Scores of which many are equal."""
    return np.random.default_rng(seed).integers(0, 4, shape) / 4


def test_own_wins_by_strict_inequality() -> None:
    score_N12 = coarse(300, 1, 2)
    slow = [1 if score[0][0] > score[0][1] else 0 for score in score_N12.tolist()]
    assert own_wins(score_N12).astype(int).tolist() == slow and 0.2 < np.mean(slow) < 0.5
    assert not own_wins(np.full((3, 1, 2), 0.25)).any()
    assert own_wins(np.array([[[1.0, 0.5]], [[1.0, 0.7]]]), tie=0.4).tolist() == [True, False]


def test_winoground_as_its_authors_write_it() -> None:
    """Of 1,000 items with many ties; c1_i0 is the score of caption 1 and image 0."""
    score_N22 = coarse(1000, 2, 2)
    found = winoground_wins(score_N22)
    for number, ((c0_i0, c1_i0), (c0_i1, c1_i1)) in enumerate(score_N22.tolist()):
        text = c0_i0 > c1_i0 and c1_i1 > c0_i1
        image = c0_i0 > c0_i1 and c1_i1 > c1_i0
        assert (found["text"][number], found["image"][number], found["group"][number]) == (text, image, text and image)
    assert all(50 < won_N.sum() < 300 for won_N in found.values())


def test_winogrounds_chance_is_that_of_four_scores_in_any_order() -> None:
    found = winoground_wins(np.random.default_rng(1).random((200_000, 2, 2)))
    for part, chance in (("text", 1 / 4), ("image", 1 / 4), ("group", 1 / 6)):
        assert found[part].mean() == pytest.approx(chance, abs=0.005)


def test_groups_and_their_mean_against_a_loop() -> None:
    rng = np.random.default_rng(2)
    group = [f"g{number}" for number in rng.integers(0, 6, 400)]
    picture = [f"p{number}" for number in rng.integers(0, 90, 400)]
    won_N, counted = rng.random(400) < 0.6, ("g0", "g1", "g2", "g4")
    found = accuracies(won_N, group, picture, counted)
    share = {g: 100 * np.mean([won for won, of in zip(won_N, group, strict=True) if of == g]) for g in counted}
    assert {name: value for name, (value, _, _) in found.groups.items()} == pytest.approx(share)
    assert found.mean[0] == pytest.approx(np.mean(list(share.values())))
    assert found.mean[0] != pytest.approx(100 * np.mean([w for w, g in zip(won_N, group, strict=True) if g in counted]))


def test_the_interval_draws_pictures_with_all_their_items() -> None:
    """100 pictures with 20 items each that fare alike: as wide as that of 100 items."""
    fate = np.random.default_rng(3).random(100) < 0.5
    many = accuracies(np.repeat(fate, 20), ["g"] * 2000, np.repeat(np.arange(100), 20).tolist(), ["g"]).mean
    few = accuracies(fate, ["g"] * 100, range(100), ["g"]).mean
    assert many == pytest.approx(few) and many[2] - many[1] == pytest.approx(2 * 1.96 * 5, rel=0.1)
    slow, random = [], np.random.default_rng(4)
    for _ in range(4000):
        drawn = random.integers(0, 100, 100)
        slow.append(100 * np.mean([fate[picture] for picture in drawn]))
    assert many[1:] == pytest.approx(np.quantile(slow, [0.025, 0.975]).tolist(), abs=1.5)


def test_a_group_that_not_every_resample_draws_leaves_the_mean_to_the_others() -> None:
    won_N, group = np.array([True] * 9 + [False]), ["often"] * 9 + ["once"]
    found = accuracies(won_N, group, range(10), ("often", "once"))
    assert found.groups == {"often": (100.0, 100.0, 100.0), "once": (0.0, 0.0, 0.0)}
    assert found.mean == (50.0, 50.0, 100.0)


def test_what_nothing_was_asked_of_is_none() -> None:
    found = accuracies(np.array([True]), ["there"], ["p"], ("there", "gone"))
    assert found.groups == {"there": (100.0, 100.0, 100.0), "gone": (None, None, None)} and found.mean == (None, None, None)
    assert accuracies(np.array([True]), ["other"], ["p"], ("gone",)).mean == (None, None, None)
    assert accuracies(np.array([]), [], [], ()).mean == (None, None, None)

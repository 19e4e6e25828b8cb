"""Resampling in one go against one by one."""

from __future__ import annotations

import numpy as np
import pytest

from sycoca_ds.eval.stats import intervals
from sycoca_ds.eval.stats.intervals import bootstrap_interval, resampled


def test_counts_of_resamples_are_drawn_with_replacement() -> None:
    (times,) = resampled(40, seed=3, resamples=3000)
    assert times.shape == (3000, 40) and (times.sum(1) == 40).all() and times.min() == 0
    assert times.mean(0) == pytest.approx(np.ones(40), abs=0.1)
    assert times.var() == pytest.approx(1 - 1 / 40, abs=0.02), "binomial: 40 draws of a fortieth"
    assert np.array_equal(times, next(resampled(40, seed=3, resamples=3000)))


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resampled(40, seed=3, resamples=50)))
    monkeypatch.setattr(intervals, "AT_ONCE", 40 * 16)
    pieces = list(resampled(40, seed=3, resamples=50))
    assert [len(piece) for piece in pieces] == [16, 16, 16, 2]
    assert np.concatenate(pieces).sum() == whole.sum() and (np.concatenate(pieces).sum(1) == 40).all()


def test_both_give_the_interval_of_a_mean() -> None:
    value = np.random.default_rng(0).normal(3, 1, 400)
    drawn = np.concatenate([times @ value / 400 for times in resampled(400, seed=1)])
    one_by_one = bootstrap_interval(lambda rows: value[rows].mean(), 400, seed=2)
    assert tuple(np.quantile(drawn, [0.025, 0.975])) == pytest.approx(one_by_one, abs=0.02)
    assert one_by_one == pytest.approx((value.mean() - 1.96 * value.std() / 20, value.mean() + 1.96 * value.std() / 20), abs=0.02)

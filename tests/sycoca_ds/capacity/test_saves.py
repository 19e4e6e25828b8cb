"""The interval between saves against the exact model it approximates."""

from __future__ import annotations

import dataclasses
import math

import pytest

from sycoca_ds.capacity.saves import Saves, daly


def expected_seconds(interval: float, save: float, mttf: float, restart: float) -> float:
    """Daly (2006), equation 13: wall time of one second of work when failures come as a Poisson process."""
    return mttf * math.exp(restart / mttf) * math.expm1((interval + save) / mttf) / interval


def best_by_search(save: float, mttf: float) -> float:
    """The interval with the least expected time, by golden-section search on its logarithm."""
    low, high, ratio = math.log(save / 10), math.log(10 * mttf), (math.sqrt(5) - 1) / 2

    def at(x: float) -> float:
        return expected_seconds(math.exp(x), save, mttf, 0.0)

    for _ in range(200):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if at(a) < at(b) else (a, high)
    return math.exp(low)


@pytest.mark.parametrize("save, mttf", [(10, 6.6e6), (60, 6.6e6), (30, 28_000), (300, 28_000), (300, 3_600)])
def test_the_interval_is_the_exact_model_s_best(save: float, mttf: float) -> None:
    """Daly's estimate is good to some permille where saves are short; it never costs more than a ten-thousandth."""
    best = best_by_search(save, mttf)
    assert daly(save, mttf) == pytest.approx(best, rel=0.02)
    assert expected_seconds(daly(save, mttf), save, mttf, 60) < 1.0001 * expected_seconds(best, save, mttf, 60)


def test_young_s_rule_is_the_limit_and_hopeless_saves_end_at_the_mean_time() -> None:
    assert daly(1.0, 1e8) == pytest.approx(math.sqrt(2e8), rel=1e-3)
    assert daly(100.0, 40.0) == 40.0


@pytest.mark.parametrize("interval", [600.0, 3_000.0, 20_000.0])
def test_the_share_that_is_lost_is_the_exact_model_s(interval: float) -> None:
    saves = Saves(bytes=0, copy=0, copied=True, seconds=30.0, mttf=1e6, interval=interval, restart=300.0)
    exact = 1 - 1 / expected_seconds(interval, 30.0, 1e6, 300.0)
    assert saves.lost(interval) == pytest.approx(exact, rel=0.05)
    free = dataclasses.replace(saves, seconds=0.0, interval=0.0)
    assert free.lost(0.0) == pytest.approx(300 / 1e6), "restarts alone"

"""What a step's loss and gradient norm are held against, over sequences of steps."""

from __future__ import annotations

import pytest
import torch

from sycoca_ds.engine.safety.guard import most, remember

SIGMA, WINDOW = 6.0, 128


def usual(steps: int = 200, seed: int = 0) -> torch.Tensor:
    """Loss and gradient norm of steps without a spike: 2 +- 0.1 and 5 +- 0.5."""
    noise = torch.randn(2, steps, generator=torch.Generator().manual_seed(seed))
    return torch.tensor([[2.0], [5.0]]) + torch.tensor([[0.1], [0.5]]) * noise


def after(steps: torch.Tensor) -> torch.Tensor:
    history = torch.empty(2, 0)
    for values in steps.T:
        history = remember(history, values, SIGMA, WINDOW)
    return history


def skipped(history: torch.Tensor, norm: float, steps: int) -> int:
    """How many of so many steps with this gradient norm are skipped before the first that is not."""
    for number in range(steps):
        values = torch.tensor([2.0, norm])
        if not (values > most(history, SIGMA, WINDOW)).any():
            return number
        history = remember(history, values, SIGMA, WINDOW)
    return steps


def test_no_spike_before_the_window_is_full() -> None:
    history = after(usual(WINDOW - 1))
    assert history.shape == (2, WINDOW - 1) and most(history, SIGMA, WINDOW).tolist() == [torch.inf] * 2
    history = remember(history, torch.tensor([2.0, 5.0]), SIGMA, WINDOW)
    assert torch.isfinite(most(history, SIGMA, WINDOW)).all() and most(history, 0.0, WINDOW).tolist() == [torch.inf] * 2


def test_the_bound_is_the_mean_and_some_deviations_of_the_last_steps() -> None:
    steps = usual(300)
    last = steps[:, -WINDOW:]
    expected = last.mean(dim=1) + SIGMA * last.std(dim=1)
    assert most(after(steps), SIGMA, WINDOW).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_level_that_has_risen_for_good_is_taken_on_and_one_far_beyond_is_not() -> None:
    """Without that a run whose gradients have doubled ends after `max_skipped_steps` of them, however well it learns."""
    history = after(usual())
    assert skipped(history, 5 + 0.5 * 5, 20) == 0
    assert 1 <= skipped(history, 5 + 0.5 * 9, 20) <= 5
    assert skipped(history, 5 + 0.5 * 100, 20) >= 10


def test_one_huge_number_does_not_hide_those_that_follow() -> None:
    history = after(usual())
    before = most(history, SIGMA, WINDOW)
    behind = most(remember(history, torch.tensor([2.0, 1e9]), SIGMA, WINDOW), SIGMA, WINDOW)
    assert before[1] < behind[1] < 1.1 * before[1] and behind[0] <= before[0] * 1.01

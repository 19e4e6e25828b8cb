"""Masking against loop-by-loop references, ties included."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from sycoca_ds.config import hidden_count
from sycoca_ds.model.masking.patches import put_patches, random_scores, split_patches, take_patches


@pytest.mark.parametrize("patches", [1, 2, 9, 25, 36, 196, 255])
@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.58, 0.625, 0.75, 0.99])
@pytest.mark.parametrize("hide", ["highest", "lowest"])
def test_split_hides_exactly_the_ranked_patches(patches: int, ratio: float, hide: str) -> None:
    """Against sorting in Python: scores from a handful of values, so that most are ties; the lower number is hidden first."""
    scores = torch.randint(0, 4, (5, patches), generator=torch.Generator().manual_seed(patches)).float()
    keep, hidden = split_patches(scores, ratio, hide)
    count = hidden_count(patches, ratio)
    assert count == int(Fraction(str(ratio)) * patches + Fraction(1, 2))
    for row in range(5):
        sign = -1 if hide == "highest" else 1
        ranked = sorted(range(patches), key=lambda i: (sign * float(scores[row, i]), i))
        assert keep[row].tolist() == sorted(ranked[count:])
        assert torch.nonzero(hidden[row]).squeeze(1).tolist() == sorted(ranked[:count])


def test_split_refuses_an_unknown_side() -> None:
    with pytest.raises(ValueError, match="expected 'highest' or 'lowest'"):
        split_patches(torch.zeros(1, 4), 0.5, "top")


def test_put_patches_undoes_take_patches() -> None:
    torch.manual_seed(1)
    x, scores, fill = torch.randn(4, 9, 3), torch.rand(4, 9), torch.tensor([7.0, 8.0, 9.0])
    keep, hidden = split_patches(scores, 0.4, "highest")
    full = put_patches(fill, take_patches(x, keep), keep, 9)
    for b in range(4):
        for i in range(9):
            assert torch.equal(full[b, i], fill if hidden[b, i] else x[b, i])


def test_random_scores_depend_on_the_sample_alone() -> None:
    keys = torch.tensor([5, 1 << 40, 12345678901, 0])
    scores = random_scores(keys, 64, salt=1)
    assert torch.equal(scores[[2]], random_scores(keys[[2]], 64, salt=1)), "neither batch nor place in it may matter"
    assert (scores != random_scores(keys, 64, salt=2)).float().mean() > 0.99
    assert ((scores >= 0) & (scores < 1)).all()


def test_random_scores_are_uniform_and_uncorrelated() -> None:
    """Moments within five standard errors over 10,000 neighbouring keys; neighbouring keys and places do not correlate."""
    scores = random_scores(torch.arange(10_000), 36).double()
    n = scores.numel()
    assert abs(scores.mean().item() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(scores.var().item() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    centred = scores - 0.5
    for product in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(product.mean().item()) < 5 / 12 / product.numel() ** 0.5
    hidden = split_patches(scores.float(), 0.5, "highest")[1].double()
    assert (hidden.mean(dim=0) - 0.5).abs().max() < 5 * 0.5 / 100, "every place is hidden equally often"

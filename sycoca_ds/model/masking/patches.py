"""From scores to masks: which patches are hidden, as pure functions on tensors (paper section 3.3). No gradient flows through any
of them. The scores are those of `scores.py`, or noise."""

from __future__ import annotations

import torch
from torch import Tensor

from sycoca_ds.config import hidden_count


@torch.no_grad()
def random_scores(key_B: Tensor, patches: int, salt: int = 0) -> Tensor:
    """Noise in [0, 1) as scores, a pure function of each sample's key, so that it depends on neither rank nor batch.

    Args:
        key_B: int64, one a sample.
        salt: another salt gives other noise for the same keys.

    Returns:
        (B, N) float32. A 32-bit integer hash (multiply-xorshift, the constants of "lowbias32") of key and position.
    """
    mask = 0xFFFFFFFF
    place_N = torch.arange(patches, device=key_B.device, dtype=torch.int64)
    x = (key_B[:, None] * 0x9E3779B1 + (key_B[:, None] >> 32) * 0x85EBCA6B + place_N * 0xC2B2AE35 + salt * 0x27D4EB2F) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & mask
    return ((x ^ (x >> 16)) >> 8).float() / float(1 << 24)


@torch.no_grad()
def split_patches(score_BN: Tensor, ratio: float, hide: str) -> tuple[Tensor, Tensor]:
    """Hides the patches with the highest or lowest scores.

    Args:
        score_BN: float scores.
        ratio: share of patches to hide; `hidden_count(N, ratio)` are hidden in every row.
        hide: "highest" or "lowest". Equal scores: the lower patch number is hidden first.

    Returns:
        (keep_BK int64 numbers of the visible patches in ascending order, hidden_BN bool).
    """
    if hide not in ("highest", "lowest"):
        raise ValueError(f"hide = {hide!r}: expected 'highest' or 'lowest'")
    n = score_BN.shape[1]
    hidden = hidden_count(n, ratio)
    order_BN = torch.sort(score_BN, dim=1, descending=hide == "highest", stable=True).indices
    hidden_BN = torch.zeros_like(score_BN, dtype=torch.bool).scatter_(1, order_BN[:, :hidden], True)
    return order_BN[:, hidden:].sort(dim=1).values, hidden_BN


def take_patches(x_BND: Tensor, keep_BK: Tensor) -> Tensor:
    """The kept rows: (B, N, D), (B, K) -> (B, K, D)."""
    return x_BND.gather(1, keep_BK[:, :, None].expand(-1, -1, x_BND.shape[2]))


def put_patches(fill_D: Tensor, kept_BKD: Tensor, keep_BK: Tensor, patches: int) -> Tensor:
    """The inverse of `take_patches`: kept rows at their places, `fill_D` everywhere else: (B, N, D)."""
    full_BND = fill_D.expand(len(kept_BKD), patches, -1)
    return full_BND.scatter(1, keep_BK[:, :, None].expand_as(kept_BKD), kept_BKD)

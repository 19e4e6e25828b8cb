"""Blocks one after another, whose activations may be recomputed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_block(block: nn.Module, *inputs: Tensor | None, recompute: bool) -> Tensor:
    """Runs a block, keeping only its input for the backward pass when `recompute` is set.

    Only the non-reentrant form is right under ZeRO-3 with an encoder that runs twice a step: the reentrant one fails with
    "gradient computed twice", and DeepSpeed's own drops the gradient of a block whose input needs none. There is no dropout,
    so no random state has to be kept.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)


def recomputes(number: int, every: int) -> bool:
    """Whether a part recomputes its block of this number: 0 none, 1 every block, k every k-th."""
    return every > 0 and number % every == 0


def run_blocks(
    blocks: Sequence[nn.Module],
    x_BLD: Tensor,
    *others: Tensor | None,
    recompute: int,
    between: tuple[Iterable[nn.Module], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs blocks one after another; `others` go to each of them, `recompute` as in `recomputes`.

    Args:
        between: a cross block behind each block, and what all of these attend to.

    Returns:
        (the last block's output, its input).
    """
    last_BLD = x_BLD
    crosses, other = between or (itertools.repeat(None, len(blocks)), None)
    for number, (block, cross) in enumerate(zip(blocks, crosses, strict=True)):
        again = recomputes(number, recompute)
        last_BLD, x_BLD = x_BLD, run_block(block, x_BLD, *others, recompute=again)
        if cross is not None:
            x_BLD = run_block(cross, x_BLD, other, recompute=again)
    return x_BLD, last_BLD

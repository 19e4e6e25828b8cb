"""Caption generation. A fixed number of steps, agreed by all ranks beforehand: a rank that stopped early would leave the
others waiting for its parameter shards under ZeRO-3."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sycoca_ds.model.text_encoder import EOT_ID, PAD_ID, SOT_ID


@torch.no_grad()
def greedy(next_logits: Callable[[Tensor], Tensor], batch: int, steps: int, device: torch.device) -> Tensor:
    """The most likely token at every step.

    Args:
        next_logits: int64 (B, L) prefixes starting with [SOT] -> (B, V) logits of the next token.
        steps: tokens to produce; the prefix grows to `steps`, so it must fit the context length.

    Returns:
        int64 (B, steps); pads after [EOT].
    """
    text_BL = torch.full((batch, 1), SOT_ID, dtype=torch.int64, device=device)
    ended_B = torch.zeros(batch, dtype=torch.bool, device=device)
    for _ in range(steps):
        logits_BV = next_logits(text_BL)
        logits_BV[:, [PAD_ID, SOT_ID]] = float("-inf")  # never labels, so their logits mean nothing
        token_B = logits_BV.argmax(dim=1).masked_fill(ended_B, PAD_ID)
        ended_B |= token_B == EOT_ID
        text_BL = torch.cat([text_BL, token_B[:, None]], dim=1)
    return text_BL[:, 1:]

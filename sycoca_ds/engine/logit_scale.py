"""Keeps the learned logit scale at or below its bound after every step, as CLIP does with the parameter itself.

The model bounds the value it uses; without this the parameter could wander above the bound, step by step, and would need as many
steps to come back into reach.
"""

from __future__ import annotations

import math

import torch

from sycoca_ds.engine.master_weights import master_piece
from sycoca_ds.model.sycoca import SyCoCa


@torch.no_grad()
def bound_logit_scale(model: SyCoCa) -> None:
    """Cuts the float32 master of `model.logit_scale` at ln(max_logit_scale), where DeepSpeed keeps it. No collective, no wait.

    Call it after the engine's step: what a low-precision copy still holds above the bound, the model's forward cuts.
    """
    piece = master_piece(model.logit_scale)
    if piece is not None:  # on one rank, or without ZeRO on all
        piece.values.clamp_(max=math.log(model.config.max_logit_scale))

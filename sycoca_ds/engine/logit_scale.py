"""Keeps the learned logit scale at or below its bound after every step, as CLIP does with the parameter itself.

The model bounds the value it uses; without this the parameter could wander above the bound, step by step, and would need as many
steps to come back into reach.
"""

from __future__ import annotations

import math

import torch

from sycoca_ds.model.sycoca import SyCoCa


@torch.no_grad()
def bound_logit_scale(model: SyCoCa) -> None:
    """Cuts the float32 master of `model.logit_scale` at ln(max_logit_scale), where DeepSpeed keeps it. No collective, no wait.

    Call it after the engine's step: what a low-precision copy still holds above the bound, the model's forward cuts.
    """
    from deepspeed.utils import safe_get_local_fp32_param, safe_set_local_fp32_param

    parameter, largest = model.logit_scale, math.log(model.config.max_logit_scale)
    if hasattr(parameter, "ds_id"):  # ZeRO-3: every rank has a piece, or padding, which a bound from above leaves alone
        safe_set_local_fp32_param(parameter, safe_get_local_fp32_param(parameter).clamp(max=largest))
    elif not hasattr(parameter, "_hp_mapping"):  # no ZeRO: the parameter is its own master
        parameter.clamp_(max=largest)
    elif parameter._hp_mapping is not None:  # ZeRO-1 and 2: on one rank
        parameter._hp_mapping.get_hp_fragment().clamp_(max=largest)

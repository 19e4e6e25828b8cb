"""Where DeepSpeed keeps a rank's part of the float32 weights that the optimizer changes, at every ZeRO stage."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """A run of consecutive numbers of a parameter."""

    start: int
    """Place of the first one in the flattened parameter."""
    values: Tensor
    """1-D, float32."""


def master_piece(parameter: torch.nn.Parameter) -> Piece | None:
    """This rank's piece of a parameter of a DeepSpeed engine, None where it has none. No collective, no copy.

    The values are those that the optimizer changes, on the device where it does, without the padding behind a last piece.
    """
    if hasattr(parameter, "ds_id"):  # ZeRO-3 cuts every parameter for itself
        # not safe_get_local_fp32_param: with offloading that is a copy on the GPU
        values, _ = parameter._z3_optimizer._get_fp32_opt_state_partition(parameter, release_swap_buffers=False)
        start = values.numel() * parameter._z3_optimizer._get_param_partition_rank(parameter)
        values = values[: max(0, parameter.ds_numel - start)]
    elif not hasattr(parameter, "_hp_mapping"):  # no ZeRO: the parameter is its own master
        start, values = 0, parameter.view(-1)
    elif parameter._hp_mapping is None:  # ZeRO-1 and 2 cut all parameters laid end to end: this one is other ranks'
        return None
    else:
        start, values = parameter._hp_mapping.lp_fragment_address.start, parameter._hp_mapping.get_hp_fragment()
    return Piece(start, values.detach()) if values.numel() else None


def master_pieces(model: torch.nn.Module) -> dict[str, Piece]:
    """This rank's pieces of all parameters, by name."""
    found = {name: master_piece(parameter) for name, parameter in model.named_parameters()}
    return {name: piece for name, piece in found.items() if piece is not None}

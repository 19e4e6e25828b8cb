"""Where DeepSpeed keeps a rank's part of the float32 weights that the optimizer changes, at every ZeRO stage; shares of weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Piece(NamedTuple):
    """A run of consecutive numbers of a parameter."""

    start: int
    """Place of the first one in the flattened parameter."""
    values: Tensor
    """1-D, float32."""


class Share(NamedTuple):
    """The `number`-th of `shares` equal pieces of every flattened weight; the last ones may be shorter, or empty."""

    number: int
    shares: int

    def bounds(self, numel: int) -> tuple[int, int]:
        """(first, end) of its numbers; with no share at all (0, 0)."""
        each = -(-numel // self.shares) if self.shares else 0
        return min(numel, self.number * each), min(numel, (self.number + 1) * each)

    def piece(self, numel: int, dtype: torch.dtype) -> Piece:
        """Room for them."""
        first, end = self.bounds(numel)
        return Piece(first, torch.empty(end - first, dtype=dtype))

    def shaped(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """As it is handed out: a whole weight in its shape, a share of one flat."""
        return values.view(tuple(shape)) if self == WHOLE else values


WHOLE, NOTHING = Share(0, 1), Share(0, 0)


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

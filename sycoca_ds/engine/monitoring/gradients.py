"""The gradient's norm, in total and of each part of the model, under every ZeRO stage."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sycoca_ds.engine.ranks.runtime import Runtime


def owned_gradient(parameter: nn.Parameter) -> Tensor | None:
    """The piece of a parameter's gradient that this rank's optimizer works on, summed over micro-batches and ranks; None: none.

    Under ZeRO the ranks' pieces are disjoint and together the whole; without ZeRO every rank has the whole. They are there after
    the backward pass of a step's last micro-batch and gone after the engine's step. Reads what DeepSpeed 0.19.8 keeps:
    `safe_get_full_grad`, its public way, would put every gradient together on every rank, a collective a parameter.
    """
    if hasattr(parameter, "ds_id"):  # ZeRO-3: a piece of every parameter on every rank, padded with zeros
        from deepspeed.utils import safe_get_local_grad

        return safe_get_local_grad(parameter)
    if not hasattr(parameter, "_hp_mapping"):  # no ZeRO
        return parameter.grad
    mapping = parameter._hp_mapping
    if mapping is None:  # ZeRO-1 and 2: other ranks own it
        return None
    piece = mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
    if piece.numel() == parameter.numel():  # ZeRO-1 in bf16 sums whole gradients on every rank
        place = mapping.lp_fragment_address
        piece = piece.narrow(0, place.start, place.numel)
    return piece


class GradientNorms:
    """Norms of one step's gradient, before clipping."""

    def __init__(self, runtime: Runtime):
        self.runtime, self._parts, self._squares = runtime, (), None

    @torch.no_grad()
    def measure(self, engine) -> None:
        """Between a step's last backward pass and its update, on every rank; one collective of a few numbers, no wait."""
        pieces: dict[str, list[Tensor]] = {}
        for name, parameter in engine.module.named_parameters():
            own, piece = pieces.setdefault(name.split(".")[0], []), owned_gradient(parameter)
            if piece is not None and piece.numel():
                own.append(piece.float())
        none = torch.zeros((), device=self.runtime.device)
        squares = [nn.utils.get_total_norm(own).to(none) ** 2 if own else none for own in pieces.values()]
        self._parts, self._squares = tuple(pieces), torch.stack(squares)
        if engine.zero_optimization_stage() > 0 and self.runtime.world_size > 1:
            dist.all_reduce(self._squares)

    def read(self) -> dict[str, float]:
        """`grad_norm` and `grad_norm/PART` of what was measured last; nothing if nothing was. The parts' squares add up to the
        total's."""
        if self._squares is None:
            return {}
        values, self._squares = self._squares.double(), None
        parts = zip(self._parts, values.sqrt().tolist(), strict=True)
        return {"grad_norm": values.sum().sqrt().item()} | {f"grad_norm/{part}": value for part, value in parts}

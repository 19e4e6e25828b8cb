"""The values that weights begin with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def initialise(
    model: nn.Module, std: float, seed: int, whole: Callable[[nn.Parameter], AbstractContextManager] = nullcontext
) -> None:
    """N(0, std) for every weight matrix and embedding, 1 for norms, 0 for biases; `SyCoCa` sets its logit scale itself.

    The values depend on `seed` and the parameters' names' order alone, so every rank builds the same model.

    Args:
        whole: in it a parameter has all its numbers, where ranks have shared them among each other.

    Raises:
        RuntimeError: a parameter of a kind this function does not know, which would keep raw memory.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    rules: list[tuple[Callable[[str, Tensor], bool], Callable[[Tensor], object]]] = [
        (lambda name, p: id(p) in norms and name.endswith("weight"), lambda p: p.fill_(1.0)),
        (lambda name, p: name.endswith("bias"), lambda p: p.zero_()),
        (lambda name, p: p.ndim >= 2 or name.endswith("_embedding"), lambda p: p.normal_(0.0, std, generator=generator)),
    ]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                continue
            with whole(parameter):
                for applies, fill in rules:
                    if applies(name, parameter):
                        fill(parameter)
                        break
                else:
                    raise RuntimeError(f"no initialisation rule for parameter {name} of shape {tuple(parameter.shape)}")

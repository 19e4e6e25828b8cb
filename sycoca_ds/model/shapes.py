"""Names and shapes of a model's parameters, and whether given tensors have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.model.sycoca import SyCoCa

Shape = tuple[int, ...]
NAMES_SHOWN = 4
"""Tensor names an error lists before it says how many more there are."""


def our_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every parameter of a model, without allocating one."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in SyCoCa(config, seed=None).state_dict().items()}


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Shape], whose: str) -> None:
    """Raises `UserError` unless `given` has exactly the expected names and shapes, naming those that are off."""
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    shaped = [
        f"{name} {tuple(given[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    faults = [
        f"{what}: {_shorten(names)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shaped))
        if names
    ]
    if faults:
        raise UserError(f"{whose} do not fit the model; {'; '.join(faults)}. Choose the model whose shapes they have")

"""Names and shapes of a model's parameters, and whether given tensors have them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.model.sycoca import SyCoCa

Shape = tuple[int, ...]
NAMES_SHOWN = 4
"""Tensor names an error lists before it says how many more there are."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Components that torch.compile, FSDP and activation checkpointing put into the names of what they wrap."""


class _WithoutFirstValues(TorchFunctionMode):
    """Leaves out `torch.nn.init`, which on the meta device imports torch's compiler: more than a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def our_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every parameter of a model, without allocating one."""
    with torch.device("meta"), _WithoutFirstValues():
        return {name: tuple(value.shape) for name, value in SyCoCa(config, seed=None).state_dict().items()}


def _shorten(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def unwrapped(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """A state dict under the names of the model itself, without those of what it was wrapped in: DDP (`module.` before every name),
    torch.compile, FSDP and activation checkpointing (components of their own, around the whole or any part), in any combination.

    Raises:
        UserError: two names become one; `where` is named.
    """
    cut = {name: [part for part in name.split(".") if part not in WRAPPERS] or [name] for name in state}
    while cut and all(parts[0] == "module" and len(parts) > 1 for parts in cut.values()):
        cut = {name: parts[1:] for name, parts in cut.items()}
    taken: dict[str, str] = {}
    for name, parts in cut.items():
        first = taken.setdefault(".".join(parts), name)
        if first != name:
            raise UserError(f"{where}: {first} and {name} are one name without wrappers: leave one of them out")
    return {plain: state[name] for plain, name in taken.items()}


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

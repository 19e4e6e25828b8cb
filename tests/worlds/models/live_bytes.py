"""Bytes of all tensors that are alive, counted while a step runs: what a GPU's allocator would have to hold, without a GPU."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Place -> bytes of the memory behind tensors, each once."""
    found = {}
    for x in tensors:
        storage = x.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def tensors_alive() -> list[torch.Tensor]:
    """Every tensor that Python's collector finds."""
    gc.collect()
    return [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.device.type == "cpu"]


class LiveBytes(TorchDispatchMode):
    """Follows every storage that an operation makes until it is freed, in the forward and the backward pass.

    `now` and `most` are bytes of storages made since the start; `begin()` forgets the highest so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, weakref.ref] = {}

    def begin(self) -> None:
        self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {id(x.untyped_storage()) for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)}
        for x in tree_flatten(out)[0]:
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if id(storage) not in given and id(storage) not in self._known:
                    self._follow(storage)
        self.most = max(self.most, self.now)
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        size, key = storage.nbytes(), id(storage)
        self.now += size

        def freed(_: weakref.ref) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, freed)

"""A GPU that is not there: tensors on it have shapes and types but no numbers, tensors on the host are real.

The device is torch's "meta". `FakeTensorMode` has tensors of device "cuda", but in a build of torch without CUDA only for half of
what is needed here: `zeros(.., device="cuda")` works, `.to("cuda")`, `nonzero` and `uniform_` ask for the CUDA library. So the
rules of a GPU stand here: what mixes its tensors with the host's is an error, and what needs their numbers on the host makes the
host wait.

Not seen: numbers; whether a kernel takes these types; memory; what DeepSpeed does; code that asks whether a device's type is
"cuda"; host tensors without dimensions, which most operations take as a number; waits inside a single operation.
"""

from __future__ import annotations

import contextlib
import linecache
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.worlds import REPOSITORY

GPU = torch.device("meta")
aten = torch.ops.aten
FROM_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)


class WrongDevice(RuntimeError):
    """An operation on tensors of the GPU and of the host."""


def on_gpu(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == GPU.type


class FakeGpu(TorchDispatchMode):
    """What `fake_gpu` gives.

    Attributes:
        waits: the lines of sycoca_ds at which the host waited for the device, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def waited(self, why: str) -> None:
        frame, package = sys._getframe(1), f"{REPOSITORY / 'sycoca_ds'}/"
        while frame.f_back is not None and not frame.f_code.co_filename.startswith(package):
            frame = frame.f_back
        path, line = frame.f_code.co_filename, frame.f_lineno
        self.waits.append(f"{path.removeprefix(f'{REPOSITORY}/')}:{line} {linecache.getline(path, line).strip()} ({why})")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._can_decompose():  # without autograd torch hands over operations that consist of others
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        here = [x for x in tensors if on_gpu(x)]
        if func is aten._to_copy.default and "device" in kwargs:
            to_gpu = kwargs["device"].type == GPU.type
            if bool(here) != to_gpu and not (to_gpu and kwargs.get("non_blocking")):
                self.waited("a copy between host and device")
            if here and not to_gpu:
                return torch.zeros(here[0].shape, dtype=kwargs.get("dtype") or here[0].dtype)
        if not here:
            return func(*args, **kwargs)
        away = [x for x in tensors if not on_gpu(x) and x.ndim]
        if away and func is aten.copy_.default:
            self.waited("a copy between host and device")
            return args[0] if on_gpu(args[0]) else args[0].zero_()
        if func in INDEXING and on_gpu(args[0]):
            indices = [x for x in args[1] if x is not None]
            if any(not on_gpu(x) or x.dtype in (torch.bool, torch.uint8) for x in indices):
                self.waited("an index on the host, or a mask as index")
                indices = [None if x is None else torch.zeros(x.shape, dtype=torch.int64, device=GPU) for x in args[1]]
                return func(args[0], indices, *args[2:], **kwargs)
        elif away:
            raise WrongDevice(f"{func} of tensors on the GPU {[*map(_shape, here)]} and on the host {[*map(_shape, away)]}")
        if func is aten._local_scalar_dense.default:
            self.waited("a number")
            return getattr(args[0], "is_all", False) if args[0].dtype == torch.bool else torch.zeros((), dtype=args[0].dtype).item()
        if func is aten.nonzero.default:
            self.waited("a number of places")
            return torch.empty(args[0].numel(), args[0].ndim, dtype=torch.int64, device=GPU)
        if func is aten.equal.default:
            self.waited("whether two tensors are equal")
            return True
        result = func(*args, **kwargs)
        if func in (aten.all.default, aten.all.dim):
            result.is_all = True
        return result


class _Numbers(TorchFunctionMode):
    """Sees tensors made on the device out of the host's numbers, which is no operation to a `TorchDispatchMode`."""

    def __init__(self, gpu: FakeGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in FROM_NUMBERS and on_gpu(made) and not on_gpu(args[func is Tensor.new_tensor]):
            self.gpu.waited("a copy of the host's numbers")
        return made


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeGpu]:
    """`with fake_gpu() as gpu:` around code that is given tensors on `GPU`. What the host asks the device for is answered: numbers
    are 0, `all(..)` is true, and nothing is zero to `nonzero`.

    Raises:
        WrongDevice: in the code, where it mixes tensors of the two.
    """
    gpu = FakeGpu()
    with _Numbers(gpu), gpu:
        yield gpu


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)

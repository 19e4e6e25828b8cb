"""torch's compiler is imported when something is compiled. Nothing of a training is, and the import takes longer than torch's own.

Three things ask for it without need: the first optimizer and every hook of ZeRO-3, which mark functions as not to be compiled, and
a function of an optimizer that DeepSpeed knows, Muon, which is compiled as its module is imported.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

COMPILER = "torch._dynamo"


def import_compiler_late() -> None:
    """Makes torch mark and compile functions when there is a compiler; called before DeepSpeed is imported, any number of times.

    A function that is marked is called as it is for as long as there is none: then nothing can be compiling it.
    """
    if hasattr(torch.compiler.disable, "own"):
        return
    marks = torch._disable_dynamo(len).__code__
    for name, method in list(vars(torch.optim.Optimizer).items()):
        if getattr(method, "__code__", None) is marks:  # marked at torch's own import
            setattr(torch.optim.Optimizer, name, _once_there(method.__wrapped__, functools.partial(_same, method)))
    torch.compiler.disable = _late(torch.compiler.disable)
    torch._disable_dynamo = _late(torch._disable_dynamo)


def import_muon() -> None:
    """Imports DeepSpeed's Muon, which every engine asks for, with its function compiled at its first call."""
    own = torch.compile
    torch.compile = lambda function: _once_called(function, functools.partial(own, function))
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        torch.compile = own


def _same(value: Any) -> Any:
    return value


def _late(own: Callable[..., Any]) -> Callable[..., Any]:
    """In place of `torch.compiler.disable` or its like."""

    def disable(fn: Any = None, *arguments: Any, **named: Any) -> Any:
        if fn is None:
            return functools.partial(disable, *arguments, **named)
        if COMPILER in sys.modules or not inspect.isroutine(fn):
            return own(fn, *arguments, **named)
        return _once_there(fn, functools.partial(own, fn, *arguments, **named))

    disable.own = own
    return disable


def _once_there(fn: Callable[..., Any], marked: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """`fn`, and what `marked` makes of it from when on there is a compiler."""
    marked = functools.cache(marked)

    @functools.wraps(fn)
    def called(*arguments: Any, **named: Any) -> Any:
        return (marked() if COMPILER in sys.modules else fn)(*arguments, **named)

    return called


def _once_called(fn: Callable[..., Any], made: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    made = functools.cache(made)

    @functools.wraps(fn)
    def called(*arguments: Any, **named: Any) -> Any:
        return made()(*arguments, **named)

    return called

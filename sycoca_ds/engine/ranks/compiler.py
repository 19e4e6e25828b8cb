"""torch's compiler is imported when something is compiled. Nothing of a training is, and the import takes longer than torch's own.

Four things ask for it without need: ZeRO-3's hooks, activation checkpointing and optimizers, which mark functions as not to be
compiled; optimizers again, whose step says where a compiler is to cut; checkpointing again, which looks up one of its settings and
does not use it; and an optimizer that DeepSpeed knows, Muon, which compiles as it is imported.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import _use_grad_for_differentiable
from torch.utils import checkpoint as checkpointing

COMPILER = "torch._dynamo"


def import_compiler_late() -> None:
    """Makes torch mark and compile functions when there is a compiler; called before DeepSpeed is imported, any number of times.

    A function that is marked is called as it is for as long as there is none: then nothing can be compiling it.
    """
    if hasattr(torch.compiler.disable, "own"):
        return
    marked, cut = torch._disable_dynamo(len).__code__, _use_grad_for_differentiable(len).__code__
    for owner in (checkpointing, *(one for one in vars(torch.optim).values() if isinstance(one, type))):
        for name, function in list(vars(owner).items()):  # as they are since torch's own import
            code = getattr(function, "__code__", None)
            if code is marked:
                _mark_late(function)
            elif code is cut:
                step = _with_own_gradients(function.__wrapped__)
                setattr(owner, name, _once_there(step, functools.partial(_same, function)))
    torch.compiler.disable = _late(torch.compiler.disable)
    if COMPILER not in sys.modules:
        config = _Absent(f"{COMPILER}.config", error_on_nested_fx_trace=True)  # its default
        torch._dynamo = _Absent(COMPILER, config=config, disable=torch.compiler.disable)
    torch._disable_dynamo = _late(torch._disable_dynamo)


def import_muon() -> None:
    """Imports DeepSpeed's Muon, which every engine asks for, with its function compiled at its first call."""
    own = torch.compile
    torch.compile = lambda function: _once_called(function, functools.partial(own, function))
    try:
        import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
    finally:
        torch.compile = own


def _mark_late(marked: Callable[..., Any]) -> None:
    """Of a function that is marked: torch does so at its first call, and keeps what has come of it in this attribute."""
    own = inspect.getclosurevars(marked).nonlocals
    fn, recursive = own["fn"], own["recursive"]
    setattr(fn, "__dynamo_disable", _once_there(fn, lambda: torch._dynamo.disable(fn, recursive, wrapping=False)))


class _Absent:
    """In place of a module that has not been imported: it is as soon as anything else of it is asked for, and then stands there."""

    def __init__(self, name: str, **known: Any) -> None:
        self._name = name
        vars(self).update(known)

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


def _same(value: Any) -> Any:
    return value


def _with_own_gradients(step: Callable[..., Any]) -> Callable[..., Any]:
    """An optimizer's step as torch wraps it, less what is for a compiler."""

    @functools.wraps(step)
    def wrapped(optimizer: torch.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return step(optimizer, *arguments, **named)

    return wrapped


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

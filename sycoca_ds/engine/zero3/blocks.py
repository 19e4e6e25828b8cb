"""ZeRO-3 gathers, and lets go, the weights of a transformer block together.

DeepSpeed hangs its hooks on every module: a block of nine or eleven is that many fetches, releases and pairs of autograd functions
in either direction, which is what a step of many layers spends its time on (benchmarks/results/2026-11-27_zero3_hooks.md). Here a
block alone has hooks, and the weights of the modules in it are registered with it, by `deepspeed.zero.register_external_parameter`.
They stay what they are: the gradient of each is reduced for itself, when it is complete. DeepSpeed's own way to the same end, leaf
modules, reduces those of a block that runs twice a step twice (known_faults.py).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from sycoca_ds.model.layers.blocks import Block


def gather_whole_blocks() -> None:
    """Makes DeepSpeed hang hooks so in every engine that is made from here on; may be called any number of times."""
    import deepspeed
    from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload

    own = DeepSpeedZeRoOffload._register_deepspeed_module
    if hasattr(own, "replaces"):
        return

    def register(offload: Any, module: nn.Module, *arguments, **named) -> None:
        """DeepSpeed's method, which goes from module to module, each with its number; a block seems to have no modules in it."""
        if not isinstance(module, Block):
            own(offload, module, *arguments, **named)
            return
        module.children = lambda: iter(())
        try:
            own(offload, module, *arguments, **named)
        finally:
            del module.children
        for parameter in module.parameters():
            deepspeed.zero.register_external_parameter(module, parameter)

    register.replaces = own
    DeepSpeedZeRoOffload._register_deepspeed_module = register

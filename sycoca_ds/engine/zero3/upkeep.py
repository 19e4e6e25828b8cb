"""What ZeRO-3 does for every weight and module of every step, done with less: the same results.

Of a step of many layers that do little, DeepSpeed 0.19.8 spends a part on questions that it asks again and again
(benchmarks/results/2026-11-27_zero3_hooks.md): who this rank is, four times a weight, for lines that are not printed; the names of
a module's weights, which it then drops; where in a profile it is. After an update it gathers the small weights, which stay whole,
by a collective each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn


def ask_less() -> None:
    """Puts short ways in place of DeepSpeed's; called before an engine is made, any number of times."""
    from deepspeed.runtime.zero import parameter_offload, partition_parameters, partitioned_param_coordinator, stage3
    from deepspeed.utils import nvtx

    nvtx.enable_nvtx = False  # ranges for nsys
    for module in (parameter_offload, partition_parameters, partitioned_param_coordinator, stage3):
        if not hasattr(module.print_rank_0, "replaces"):
            module.print_rank_0 = _printed(module.print_rank_0)
    if not hasattr(partitioned_param_coordinator.iter_params, "replaces"):
        partitioned_param_coordinator.iter_params = _weights(partitioned_param_coordinator.iter_params)


def _printed(own: Callable[..., None]) -> Callable[..., None]:
    def print_rank_0(message: str, debug: bool = False, force: bool = False) -> None:
        if debug or force:
            own(message, debug, force)

    print_rank_0.replaces = own
    return print_rank_0


def _weights(own: Callable[..., Iterable[nn.Parameter]]) -> Callable[..., Iterable[nn.Parameter]]:
    def iter_params(module: nn.Module, recurse: bool = False) -> Iterable[nn.Parameter]:
        """A module's own weights and those registered with it."""
        if recurse:
            return own(module, recurse)
        return [*(weight for weight in module._parameters.values() if weight is not None), *module._external_params.values()]

    iter_params.replaces = own
    return iter_params


def gather_small_weights_at_once(engine: Any) -> None:
    """Makes one collective of those that gather, after an update, the weights that stay whole; of an engine at any stage."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    whole = getattr(engine.optimizer, "persistent_parameters", [])
    if not whole:
        return
    first, own = whole[0], whole[0].all_gather

    def all_gather(param_list: Any = None, async_op: bool = False, hierarchy: Any = 0) -> Any:
        if async_op or param_list is not whole:
            return own(param_list, async_op, hierarchy)
        first.all_gather_coalesced([weight for weight in whole if weight.ds_status is ZeroParamStatus.NOT_AVAILABLE]).wait()

    first.all_gather = all_gather

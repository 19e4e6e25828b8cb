"""Which weights ZeRO-3 lets go after a module, found in one pass.

After each module DeepSpeed keeps those of its weights that are used again before `stage3_max_reuse_distance` numbers have passed.
0.19.8 looks for them in all modules ahead, for every module anew: with some 2,000 of them, 930M's, the first steps of a run took a
minute (benchmarks/results/2026-11-27_gpu_h100.md). Here the same sets come from where each weight is used, noted once a trace.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from itertools import accumulate
from typing import Any

OWN = "_PartitionedParameterCoordinator__"
"""What Python puts before the names of that class."""


def release_in_one_pass() -> None:
    """Puts `params_to_release` in place of DeepSpeed's own; called before an engine is made, any number of times."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    own = getattr(Coordinator, f"{OWN}params_to_release")
    if not hasattr(own, "replaces"):
        setattr(Coordinator, f"{OWN}params_to_release", replacement(own))


def replacement(own: Callable[..., set[int]]) -> Callable[..., set[int]]:
    """DeepSpeed's method, with another way to the same result."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import iter_params
    from deepspeed.utils.z3_leaf_module import z3_leaf_module

    def params_to_release(coordinator: Any, module: Any, step: int) -> set[int]:
        """Ids of the weights to let go after `module`, which is the trace's at `step - 1`."""
        if not coordinator.is_complete_trace() or z3_leaf_module(module):
            return own(coordinator, module, step)
        order = getattr(coordinator, f"{OWN}submodule_order")
        uses = getattr(coordinator, "uses", None)
        if uses is None or uses.order is not order:
            uses = coordinator.uses = Uses(order, iter_params)
        if (module, step) not in uses.found:
            fetched = getattr(coordinator, f"{OWN}most_recent_step_id_param_fetched_for")
            distance = getattr(coordinator, f"{OWN}max_reuse_dist_in_numel")
            uses.found[module, step] = {
                parameter.ds_id
                for parameter in iter_params(module)
                if not parameter.ds_persist and fetched[parameter] <= step and not uses.again(parameter.ds_id, step, distance)
            }
        return uses.found[module, step]

    params_to_release.replaces = own
    return params_to_release


class Uses:
    """Where in a trace each weight is used."""

    def __init__(self, order: tuple[Any, ...], iter_params: Callable):
        self.order, self.found, self._at = order, {}, defaultdict(list)
        sizes = []
        for place, module in enumerate(order):
            parameters = list(iter_params(module))
            sizes.append(sum(parameter.ds_numel for parameter in parameters))
            for parameter in parameters:
                self._at[parameter.ds_id].append(place)
        self._before = [0, *accumulate(sizes)]

    def again(self, weight: int, step: int, distance: int) -> bool:
        """Whether a weight is used in the trace from `step` on before `distance` numbers have been."""
        places = self._at[weight]
        following = bisect_left(places, step)
        return following < len(places) and self._before[places[following]] - self._before[min(step, len(self.order))] < distance

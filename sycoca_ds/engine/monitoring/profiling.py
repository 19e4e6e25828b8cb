"""`--run.profile FIRST:LAST`: what some steps spend their time and memory on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.utils.checkpoint import set_checkpoint_early_stop

from data_pipeline.errors import UserError
from data_pipeline.files import atomic_path
from sycoca_ds.engine.ranks.runtime import Runtime

MOST_STEPS = 100
"""A step leaves megabytes of trace."""
SHOWN = 10
MEMORY_EVENTS = 1_000_000


def profiled_steps(text: str, steps: int | None = None) -> tuple[int, int]:
    """(first, last) of `FIRST:LAST`, both counted, the run's first step being 1.

    Args:
        steps: of the whole run, where that is known.

    Raises:
        UserError: no such range, an empty one, one beyond the run's end or of more than `MOST_STEPS`.
    """
    found = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    problem = None
    if not found:
        problem = "expected FIRST:LAST, two steps as in 10:15"
    elif first < 1 or last < first:
        problem = "expected FIRST from 1 on and LAST not below it"
    elif last - first >= MOST_STEPS:
        problem = f"expected at most {MOST_STEPS} steps, a trace of more is too large to open"
    elif steps is not None and last > steps:
        problem = f"expected steps of the run, which has {steps}"
    if problem:
        raise UserError(f"run.profile = {text}: {problem}")
    return first, last


class Profile:
    """Traces the steps that were asked for, on rank 0; the loop calls `after` with every step it has done.

    Written to `<run>/profile/`: `steps_00000010_00000015.trace.json`, which https://ui.perfetto.dev and chrome://tracing open, and
    with CUDA `steps_.._memory.pickle` for https://pytorch.org/memory_viz. Steps are slower while they are traced.

    Raises:
        UserError: a range that is none.
    """

    def __init__(self, asked: str | None, run: Path, runtime: Runtime, step: int, steps: int):
        self.run, self.runtime, self._profiler = run, runtime, None
        self.first, self.last = profiled_steps(asked, steps) if asked is not None else (0, 0)
        if 0 < self.first <= step:
            runtime.say(f"run.profile = {asked}: the run is at step {step} already, nothing is traced")
        self.after(step)

    def after(self, step: int) -> None:
        """Starts before the first step of the range, ends after its last one."""
        if not self.runtime.leads:
            return
        if step + 1 == self.first:
            self._start()
        elif step == self.last and self._profiler is not None:
            self._finish()

    def _start(self) -> None:
        cuda = self.runtime.device.type == "cuda"
        # Recomputing a block ends with an exception as soon as all is there that the backward pass wants. The memory's history asks
        # Python for the stack when tensors are freed, then in the middle of that exception, and loses it (seen with torch 2.11:
        # "returned NULL without setting an exception"): it keeps the stacks of allocations, and blocks are recomputed to their end.
        self._whole_blocks = set_checkpoint_early_stop(False)
        self._whole_blocks.__enter__()
        if cuda:
            torch.cuda.memory._record_memory_history(context="alloc", max_entries=MEMORY_EVENTS)
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        self._profiler = torch.profiler.profile(activities=kinds, profile_memory=True)
        self._profiler.start()

    def _finish(self) -> None:
        profiler, self._profiler = self._profiler, None
        cuda = self.runtime.device.type == "cuda"
        if cuda:
            torch.cuda.synchronize()
        profiler.stop()
        self._whole_blocks.__exit__(None, None, None)
        place = self.run / "profile" / f"steps_{self.first:08d}_{self.last:08d}"
        trace = place.with_name(f"{place.name}.trace.json")
        what = f"profile of steps {self.first} to {self.last}, rank 0: "
        try:
            with atomic_path(trace) as temporary:
                profiler.export_chrome_trace(str(temporary))
            if cuda:
                with atomic_path(place.with_name(f"{place.name}_memory.pickle")) as temporary:
                    torch.cuda.memory._dump_snapshot(str(temporary))
            self.runtime.say(f"{what}{trace}")
        except OSError as error:  # a full disk costs the trace, not the run
            self.runtime.say(f"{what}NOT written ({error})")
        if cuda:
            torch.cuda.memory._record_memory_history(enabled=None)
        self.runtime.say(costs(profiler.key_averages(), self.last - self.first + 1, cuda))


def costs(events: Any, steps: int, cuda: bool) -> str:
    """The ten operations with the most time of their own, a line each: on the GPU where there is one, else on the CPU."""

    def own(event: Any) -> float:
        return event.self_device_time_total if cuda else event.self_cpu_time_total

    total = max(sum(own(event) for event in events), 1e-9)
    lines = [f"{'ms a step':>10} {'share':>7} {'calls a step':>14}  operation ({'GPU' if cuda else 'CPU'} time of its own)"]
    for event in sorted(events, key=own, reverse=True)[:SHOWN]:
        milliseconds, share, calls = own(event) / 1000 / steps, 100 * own(event) / total, event.count / steps
        lines.append(f"{milliseconds:>10.2f} {share:>5.1f} % {calls:>14.1f}  {event.key[:80]}")
    return "\n".join(lines)

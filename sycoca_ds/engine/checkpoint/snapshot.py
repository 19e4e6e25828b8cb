"""How a checkpoint's files come to the process that writes them: as a copy in this host's memory, so that the training goes on, or,
where there is no room for one, straight from the weights, while it waits."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

from sycoca_ds.engine.checkpoint.contents import Files, Measure, put
from sycoca_ds.engine.ranks.host_memory import SPARE_MEMORY, available
from sycoca_ds.engine.ranks.runtime import Runtime

PIPE_BYTES = 1 << 20
"""What the system lets anybody have."""


class WholeFile(io.FileIO):
    """A file without a buffer whose `write` writes all it is given. The system writes at most 2 GiB at a time, and `torch.save`
    does not look how much that was: a larger tensor would end there, and all that come after it stand in the wrong place."""

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        count = len(left)
        while left:
            left = left[super().write(left) :]
        return count


class WholePipe(WholeFile):
    """To a process that reads. What is written after its end is lost, and that is no error here: in the middle of `torch.save` one
    would end this process (its destructor writes on), and the reader's own says why it ended."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


class InMemory:
    """By a copy in anonymous memory, which is kept from save to save: touching new pages takes longer than copying."""

    def __init__(self) -> None:
        self._files: dict[str, WholeFile] = {}

    def hand_over(self, files: Files, start: Callable[[Sequence[int]], Any]) -> Any:
        """Returns what `start` does: it gets a descriptor a file and starts a process that reads them; when this returns, nobody
        needs `files` any more."""
        for name, content in files.items():
            if name not in self._files:
                self._files[name] = WholeFile(os.memfd_create(name), "r+b")
            self._files[name].seek(0)
            put(content, self._files[name])
            self._files[name].seek(0)
        return start([self._files[name].fileno() for name in files])


class Straight:
    """Through a pipe to the process that writes, at the pace at which it writes: of each file a MiB is on its way, no more."""

    def hand_over(self, files: Files, start: Callable[[Sequence[int]], Any]) -> Any:
        """As `InMemory`'s; the descriptor of all files is the same, they come through it one after another."""
        reading, writing = os.pipe()
        with contextlib.suppress(OSError):  # a smaller one is slower
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        with WholePipe(writing, "wb") as pipe:
            try:
                started = start([reading] * len(files))
            finally:
                os.close(reading)  # or nobody would ever be told that the reader is gone
            for content in files.values():
                put(content, pipe)
        return started


def choose_way(runtime: Runtime, measures: Sequence[Measure]) -> InMemory | Straight:
    """On all ranks, together: a copy, if those of all ranks of every host fit into it. A step waits for all ranks, so none gains
    anything by a copy when others have no room for theirs.

    Args:
        measures: of this rank's files.
    """
    size = sum(measure.size for measure in measures)
    if runtime.device.type != "cpu":  # a tensor comes to the host as a whole before it is copied to its place
        size += max(measure.largest for measure in measures)
    needed, free = dict.fromkeys(runtime.hosts, 0), {}
    for host, (bytes_needed, bytes_free) in zip(runtime.hosts, runtime.gather((size, available())), strict=True):
        needed[host] += bytes_needed
        free[host] = min(bytes_free, free.get(host, bytes_free))
    short = [host for host in needed if free[host] < needed[host] + SPARE_MEMORY]
    if not short:
        return InMemory()
    worst = min(short, key=lambda host: free[host] - needed[host])
    where = f" on {worst}" if len(needed) > 1 else ""
    runtime.say(
        f"save: {needed[worst] / 1e9:.1f} GB do not fit beside the run{where} ({free[worst] / 1e9:.1f} GB free): written while the "
        "run waits"
    )
    return Straight()

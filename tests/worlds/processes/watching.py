"""Processes seen from outside, by /proc: which there are, what each takes, and which are left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process that has not ended."""

    pid: int
    parent: int
    group: int
    session: int


def processes() -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                state, *numbers = Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()[:4]
            except OSError:
                continue
            if state not in "ZX":
                yield Process(int(entry.name), *map(int, numbers))


def descendants(root: int) -> set[int]:
    parents = {process.pid: process.parent for process in processes()}
    found, size = {root}, 0
    while len(found) != size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {root}


def members(group: int) -> list[int]:
    """Processes of a process group."""
    return [process.pid for process in processes() if process.group == group]


def alive_in(session: int) -> list[int]:
    return [process.pid for process in processes() if process.session == session]


def mentioning(text: str) -> list[int]:
    """Processes other than this one with `text` among their words."""
    others = (process.pid for process in processes() if process.pid != os.getpid())
    return [pid for pid in others if text in _words(pid)]


def wait_until(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@dataclass
class Seen:
    """One process. MB (2^20)."""

    command: str
    start: float
    """Resident when the run began in earnest, or when the process was first seen, if that was later."""
    peak: float = 0.0
    """Most resident so far by the kernel's own count (VmHWM), so that no short peak is missed."""

    @property
    def growth(self) -> float:
        return self.peak - self.start


class Watch(threading.Thread):
    """Follows a process and all that descend from it, in whatever session.

    Args:
        begun: set when the run begins in earnest: until then what a process takes is its baseline.
    """

    def __init__(self, root: int, begun: threading.Event, pause: float = 0.02):
        super().__init__(daemon=True)
        self.root, self.begun, self.pause, self.stopping = root, begun, pause, threading.Event()
        self.seen: dict[int, Seen] = {}

    def run(self) -> None:
        while not self.stopping.wait(self.pause):
            counting = self.begun.is_set()
            for pid in {self.root, *descendants(self.root), *self.still_there()}:
                now, peak = memory(pid)
                command = _words(pid)[:160]
                if not now or not command:
                    continue
                if pid not in self.seen or self.seen[pid].command != command:  # the second: a child became another program
                    self.seen[pid] = Seen(command, now)
                if not counting:
                    self.seen[pid].start = now
                self.seen[pid].peak = max(self.seen[pid].peak, peak)

    def stop(self) -> None:
        self.stopping.set()
        self.join()

    def left(self, seconds: float = 10.0) -> list[int]:
        """Processes that are still there after so long: some end by noticing that their parent is gone."""
        wait_until(lambda: not self.still_there(), seconds)
        return self.still_there()

    def still_there(self) -> list[int]:
        return [process.pid for process in processes() if process.pid in self.seen]


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def memory(pid: int) -> tuple[float, float]:
    """(resident now, most resident so far) of a process in MB; zeros for one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    found = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return found.get("VmRSS", 0.0), found.get("VmHWM", 0.0)

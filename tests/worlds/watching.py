"""Follows the processes of a run from outside: what each takes, and which are left."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path


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
            for pid in {self.root} | descendants(self.root) | {pid for pid in self.seen if alive(pid)}:
                now, peak = memory(pid)
                command = _command(pid)
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
        deadline = time.monotonic() + seconds
        while any(alive(pid) for pid in self.seen) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [pid for pid in self.seen if alive(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:160]
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


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def descendants(root: int) -> set[int]:
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int(Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
    found, size = {root}, 0
    while len(found) != size:
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return found - {root}

"""Processes of this machine, as /proc has them. By number and start: a number alone is used again."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any


def words_of(pid: int) -> list[str]:
    """A process's command line; empty if it is gone or there is no /proc."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def process_began(pid: int) -> str | None:
    """A process's start in clock ticks, with the pid a name that no other process gets; None if it has ended (one that nobody has
    waited for yet included), or there is no /proc."""
    try:
        fields = fields_of(pid)
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else fields[19]


def parent_and_begin(pid: int) -> tuple[int, str]:
    """(parent, start in clock ticks) of a process. Raises `OSError`."""
    fields = fields_of(pid)
    return int(fields[1]), fields[19]


def fields_of(pid: int) -> list[str]:
    """What /proc says of a process, from its state (`man 5 proc_pid_stat`, field 3) on. Raises `OSError`."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def whoami() -> dict[str, Any]:
    """This process, as others can look for it: `host`, `pid`, `began`, `boot` of the machine, `process_space` of a container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "began": process_began(os.getpid()),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "process_space": os.readlink(space) if space.exists() else "",
    }

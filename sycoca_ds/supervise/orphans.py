"""Processes of a job wherever they run: found by a mark in their environment, signalled by number and start, never by name.

The mark is a variable whose name begins as those do that DeepSpeed takes along to every host (`PYTHON...`), and whose value names
the run and the attempt. Launchers, ranks, loader workers and writers of checkpoints inherit it; nobody else has it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from sycoca_ds.engine.ranks.process_table import fields_of, process_began
from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE
from sycoca_ds.launch.shell import QUIETLY

SWEEP_SECONDS = 30.0
"""For one visit of a host; a host that takes longer counts as unreachable."""
FIRST_SPACE = "pid:[4026531836]"
"""The space of process numbers that the kernel itself counts in (PROC_PID_INIT_INO)."""
SCRIPT = r"""
echo "oom $(awk '$1 == "oom_kill" {print $2}' /proc/vmstat)"
began() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | awk '$1 != "Z" {print $20}'; }  # one that has ended has no start
for item in $named; do
  pid=${item%:*}
  [ "$(began $pid)" = "${item#*:}" ] && kill -$number $pid && echo "ended $pid"
done
if [ -n "$mark" ]; then
  for round in 1 2 3; do
    files=$(grep -lsz "^$variable=$mark" /proc/[0-9]*/environ)
    [ -n "$files" ] || break
    for file in $files; do
      pid=${file#/proc/}; pid=${pid%/environ}
      kill -$number $pid 2>/dev/null && [ $round = 1 ] && echo "ended $pid"
    done
    sleep 0.3
  done
  for file in $(grep -lsz "^$variable=$mark" /proc/[0-9]*/environ); do
    pid=${file#/proc/}; echo "left ${pid%/environ}"
  done
fi
echo done
"""


# ---- this machine ---------------------------------------------------------------------------------------------------------------


def marked(mark: str) -> dict[int, dict[str, str]]:
    """Processes of this machine whose mark begins so, each with its environment; those of other users cannot be seen."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = Path(entry.path, "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            environment = dict(word.split("=", 1) for word in words if "=" in word)
            if environment.get(ATTEMPT_VARIABLE, "").startswith(mark):
                found[int(entry.name)] = environment
    return found


def ranks_here(mark: str) -> list[int]:
    """Those of them that are ranks: launchers give them a place in their environment. Children, who inherit it, ignore signals."""
    return [pid for pid, environment in marked(mark).items() if "LOCAL_RANK" in environment]


def send(pid: int, number: int) -> bool:
    """Whether the process was still there to be signalled."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def end_here(mark: str, patience: float = 5.0) -> tuple[list[int], list[int]]:
    """(numbers of the processes that were killed, of those that do not end: a device or a disk holds them in the kernel)."""
    ended, until = [], time.monotonic() + patience
    while found := marked(mark):
        if time.monotonic() > until:
            return ended, sorted(found)
        ended += [pid for pid in found if send(pid, signal.SIGKILL) and pid not in ended]
        time.sleep(0.05)
    return ended, []


def exit_status(pid: int, began: str) -> int | None:
    """How a process ended that nobody has waited for yet, negative for a signal; None if it lives, or is gone for good."""
    try:
        fields = fields_of(pid)
    except (OSError, IndexError):
        return None
    if fields[0] != "Z" or fields[19] != began or len(fields) < 50:
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))


def kills_for_memory() -> int | None:
    """How many processes the kernel has killed for want of memory: in this control group and those below it where that is counted
    (version 2), else on the whole machine."""
    places = [line[3:] for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")]
    files = [Path(f"/sys/fs/cgroup{place}/memory.events") for place in places] + [Path("/proc/vmstat")]
    counts = [int(line.split()[1]) for path in files for line in _lines(path) if line.startswith("oom_kill ")]
    return counts[0] if counts else None


def killed_by_the_kernel() -> set[tuple[int, int]] | None:
    """(number of the record, number of the process) of each that the kernel's log says it has killed for want of memory; None where
    it cannot be read, or has other numbers than those seen here (in a container). Numbers of processes come again."""
    try:
        if os.readlink("/proc/self/ns/pid") != FIRST_SPACE:
            return None
        handle = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    found = set()
    try:
        while True:
            try:
                record = re.match(rb"\d+,(\d+),[^;]*;.*Killed process (\d+)", os.read(handle, 1 << 14))
                found.update([(int(record[1]), int(record[2]))] if record else [])
            except BrokenPipeError:  # a record was overwritten meanwhile
                continue
    except OSError:  # there are no more
        return found
    finally:
        os.close(handle)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


# ---- other machines -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """What a visit of another host found."""

    problem: str = ""
    """Why it was not reached, as ssh says it."""
    ended: tuple[int, ...] = ()
    """Processes that were signalled; with signal 0 those that are there."""
    left: tuple[int, ...] = ()
    """Processes that SIGKILL does not end."""
    oom_kills: int | None = None
    """Processes that the kernel has killed for want of memory since it was started."""


@dataclass(frozen=True)
class Shell:
    """How hosts are reached: as DeepSpeed reaches them, but never asking and never waiting long."""

    options: tuple[str, ...] = ()

    def visit(self, host: str, mark: str = "", named: Iterable[tuple[int, str]] = (), number: int = signal.SIGKILL) -> Visit:
        """Signals the processes with the mark, and those named by (number, start), on a host.

        Args:
            mark: how the value of the mark begins; "" for none.
        """
        words = " ".join(f"{pid}:{began}" for pid, began in named)
        values = {"number": str(int(number)), "mark": mark.replace(".", r"\."), "named": words, "variable": ATTEMPT_VARIABLE}
        text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()) + SCRIPT
        appended = shlex.split(os.environ.get("PDSH_SSH_ARGS_APPEND", ""))
        command = ["ssh", *QUIETLY, *appended, *self.options, host, "sh"]
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=SWEEP_SECONDS, errors="replace")
        except subprocess.TimeoutExpired:
            return Visit(problem=f"no answer within {SWEEP_SECONDS:.0f} s")
        except OSError as error:
            return Visit(problem=str(error))
        lines = done.stdout.splitlines()
        if "done" not in lines:
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            return Visit(problem=said[-1][:200] if said else f"ssh ended with status {done.returncode}")
        numbers = {kind: tuple(int(word) for word in _after(lines, kind)) for kind in ("ended", "left", "oom")}
        return Visit("", numbers["ended"], numbers["left"], numbers["oom"][0] if numbers["oom"] else None)

    def visit_all(self, hosts: Iterable[str], mark: str = "", named: Mapping[str, list[tuple[int, str]]] | None = None, **more):
        """Host -> what a visit found, all at once: a silent one does not keep the others."""
        hosts, named = list(hosts), named or {}
        if not hosts:
            return {}
        with ThreadPoolExecutor(min(64, len(hosts))) as pool:
            visits = pool.map(lambda host: self.visit(host, mark, named.get(host, ()), **more), hosts)
            return dict(zip(hosts, visits, strict=True))


def _after(lines: list[str], kind: str) -> list[str]:
    """The numbers in lines of the script; a login may print others that begin alike."""
    return [line.split()[1] for line in lines if re.fullmatch(rf"{kind} \d+", line)]


@dataclass
class Rank:
    """A rank's process, as its heartbeats tell."""

    rank: int
    pid: int
    began: str
    host: str
    here: bool
    """Whether it runs on this machine, in the same space of process numbers."""
    status: int | None = field(default=None)
    """Its exit status, as soon as that was seen."""
    gone: bool = False
    """Of another machine: its process was looked for and is not there."""

    def lives(self) -> bool:
        """Of this machine only."""
        return self.here and process_began(self.pid) == self.began

"""What is known of an attempt when it has ended, as plain values: the verdict is a function of them and of nothing else.

Files of the run folder count if they have changed since the attempt began: what an earlier one left, or clocks say, does not.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint import retention
from sycoca_ds.engine.checkpoint.seal import read_state, sealed, step_of
from sycoca_ds.engine.safety.status import FAILURES, HEARTBEATS, read_status

TAIL_BYTES = 1 << 20
LINES = 60
LINE_LENGTH = 400
TELLING = re.compile(
    r"error|exception|traceback|killed|signal|return code|exitcode|no sign of life|is stuck in|is not reached|launcher is gone"
    r"|NOT saved|Root Cause|rank +:|host +:|refused|closed|unreachable|No route|timed? ?out|out of memory|oom",
    re.IGNORECASE,
)
"""Lines of the output that are kept wherever they stand; the last ones are kept in any case."""
TRACE = re.compile(r'\s{4}|\s+File "[^"]*", line \d+, in |\s*[~^]+$')
"""Lines of tracebacks, of which only the last one, with the exception, is telling."""


@dataclass(frozen=True)
class Failure:
    """What a rank left of its own end (engine/safety/status.py)."""

    rank: int
    host: str
    time: float
    """Seconds since 1970, by its host's clock."""
    kind: str
    message: str
    phase: str = ""
    step: int = 0
    through: str = ""
    """Python files of its traceback, innermost last."""


@dataclass(frozen=True)
class Sign:
    """The last sign of life of a rank (engine/safety/watchdog.py)."""

    rank: int
    host: str
    phase: str
    step: int
    silent: float
    """Seconds from it to the end of the attempt."""


@dataclass(frozen=True)
class End:
    """A rank's process that was seen to end on this machine."""

    rank: int
    host: str
    status: int
    """Negative for a signal."""
    time: float


@dataclass(frozen=True)
class Evidence:
    """Everything that the verdict depends on."""

    status: int | None
    """Exit status of the command; None: it did not end by itself."""
    ended: str = ""
    """Why the supervisor ended it: "asked", or in words what it waited for in vain; "": it ended by itself."""
    run: dict[str, Any] = field(default_factory=dict)
    """run_status.json as this attempt left it; empty if it did not write one."""
    failures: tuple[Failure, ...] = ()
    signs: tuple[Sign, ...] = ()
    ends: tuple[End, ...] = ()
    said: tuple[str, ...] = ()
    """Telling lines of the output, and its last ones."""
    oom_kills: dict[str, int] = field(default_factory=dict)
    """Host -> processes killed by the kernel for want of memory during the attempt; "" is this machine."""
    unreachable: tuple[str, ...] = ()
    """Hosts that ssh does not reach."""
    left: tuple[str, ...] = ()
    """Processes that do not end, in words."""
    free: int = 0
    """Bytes free on the run's disk."""
    needed: int = 0
    """Bytes of a checkpoint."""
    host_of_rank: tuple[str, ...] = ()
    """Names in the hostfile; empty: unknown."""
    before: int | None = None
    """Step of the newest checkpoint before the attempt."""
    after: int | None = None

    def name_of(self, rank: int | None, host: str = "") -> str:
        """A rank's host as the hostfile names it, else as the rank itself did."""
        return self.host_of_rank[rank] if rank is not None and rank < len(self.host_of_rank) else host


def newest_sealed(run: Path) -> int | None:
    """Step of the newest checkpoint whose seal is whole; its files are verified by the next start."""
    for folder in _sealed(run):
        try:
            read_state(folder)
        except UserError:
            continue
        return step_of(folder)
    return None


def bytes_of_newest(run: Path) -> int:
    """Bytes of the newest checkpoint, 0 if there is none."""
    folders = _sealed(run)
    return retention.size(folders[0]) if folders else 0


def _sealed(run: Path) -> list[Path]:
    """None on a disk that does not answer: that is for the verdict to say."""
    try:
        return sealed(run / "checkpoints")
    except OSError:
        return []


class Files:
    """The files by which ranks speak, from the beginning of an attempt on.

    Args:
        since: of an attempt that has ended already: its begin in seconds since 1970. What is older is not of it.
    """

    def __init__(self, run: Path, since: float | None = None) -> None:
        self.run, status = run, read_status(run)
        old = [path for path in self._paths() if since is None or path.stat().st_mtime < since]
        self._old = {path: _state(path) for path in old}
        self._status = status if since is None or status.get("time", 0.0) < since else {}
        self._changed: dict[Path, tuple[Any, float]] = {}
        self.beats: dict[int, dict[str, Any]] = {}
        """Rank -> its last heartbeat of this attempt."""
        self._mark: str | None = None
        self.began = time.monotonic()

    def _paths(self) -> list[Path]:
        return [*(self.run / HEARTBEATS).glob("rank_*.json"), *(self.run / FAILURES).glob("rank_*.json")]

    def look(self, mark: str) -> None:
        """Reads heartbeats that have changed.

        Args:
            mark: those of a training with another one are not of this attempt.
        """
        self._mark = mark
        for path in (self.run / HEARTBEATS).glob("rank_*.json"):
            state = _state(path)
            if state is None or state == self._old.get(path) or state == self._changed.get(path, (None,))[0]:
                continue
            try:
                beat = json.loads(path.read_text())
                rank = int(path.stem.removeprefix("rank_"))
            except (OSError, ValueError):
                beat = None  # on a full disk it is empty; that it changed is a sign all the same
            if beat is not None and not self._is_own(beat):
                continue
            if beat is not None:
                self.beats[rank] = beat
            elif path not in self._changed:
                continue
            self._changed[path] = (state, time.monotonic())

    def _is_own(self, told: dict[str, Any]) -> bool:
        """Whether a rank of this attempt left it, as far as it says so: a launcher may lose the variable."""
        return None in (told.get("attempt"), self._mark) or told["attempt"] == self._mark

    def silence(self) -> dict[int, float]:
        """Rank -> seconds since its last sign of life."""
        now = time.monotonic()
        return {int(path.stem.removeprefix("rank_")): now - when for path, (_, when) in self._changed.items()}

    def forgive(self) -> None:
        """This process, or the machine, stood still: what was not seen meanwhile is no silence."""
        now = time.monotonic()
        self._changed = {path: (state, now) for path, (state, _) in self._changed.items()}

    def status(self) -> dict[str, Any]:
        """run_status.json if this attempt wrote it."""
        found = read_status(self.run)
        return {} if found == self._status or not self._is_own(found) else found

    def failures(self) -> tuple[Failure, ...]:
        """What ranks of this attempt left of their ends, the earliest first."""
        found = []
        for path in (self.run / FAILURES).glob("rank_*.json"):
            if _state(path) == self._old.get(path):
                continue
            try:
                value = json.loads(path.read_text())
                if not self._is_own(value):
                    continue
                names = ("rank", "host", "time", "kind", "message", "phase", "step")
                files = re.findall(r'File "([^"]+)"', "\n".join(value.get("traceback", [])))
                found.append(Failure(**{name: value[name] for name in names if name in value}, through=" ".join(files[-4:])))
            except (OSError, ValueError, TypeError, KeyError, AttributeError):
                continue
        return tuple(sorted(found, key=lambda failure: (failure.time, failure.rank)))

    def signs(self) -> tuple[Sign, ...]:
        silence = self.silence()
        return tuple(
            Sign(rank, beat["host"], beat["phase"], beat["step"], round(silence.get(rank, 0.0), 1))
            for rank, beat in sorted(self.beats.items())
        )


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written, whatever clocks say."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def telling_lines(log: Path) -> tuple[str, ...]:
    """The lines of an attempt's output that may say why it ended."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = [shortened(line.rstrip()) for line in file.read().decode(errors="replace").splitlines()]
    except OSError:
        return ()
    lines = [line for line in lines if line.strip() and not TRACE.match(line)]
    telling = [n for n, line in enumerate(lines[:-LINES]) if TELLING.search(line)][-LINES:]
    return tuple([lines[n] for n in telling] + lines[-LINES:])


def shortened(line: str) -> str:
    """Its begin and its end: launchers write the whole command in between."""
    return line if len(line) <= LINE_LENGTH else f"{line[: LINE_LENGTH // 2]} ... {line[-LINE_LENGTH // 2 :]}"

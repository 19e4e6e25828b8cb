"""Where the time went: RUN/ledger.jsonl has a line an attempt, `shares` adds them up. Every second since the first start is counted
once, so the parts are the whole.

    start       from a launch to the end of its first step: launcher, imports, meeting, loading, compiling
    productive  steps that are in the newest checkpoint, or before the next attempt's first
    data        waiting for the samples of those
    saving      the training stood still for a save, or for the last one at the end
    validation  losses and pictures
    lost        steps that were done again, and the time in which a job that had failed did not know it yet
    down        between the end of an attempt and the next launch; of an attempt that ended well, its processes' end as well
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.progress import format_seconds
from sycoca_ds.supervise.causes import COMPLETED, PREEMPTED

LEDGER_FILE = "ledger.jsonl"
PARTS = ("start", "productive", "data", "saving", "validation", "lost", "down")
BOARD = "supervise"
"""Folder in RUN/tensorboard; its curves have an attempt for a step."""


@dataclass(frozen=True)
class Line:
    """One attempt. Seconds."""

    attempt: int
    kind: str
    """Class of its verdict."""
    launched: float
    """Seconds since 1970, for people; nothing is computed from it."""
    down: float
    """From the end of the attempt before to the launch of this one."""
    total: float
    """From the launch to the moment at which nothing was left of it."""
    met: float | None
    """From the launch to the meeting of the ranks; None: they did not meet."""
    spent: dict[str, float]
    """Phase -> seconds of those that ended, as the rank that got furthest tells them (engine/safety/watchdog.py)."""
    first: int | None
    """First step that it took; None: it took none."""
    reached: int | None
    """Last step that was done."""
    kept: int | None
    """Step of the newest checkpoint after it."""

    def steps(self) -> int:
        return 0 if self.first is None or self.reached is None else max(0, self.reached - self.first + 1)


def make_line(
    attempt: int,
    kind: str,
    *,
    launched: float,
    down: float,
    total: float,
    met: float | None,
    beats: Iterable[dict[str, Any]],
    told: int | None,
    kept: int | None,
) -> Line:
    """From the last heartbeats of an attempt's ranks, and the step that run_status.json told."""
    furthest = max(beats, key=lambda beat: (beat["step"], sum(beat.get("spent", {}).values())), default=None)
    spent = {} if furthest is None else {name: seconds for name, seconds in furthest.get("spent", {}).items() if seconds}
    first = None if furthest is None else furthest.get("first")
    reached = None
    if furthest is not None and first is not None:
        # a phase before the update bears the number of the step that it belongs to, one after it that of the step just done
        reached = max(furthest["step"] - (furthest["phase"] in ("data", "step")), told or 0)
    return Line(
        attempt, kind, round(launched, 3), round(down, 3), round(total, 3), met and round(met, 3), spent, first, reached, kept
    )


def parts_of(line: Line, next_first: int | None) -> dict[str, float]:
    """Seconds of an attempt, and of the pause before it, by part.

    Args:
        next_first: first step of the next attempt that took one; None: there is none yet, and what is in a checkpoint is kept.
    """
    spent = {name: line.spent.get(name, 0.0) for name in ("start", "first_step", "step", "data", "save", "validation", "end")}
    steps = line.steps()
    kept = steps - lost_steps(line, next_first)
    # the first step is counted with the start, whatever became of it
    share = max(0, kept - 1) / (steps - 1) if steps > 1 else 0.0
    rest = line.total - (line.met or 0.0) - sum(spent.values())
    well = line.kind in (COMPLETED, PREEMPTED)
    if line.met is None:  # it failed before ranks had met
        return {**dict.fromkeys(PARTS, 0.0), "start": line.total, "down": line.down}
    return {
        "start": line.met + spent["start"] + spent["first_step"],
        "productive": share * spent["step"],
        "data": share * spent["data"],
        "saving": spent["save"] + spent["end"],
        "validation": spent["validation"],
        "lost": (1 - share) * (spent["step"] + spent["data"]) + (0.0 if well else rest),
        "down": line.down + (rest if well else 0.0),
    }


def lost_steps(line: Line, next_first: int | None) -> int:
    """Steps of an attempt that had to be done again."""
    if not line.steps():
        return 0
    kept_to = line.kept if next_first is None else next_first - 1
    return min(line.steps(), max(0, line.reached - (kept_to or 0)))


def shares(lines: Sequence[Line]) -> dict[str, float]:
    """Seconds by part of all attempts, in the order of `PARTS`."""
    total = dict.fromkeys(PARTS, 0.0)
    for line, following in zip(lines, following_firsts(lines), strict=True):
        for name, seconds in parts_of(line, following).items():
            total[name] += seconds
    return total


def following_firsts(lines: Sequence[Line]) -> list[int | None]:
    """For each attempt the first step of the next one that took any."""
    found: list[int | None] = []
    following = None
    for line in reversed(lines):
        found.append(following)
        following = line.first if line.first is not None else following
    return found[::-1]


def restart_times(lines: Sequence[Line]) -> list[dict[str, float]]:
    """For each attempt that took a step: seconds from its launch to the end of its first step, by phase."""
    return [
        {"meet": line.met, "load": line.spent.get("start", 0.0), "first_step": line.spent.get("first_step", 0.0)}
        for line in lines
        if line.met is not None and line.steps()
    ]


def table(lines: Sequence[Line]) -> str:
    """For the terminal."""
    parts, following = shares(lines), following_firsts(lines)
    whole = sum(parts.values()) or 1.0
    lost = sum(lost_steps(line, first) for line, first in zip(lines, following, strict=True))
    rows = [f"  {name:<11}{format_seconds(seconds):>10}{100 * seconds / whole:>8.1f} %" for name, seconds in parts.items()]
    starts = restart_times(lines)
    if starts:
        means = {name: sum(start[name] for start in starts) / len(starts) for name in starts[0]}
        said = ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in means.items())
        rows.append(f"  launch to first step: {sum(means.values()):.1f} s on average ({said})")
    attempts = "1 attempt" if len(lines) == 1 else f"{len(lines)} attempts"
    return "\n".join([f"{attempts} in {format_seconds(whole)}, {lost} steps done again", *rows])


# ---- files -----------------------------------------------------------------------------------------------------------------------


def read_ledger(run: Path) -> list[Line]:
    """Lines that can be read, in their order."""
    found = []
    with contextlib.suppress(OSError):
        for text in (run / LEDGER_FILE).read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError):
                found.append(Line(**json.loads(text)))
    return found


def append(run: Path, line: Line) -> None:
    """Adds a line; a full disk costs it, not the job."""
    with contextlib.suppress(OSError), open(run / LEDGER_FILE, "a") as file:
        file.write(json.dumps(line.__dict__) + "\n")


def show_in_tensorboard(run: Path, lines: Sequence[Line]) -> None:
    """Adds the newest attempt's point to the curves of RUN/tensorboard/supervise; without tensorboard it does nothing."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return
    parts = shares(lines)
    whole, step = sum(parts.values()) or 1.0, lines[-1].attempt
    values = {f"time/{name}_share": seconds / whole for name, seconds in parts.items()}
    values |= {"time/hours": whole / 3600, "time/lost_steps": float(lost_steps(lines[-1], None))}
    if start := restart_times(lines[-1:]):
        values["time/launch_to_first_step_seconds"] = sum(start[0].values())
    with contextlib.suppress(OSError):
        writer = EventFileWriter(str(run / "tensorboard" / BOARD))
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        writer.add_event(Event(wall_time=lines[-1].launched + lines[-1].total, step=step, summary=summary))
        writer.close()

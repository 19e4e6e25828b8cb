"""What follows from a cause: RESTART, WITHOUT-HOST, STOP or DONE, by rules that look at nothing but evidence and history.

The rules, first match first, are those of docs/failures.md. An attempt made progress if it left a newer checkpoint than it found.
A STOP ends a trail: whoever starts the supervisor after it has mended something.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data_pipeline.files import write_json
from sycoca_ds.supervise.causes import (
    COMPLETED,
    DATA,
    DEVICE,
    DISK,
    HANG,
    NETWORK,
    PREEMPTED,
    USER,
    Cause,
    find_cause,
)
from sycoca_ds.supervise.evidence import Evidence

RESTART, WITHOUT_HOST, STOP, DONE = "RESTART", "WITHOUT-HOST", "STOP", "DONE"
VERDICT_FILE, HISTORY_FILE = "verdict.json", "history.jsonl"
RECENT = 5
"""Attempts back to which a host's silence is remembered."""
SPARE_BYTES = 64 << 20
"""Beside a checkpoint, for curves and logs."""
FULL = re.compile(r"No space left|quota exceeded|GiB free")


@dataclass(frozen=True)
class Verdict:
    attempt: int
    kind: str
    rank: int | None
    host: str
    phase: str
    step: int | None
    evidence: tuple[str, ...]
    action: str
    reason: str
    """One sentence: why this action."""
    before: int | None
    """Step of the newest checkpoint before the attempt, and after it."""
    after: int | None
    progress: bool
    status: int | None
    """Exit status of the command."""

    def record(self) -> dict[str, Any]:
        """As in verdict.json: `class` for `kind`, which Python has no room for."""
        values = asdict(self)
        return {"attempt": values.pop("attempt"), "class": values.pop("kind"), **values, "evidence": list(self.evidence)}

    def line(self) -> str:
        """For the terminal."""
        who = f" of rank {self.rank}" if self.rank is not None else ""
        where = f" on {self.host}" if self.host else ""
        when = f" in {self.phase}" if self.phase else ""
        when += f" of step {self.step}" if self.step is not None and self.phase != "launch" else ""
        shown = f": {self.evidence[0]}" if self.evidence else ""
        return f"{self.kind}{who}{where}{when}{shown}"


def judge(
    attempt: int, evidence: Evidence, past: Sequence[dict[str, Any]], *, restarts: int, why_not_without: Callable[[str], str]
) -> Verdict:
    """The verdict on an attempt.

    Args:
        past: records of the verdicts before, oldest first.
        restarts: so many in a row without progress, and no more.
        why_not_without: a host's name in the hostfile -> what is against going on without it, "" if nothing.
    """
    cause = find_cause(evidence)
    progress = evidence.after is not None and (evidence.before is None or evidence.after > evidence.before)
    trail = [] if progress else trail_of(past)
    action, reason = decide(cause, evidence, trail, past, restarts, why_not_without)
    lines = (*cause.lines, *evidence.left)
    return Verdict(
        attempt=attempt,
        kind=cause.kind,
        rank=cause.rank,
        host=cause.host,
        phase=cause.phase,
        step=cause.step,
        evidence=lines,
        action=action,
        reason=reason,
        before=evidence.before,
        after=evidence.after,
        progress=progress,
        status=evidence.status,
    )


def trail_of(past: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The attempts in a row, up to now, that left no newer checkpoint."""
    trail: list[dict[str, Any]] = []
    for record in reversed(past):
        if record["progress"] or record["action"] in (STOP, DONE):
            break
        trail.insert(0, record)
    return trail


def decide(
    cause: Cause,
    evidence: Evidence,
    trail: Sequence[dict[str, Any]],
    past: Sequence[dict[str, Any]],
    restarts: int,
    why_not_without: Callable[[str], str],
) -> tuple[str, str]:
    """(action, reason)."""
    kind, host = cause.kind, cause.host
    if kind == COMPLETED:
        return DONE, "the run is finished"
    if evidence.ended == "asked":
        return DONE, "the supervisor was asked to stop; the same command goes on from the last checkpoint"
    if kind == USER:
        return STOP, "the same start would be refused again: mend what the line says"
    if kind == DATA:
        return STOP, "other samples would make another run: mend the data, or the way to them, as the line says"
    if kind == DISK:
        return room(evidence, cause)
    if kind == PREEMPTED:
        return RESTART, "it saved and ended since someone asked its processes to, not the supervisor"
    if kind == DEVICE:
        against = why_not_without(host)
        if not against:
            return WITHOUT_HOST, f"a device of {host} computes, or answers, wrongly"
        return STOP, f"take {host or 'the host of that device'} out of the job, or mend it ({against})"
    if kind in (NETWORK, HANG) and host:
        before = [record for record in past[-RECENT:] if record["class"] in (NETWORK, HANG) and record["host"] == host]
        if before and not why_not_without(host):
            return WITHOUT_HOST, f"{host} fell silent for the second time of late"
    if len([record for record in trail if record["class"] != PREEMPTED]) >= restarts:
        return STOP, f"{restarts} restarts in a row left no newer checkpoint"
    same = [record for record in trail if record["class"] == kind and record["step"] == cause.step is not None]
    if same and kind != NETWORK:
        return STOP, f"the same at the same step twice ({kind}, step {cause.step}), without a newer checkpoint in between"
    return RESTART, "it goes on from the last checkpoint"


def room(evidence: Evidence, cause: Cause) -> tuple[str, str]:
    """Of a disk that does not take what is written."""
    if not any(FULL.search(line) for line in cause.lines):
        return STOP, "the disk cannot be written: mend that; the same command goes on from the last checkpoint"
    free, wanted = evidence.free / 2**30, (evidence.needed + SPARE_BYTES) / 2**30
    if free > wanted:
        return RESTART, f"the disk was full and has {free:.2f} GiB free now"
    return STOP, f"the disk has {free:.2f} GiB free, a checkpoint and some room take {wanted:.2f}: make room, then start again"


# ---- files -----------------------------------------------------------------------------------------------------------------------


def write_verdict(run: Path, verdict: dict[str, Any], history: Path) -> None:
    """RUN/verdict.json, whole or as it was, and a line of the history. A full disk costs them, not the job."""
    with contextlib.suppress(OSError):
        write_json(run / VERDICT_FILE, verdict)
    with contextlib.suppress(OSError), open(history, "a") as file:
        file.write(json.dumps(verdict) + "\n")


def read_history(history: Path) -> list[dict[str, Any]]:
    """Verdicts in their order; a line that a crash cut off is left out."""
    try:
        lines = history.read_text(errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    wanted = {"attempt", "class", "host", "step", "action", "progress"}
    return [record for record in found if isinstance(record, dict) and wanted <= set(record)]

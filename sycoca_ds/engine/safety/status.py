"""How a run stands, in files that outlive its processes: run_status.json, and of a failure what each rank saw.

The launcher's exit status says nothing (it is 0 when DeepSpeed's own launcher is killed); these files do.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
import traceback
from pathlib import Path
from typing import Any

from data_pipeline.files import write_text

STATUS_FILE = "run_status.json"
FAILURES = "failures"
"""Folder of the run with what the ranks of the last start saw when they failed."""
HEARTBEATS = "heartbeats"
"""Folder of the run with every rank's last sign of life: the process (`process_table.whoami`), `phase`, `step` and `seconds` in it,
the `first` step of this start, the seconds `spent` in each phase before this one, `world_size`, the supervisor's `attempt`."""
ATTEMPT_VARIABLE = "PYTHON_SYCOCA_ATTEMPT"
"""Variable by which a supervisor knows the processes of its attempts, on every host: DeepSpeed takes along what begins so."""
LAUNCHER_GONE = "the launcher is gone"
"""Why a run was stopped, if that is why."""
EXIT_HANG = 76
"""Exit status of a job that the watchdog ended: a rank was silent or stuck."""


class RunStatus:
    """Written by rank 0, and never a reason to stop: on a full disk the last word stays.

    Keys of run_status.json: `status` ("running", "completed", "preempted", "failed"), `step` the last one that was told, `steps`
    of the whole run, `checkpoint` the step of the newest whole checkpoint or null, `why` it was preempted as far as rank 0 knows (a
    signal, `LAUNCHER_GONE`, or ""), `host` and `pid` of rank 0, the supervisor's `attempt`, `time` in seconds since 1970.
    """

    def __init__(self, run: Path, steps: int, enabled: bool) -> None:
        self.run, self.steps, self.enabled = run, steps, enabled

    def write(self, status: str, step: int, checkpoint: int | None, why: str = "") -> None:
        if self.enabled:
            known = {"status": status, "step": step, "steps": self.steps, "checkpoint": checkpoint, "why": why}
            write_status(self.run, known)


def write_status(run: Path, values: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        own = {"host": socket.gethostname(), "pid": os.getpid(), "attempt": os.environ.get(ATTEMPT_VARIABLE)}
        values = {**values, **own, "time": round(time.time(), 3)}
        write_text(run / STATUS_FILE, json.dumps(values) + "\n")


def read_status(run: Path) -> dict[str, Any]:
    """run_status.json; empty where there is none, or none that can be read."""
    try:
        values = json.loads((run / STATUS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def mark_failed(run: Path) -> None:
    """Turns this process's "running" into "failed"; a run that was refused before it began has no status to change."""
    values = read_status(run)
    if values.get("status") == "running" and (values.get("host"), values.get("pid")) == (socket.gethostname(), os.getpid()):
        write_status(run, {**values, "status": "failed"})


def forget_failures(run: Path) -> None:
    shutil.rmtree(run / FAILURES, ignore_errors=True)


def record_failure(run: Path, rank: int, kind: str, message: str, **more: Any) -> None:
    """Leaves what this rank saw, for whoever asks later which one failed first; with the supervisor's attempt, since a rank of an
    earlier one, on a machine that stood still, may wake up and fail in the middle of this one.

    Args:
        kind: "error" for an exception, "device" for a faulty one, "hang" for what the watchdog ended.
        more: JSON values (phase, step, ...).
    """
    with contextlib.suppress(OSError):
        values = {"rank": rank, "host": socket.gethostname(), "pid": os.getpid(), "time": time.time(), "kind": kind}
        values["attempt"] = os.environ.get(ATTEMPT_VARIABLE)
        write_text(run / FAILURES / f"rank_{rank:05d}.json", json.dumps({**values, "message": message, **more}, indent=1) + "\n")


def record_exception(run: Path, rank: int, kind: str, error: BaseException, **more: Any) -> None:
    """The same of an exception. torch raises that a loader process is dead wherever the main thread just is, so in here, too: that
    says more than what its end did to a pipe."""
    for _ in range(3):
        try:
            lines = "".join(traceback.format_exception(error)).splitlines()
            record_failure(run, rank, kind, f"{type(error).__name__}: {error}", traceback=lines[-40:], **more)
            return
        except Exception as later:
            error = later

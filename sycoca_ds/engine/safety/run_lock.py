"""One training at a time in a run folder, on shared file systems too, and after any kill.

`running.json` names who trains: host, process, boot, and a beat that changes every few seconds. Whoever finds it there asks the
kernel if that process lives, where it is of this machine; otherwise watches the beat. A file whose process is gone is taken over.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from data_pipeline.lock import only_one
from sycoca_ds.engine.ranks.process_table import process_began, whoami

if TYPE_CHECKING:
    from sycoca_ds.engine.ranks.runtime import Runtime

FILE = "running.json"
BEAT_SECONDS = 5.0
DEAD_SECONDS = 30.0
"""Without a new beat for so long, a training on another machine is taken for dead."""


class RunLock:
    """Held by rank 0 from `take` to `release`; a thread gives the beats.

    Attributes:
        lost: who took the run over, since this process was stopped for too long; None: it is ours.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path, self.lost = run, run / FILE, None
        self._id, self._done = uuid.uuid4().hex, threading.Event()
        self._beats, self._thread = 0, threading.Thread(target=self._beat, daemon=True, name="run lock")

    def take(self) -> None:
        """Raises `UserError` naming who trains there already."""
        self.run.mkdir(parents=True, exist_ok=True)
        with only_one(self.run / ".start.lock", f"{self.run}: another training is just starting there"):
            owner = read_owner(self.path)
            if owner is not None and lives(owner, self.path):
                raise UserError(
                    f"{self.run} is in use: process {owner['pid']} on {owner['host']} trains there since {owner['since']}; wait "
                    f"for its end, stop it, or choose another --run.out"
                )
            self._write()
        self._thread.start()

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if self.lost is None:
            with contextlib.suppress(OSError):  # a disk that is read-only by now: what is left is a file of a process that is gone
                self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises `RuntimeError` if another process has taken the run over: this one must write nothing more."""
        if self.lost is not None:
            raise RuntimeError(
                f"{self.run} was taken over by process {self.lost['pid']} on {self.lost['host']}: this one had given no sign of "
                f"life for {DEAD_SECONDS:.0f} s and more; it ends unsaved"
            )

    def _write(self) -> None:
        self._beats += 1
        owner = {**whoami(), "id": self._id, "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"), "beat": self._beats}
        if self._beats > 1:
            owner["since"] = self._since
        self._since = owner["since"]
        temporary = self.path.with_name(f".{FILE}.{self._id}")
        temporary.write_text(json.dumps(owner) + "\n")
        os.replace(temporary, self.path)

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk; the beat before it is still there
                owner = read_owner(self.path)
                if owner is not None and owner["id"] != self._id:
                    self.lost = owner
                    return
                self._write()


@contextlib.contextmanager
def held(run: Path, runtime: Runtime) -> Iterator[RunLock]:
    """The lock of a run's folder, for all ranks. Raises `UserError` on all of them."""
    lock, refusal = RunLock(run), None
    if runtime.leads:
        try:
            lock.take()
        except UserError as error:
            refusal = error
        except OSError as error:
            refusal = UserError(f"run.out = {run}: {error}: choose a folder that can be written")
    refusal = runtime.agree(refusal)
    if refusal is not None:
        raise refusal
    try:
        yield lock
    finally:
        if runtime.leads:
            lock.release()


def read_owner(path: Path) -> dict[str, Any] | None:
    """Who holds a run; None: nobody, or a file that is no owner's (of a crash of the file system)."""
    try:
        owner = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) and {"id", "host", "pid", "beat", "since"} <= set(owner) else None


def lives(owner: dict[str, Any], path: Path) -> bool:
    """Whether the process that holds a run is alive; of another machine's this takes up to DEAD_SECONDS."""
    here = whoami()
    if here["boot"] and all(owner.get(name) == here[name] for name in ("boot", "process_space")):
        return process_began(owner["pid"]) == owner["began"] is not None
    # of a machine with this one's name, too: it may be this one before it was started anew, or another one that is called the same
    print(f"{path} is of {owner['host']}: waiting up to {DEAD_SECONDS:.0f} s for a sign of life", flush=True)
    until = time.monotonic() + DEAD_SECONDS
    while time.monotonic() < until:
        time.sleep(1)
        now = read_owner(path)
        if now is None:
            return False
        if (now["id"], now["beat"]) != (owner["id"], owner["beat"]):
            return True
    return False

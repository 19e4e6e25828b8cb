"""One start of the command, watched to its end, and until nothing of it is left on any host.

The command runs under launch/guard.py in a session of its own and writes to a file, which is shown on the terminal as it grows: a
terminal that is stopped, or gone, keeps nobody. What the ranks do is read from their heartbeats, by changes and this process's own
clock; what became of those on this machine, from the kernel.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.progress import format_seconds
from sycoca_ds.engine.ranks.environment import own_tools_first
from sycoca_ds.engine.ranks.process_table import whoami
from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE
from sycoca_ds.launch.processes import GUARD
from sycoca_ds.supervise import orphans
from sycoca_ds.supervise.evidence import End, Files
from sycoca_ds.supervise.job import Job
from sycoca_ds.supervise.orphans import Rank, Shell, Visit

TICK_SECONDS = 0.05
"""Between two looks at the ranks here: launchers look once a second, and what they have seen end is gone."""
STOOD_STILL_SECONDS = 10.0
"""A pause of this process that long means that it, or the machine, was stopped."""
GONE_SECONDS = 3.0
"""For a launcher's ranks to end after it by themselves, before they are asked to."""


@dataclass(frozen=True)
class Limits:
    """How long an attempt is waited for, in seconds."""

    first_sign: float
    """From the start to the first heartbeat."""
    silent: float
    """Without a new heartbeat of some rank; the ranks' own watchdog is earlier."""
    grace: float
    """From the first failure that a rank records, or the run's last word, to the end of the command."""
    save: float
    """For ranks that were asked to save."""
    look: float = 1.0
    """Between two looks at the ranks' files."""


@dataclass
class Stop:
    """How often the supervisor was asked to stop."""

    asked: int = 0
    number: int = 0
    """The last signal."""


@dataclass
class Ended:
    """What an attempt left in this process; the rest is in files."""

    status: int | None
    why: str
    """As `Evidence.ended`."""
    files: Files
    seconds: float
    """From the start to the moment at which nothing of it was left."""
    met: float | None = None
    """From the start to the meeting of the ranks; None: they did not meet."""
    ends: list[End] = field(default_factory=list)
    visits: dict[str, Visit] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    pids: set[int] = field(default_factory=set)
    """Of ranks on this machine."""


@dataclass
class Attempt:
    job: Job
    mark: str
    """Value of the variable by which its processes are known."""
    log: Path
    limits: Limits
    stop: Stop
    shell: Shell
    hosts: tuple[str, ...] = ()
    """Other hosts to look for orphans on, as ssh knows them."""
    _ranks: dict[int, Rank] = field(default_factory=dict)
    _ends: list[End] = field(default_factory=list)

    def run(self) -> Ended:
        """Starts the command and returns when nothing of it is left. Raises `FileNotFoundError` if there is no such command."""
        self.began, self.files, self._met = time.monotonic(), Files(self.job.run), None
        with self._output() as output:
            self.process = self._start(output)
            follower = Follower(self.log)
            follower.start()
            try:
                why = self._watch()
                status = self.process.poll()
            finally:
                visits, left = self._clean()
                self.process.stdin.close()
                follower.finish()
        self.files.look(self.mark)
        seconds, pids = time.monotonic() - self.began, {rank.pid for rank in self._ranks.values() if rank.here}
        return Ended(status, why, self.files, seconds, self._met, self._ends, visits, left, pids)

    @contextlib.contextmanager
    def _output(self):
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            file = open(self.log, "wb")
        except OSError as error:  # a disk that is full or gone is what the verdict should be about
            handle, name = tempfile.mkstemp(prefix="sycoca_ds_attempt_", suffix=".log")
            print(f"supervise: {self.log}: {error}; the output goes to {name}", file=sys.stderr, flush=True)
            self.log, file = Path(name), open(handle, "wb")
        with file:
            yield file

    def _start(self, output) -> subprocess.Popen:
        guard = [sys.executable, "-I", str(GUARD), "--mark", f"{ATTEMPT_VARIABLE}={self.mark}", "--patience", str(self.limits.save)]
        return subprocess.Popen(
            [*guard, *self.job.words],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": own_tools_first(), ATTEMPT_VARIABLE: self.mark},
        )

    # ---- watching ---------------------------------------------------------------------------------------------------------------

    def _watch(self) -> str:
        """Returns when the command and its ranks have ended, or why they have to."""
        asked = failed = gone = None
        looked = last = time.monotonic()
        visited = -math.inf
        while True:
            time.sleep(TICK_SECONDS)
            now = time.monotonic()
            if now - last > STOOD_STILL_SECONDS:
                self.files.forgive()
            last = now
            self._look_at_ranks()
            if self.stop.asked > 1:
                return "asked"
            if self.stop.asked and asked is None:
                asked = now
                self._ask_to_save()
            if now - looked < self.limits.look and self.process.poll() is None:
                continue
            looked = now
            self._look_at_files()
            over = self.files.failures() or self.files.status().get("status") not in (None, "running")
            failed = failed or (now if over else None)
            if self.process.poll() is not None:
                gone = gone or now
                if now - visited > GONE_SECONDS:
                    self._look_away()
                    last = visited = time.monotonic()
                left = self._living()
                if not left:
                    return "asked" if self.stop.asked else ""
                if now - gone > GONE_SECONDS and asked is None:
                    asked = now
                    self._ask_to_save()
            why = self._too_late(now, failed, asked) or self._silence(now)
            if why:
                return "asked" if self.stop.asked else why

    def _too_late(self, now: float, failed: float | None, asked: float | None) -> str:
        """What should have come to its end, or nothing."""
        if failed is not None and now - failed > self.limits.grace:
            return f"the command did not end within {format_seconds(self.limits.grace)} after its ranks had"
        if asked is not None and now - asked > self.limits.save:
            return f"the ranks did not end within {format_seconds(self.limits.save)} after they were asked to save"
        return ""

    def _silence(self, now: float) -> str:
        """Why the job is taken for hung, or nothing."""
        silence = self.files.silence()
        if not silence:
            late = now - self.began > self.limits.first_sign
            return f"no rank gave a sign of life within {format_seconds(self.limits.first_sign)}" if late else ""
        rank, seconds = max(silence.items(), key=lambda item: item[1])
        if seconds <= self.limits.silent or not can_write(self.log.parent):  # where nothing can be written, silence means nothing
            return ""
        return f"rank {rank} gives no sign of life for {seconds:.0f} s, and the job does not end"

    def _look_at_files(self) -> None:
        self.files.look(self.mark)
        here = whoami()
        for rank, beat in self.files.beats.items():
            known = self._ranks.get(rank)
            if known is None or (known.pid, known.began) != (beat["pid"], beat["began"]):
                near = all(beat.get(name) == here[name] for name in ("boot", "process_space"))
                self._ranks[rank] = Rank(rank, beat["pid"], beat["began"], beat["host"], near)
        if self._met is None and self.files.beats:
            beat = next(iter(self.files.beats.values()))
            self._met = max(0.0, time.monotonic() - self.began - beat["seconds"] - sum(beat.get("spent", {}).values()))

    def _look_at_ranks(self) -> None:
        for rank in self._ranks.values():
            if rank.here and rank.status is None:
                rank.status = orphans.exit_status(rank.pid, rank.began)
                if rank.status:
                    self._ends.append(End(rank.rank, rank.host, rank.status, time.time()))

    def _living(self) -> list[int]:
        """Ranks that have not ended, as far as can be seen from here."""
        silence, quiet = self.files.silence(), self.limits.silent / 2

        def lives(rank: Rank) -> bool:
            return rank.lives() if rank.here else not rank.gone and silence.get(rank.rank, quiet) < quiet

        return [rank.rank for rank in self._ranks.values() if lives(rank)]

    def _look_away(self) -> None:
        """Once the command has ended: which ranks of other hosts have, too. Their last signs of life are young for a while."""
        away: dict[str, list[tuple[int, str]]] = {}
        living = set(self._living())
        for rank in self._ranks.values():
            if not rank.here and rank.rank in living:
                away.setdefault(self._address(rank), []).append((rank.pid, rank.began))
        visits = self.shell.visit_all(away, named=away, number=0)  # which tells, and does nothing
        for rank in self._ranks.values():
            visit = visits.get(self._address(rank))
            if visit is not None and not rank.here and not visit.problem:
                rank.gone = rank.pid not in visit.ended

    # ---- ending -----------------------------------------------------------------------------------------------------------------

    def _ask_to_save(self) -> None:
        """One rank that knows is enough: all agree at the next step."""
        here = orphans.ranks_here(self.mark)
        for pid in here:
            orphans.send(pid, signal.SIGTERM)
        away = [rank for rank in self._ranks.values() if not rank.here]
        told = bool(here)
        if not here and away:
            first = min(away, key=lambda rank: rank.rank)
            told = not self.shell.visit(self._address(first), named=[(first.pid, first.began)], number=signal.SIGTERM).problem
        if not told and self.process.poll() is None:
            self.process.terminate()  # the guard hands it on, and srun to its tasks

    def _address(self, rank: Rank) -> str:
        names = self.job.host_of_rank
        return names[rank.rank] if rank.rank < len(names) else rank.host

    def _clean(self) -> tuple[dict[str, Visit], list[str]]:
        """Ends everything that is left, on every host. (what visits found, what does not end)."""
        if self.process.poll() is None:  # else its number may be another's by now; what is left of its group has the mark
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _, left = orphans.end_here(self.mark)
        named: dict[str, list[tuple[int, str]]] = {}
        for rank in self._ranks.values():
            if not rank.here:
                named.setdefault(self._address(rank), []).append((rank.pid, rank.began))
            elif rank.lives():  # of a launcher that lost the mark
                orphans.send(rank.pid, signal.SIGKILL)
        visits = self.shell.visit_all({*named, *self.hosts}, self.mark, named)
        said = [f"process {pid} on this machine does not end, though it was killed" for pid in left]
        said += [
            f"process {pid} on {host} does not end, though it was killed" for host, visit in visits.items() for pid in visit.left
        ]
        return visits, said


class Follower(threading.Thread):
    """Shows a file on standard output as it grows. An output that nobody takes is dropped."""

    def __init__(self, path: Path) -> None:
        super().__init__(daemon=True, name="output")
        self._path, self._ended = path, threading.Event()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError), open(self._path, "rb") as file:
            while True:
                ended = self._ended.is_set()
                while block := file.read(1 << 16):
                    sys.stdout.buffer.write(block)
                    sys.stdout.flush()
                if ended:
                    return
                self._ended.wait(0.2)

    def finish(self) -> None:
        self._ended.set()
        self.join(5.0)  # a terminal that is stopped keeps the thread, nobody else


def can_write(folder: Path) -> bool:
    """Whether ranks could leave a sign of life on this disk."""
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return file.write(bytes(4096)) == 4096
    except OSError:
        return False

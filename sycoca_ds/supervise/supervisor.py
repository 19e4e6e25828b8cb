"""One command kept going: attempts, what ended each, pauses, and the books of all of them."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import sys
import time
import uuid
from dataclasses import asdict
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import write_json, write_text
from data_pipeline.progress import format_seconds
from sycoca_ds.engine.safety.run_lock import FILE as LOCK_FILE
from sycoca_ds.engine.safety.run_lock import lives, read_owner
from sycoca_ds.engine.safety.status import EXIT_HANG
from sycoca_ds.supervise import ledger, orphans
from sycoca_ds.supervise.attempt import Attempt, Ended, Stop
from sycoca_ds.supervise.causes import COMPLETED, DATA, DISK, HANG, KILLED, PREEMPTED, USER
from sycoca_ds.supervise.evidence import Evidence, Files, bytes_of_newest, newest_sealed, telling_lines
from sycoca_ds.supervise.job import ALONE, Job
from sycoca_ds.supervise.options import SuperviseOptions
from sycoca_ds.supervise.orphans import Shell
from sycoca_ds.supervise.verdict import DONE, RESTART, STOP, WITHOUT_HOST, Verdict, judge, read_history, trail_of, write_verdict
from sycoca_ds.train import EXIT_PREEMPTED

FOLDER = "supervise"
"""Of the run."""
CURRENT_FILE = "current.json"
"""In it, while an attempt runs: what a supervisor that finds it needs to finish the books of one that was killed."""


class Supervisor:
    """One command, from the first start to the last end."""

    def __init__(self, job: Job, options: SuperviseOptions, stop: Stop) -> None:
        self.job, self.options, self.stop = job, options, stop
        self.run, self.folder = job.run, job.run / FOLDER
        self.history_file = self.folder / "history.jsonl"
        self.past = read_history(self.history_file)
        self.lines = ledger.read_ledger(self.run)
        self.shell = Shell(job.shell_options)
        self.id, self.left_out = self._own_id(), []
        self._ended: float | None = None  # time.monotonic() of the last attempt's end

    def _own_id(self) -> str:
        """A name of the run that no other run has: processes of an earlier supervisor of it are known by it, and ended. The
        folder's own number in its file system is part of it: a copy of a run is another run."""
        path = self.folder / "id"
        try:
            if not path.exists():
                write_text(path, uuid.uuid4().hex[:16])
            return f"{path.read_text().strip()}.{self.folder.stat().st_ino}"
        except OSError as error:
            raise UserError(f"run.out = {self.run}: {error}: choose a folder that can be written") from error

    def _mark(self, number: int) -> str:
        """By which an attempt's processes are known; of no mark the beginning is another one."""
        return f"{self.id}.{number}."

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those that are reached by ssh; DeepSpeed itself uses it where there are several."""
        several = len(self.job.hosts) > 1 or ALONE in self.job.words
        return tuple(host.name for host in self.job.hosts) if several else ()

    def work(self) -> int:
        """Returns the exit status."""
        self._end_leftovers()
        self._adopt()
        number = max([0, *(record["attempt"] for record in self.past), *(line.attempt for line in self.lines)])
        while True:
            number += 1
            verdict = self._attempt(number)
            if verdict.action == WITHOUT_HOST:
                self.job = self.job.without(verdict.host, self.options.min_hosts, (self.folder / "hostfile").absolute())
                self.left_out.append(verdict.host)
                say(f"going on without {verdict.host}: {shlex.join(self.job.words[: self.job.place])} ...")
            if verdict.action in (DONE, STOP):
                return self._end(verdict)
            if not self._wait(verdict):
                return EXIT_PREEMPTED

    def _attempt(self, number: int) -> Verdict:
        mark, log = self._mark(number), self.folder / f"attempt_{number:04d}.log"
        before, killed = newest_sealed(self.run), KernelKills()
        # whoever is left of earlier ones, also on a host that is back, and who can be reached
        visits = self.shell.visit_all([*self.hosts, *self.left_out], f"{self.id}.")
        unreachable = {host: visits[host].problem for host in self.hosts if visits[host].problem}
        launched, down = time.time(), self._down()
        if unreachable:
            said = tuple(f"{host}: {problem}" for host, problem in unreachable.items())
            ended = Ended(None, "", Files(self.run), seconds=0.0)
            evidence = self._evidence(ended, before, {}, said, tuple(unreachable))
        else:
            say(f"attempt {number}: {shlex.join(self.job.words)}")
            with contextlib.suppress(OSError):
                write_json(self.folder / CURRENT_FILE, {"attempt": number, "launched": launched, "down": down, "before": before})
            attempt = Attempt(self.job, mark, log, self.options.limits(self.job), self.stop, self.shell, self.hosts)
            ended = attempt.run()
            counts = [(host, visit.oom_kills, visits[host].oom_kills) for host, visit in ended.visits.items() if host in visits]
            more = {host: now - then for host, now, then in counts if None not in (now, then)}
            more |= {"": killed.of(ended)}
            lost = tuple(host for host, visit in ended.visits.items() if visit.problem)
            evidence = self._evidence(ended, before, more, telling_lines(attempt.log), lost)
        self._ended = time.monotonic()
        verdict = judge(
            number,
            evidence,
            self.past,
            restarts=self.options.restarts,
            why_not_without=lambda host: self.job.why_not_without(host, self.options.min_hosts),
        )
        self._record(verdict, evidence, ended, launched, down)
        return verdict

    def _adopt(self) -> None:
        """Books the attempt of a supervisor that was killed, from the files that its ranks left."""
        try:
            began = json.loads((self.folder / CURRENT_FILE).read_text())
            number, launched, before = began["attempt"], began["launched"], began["before"]
        except (OSError, ValueError, KeyError):
            return
        files = Files(self.run, since=launched)
        files.look(self._mark(number))
        run, beats = files.status(), list(files.beats.values())
        last = max([launched, run.get("time", 0.0), *(beat["time"] for beat in beats)])
        met = min((beat["time"] - launched - beat["seconds"] - sum(beat["spent"].values()) for beat in beats), default=None)
        met = met and max(0.0, met)
        ended = Ended(None, "its supervisor was killed", files, seconds=last - launched, met=met)
        evidence = self._evidence(ended, before, {}, telling_lines(self.folder / f"attempt_{number:04d}.log"), ())
        saved = run.get("status") in (COMPLETED, PREEMPTED)
        verdict = Verdict(
            attempt=number,
            kind=run["status"] if saved else KILLED,
            rank=None,
            host="",
            phase="",
            step=run.get("step"),
            evidence=("its supervisor was killed", f"run_status.json: {run.get('status')} at step {run.get('step')}"),
            action=RESTART,
            reason="the supervisor was started again",
            before=before,
            after=evidence.after,
            progress=evidence.after is not None and (before is None or evidence.after > before),
            status=None,
        )
        self._record(verdict, evidence, ended, launched, began.get("down", 0.0))

    def _evidence(
        self, ended: Ended, before: int | None, oom_kills: dict[str, int], said: tuple[str, ...], unreachable: tuple[str, ...]
    ) -> Evidence:
        return Evidence(
            status=ended.status,
            ended=ended.why,
            run=ended.files.status(),
            failures=ended.files.failures(),
            signs=ended.files.signs(),
            ends=tuple(ended.ends),
            said=said,
            oom_kills=oom_kills,
            unreachable=unreachable,
            left=tuple(ended.left),
            free=free_bytes(self.run),
            needed=bytes_of_newest(self.run),
            host_of_rank=tuple(self.job.host_of_rank),
            before=before,
            after=newest_sealed(self.run),
        )

    def _record(self, verdict: Verdict, evidence: Evidence, ended: Ended, launched: float, down: float) -> None:
        """Each book has an attempt once, also where a supervisor was killed between two of them, and the next one adopts what is in
        some already."""
        record = {**verdict.record(), "launched": round(launched, 3), "seconds": round(ended.seconds, 3)}
        line = ledger.make_line(
            verdict.attempt,
            verdict.kind,
            launched=launched,
            down=down,
            total=ended.seconds,
            met=ended.met,
            beats=ended.files.beats.values(),
            told=evidence.run.get("step"),
            kept=verdict.after,
        )
        if verdict.attempt not in [other["attempt"] for other in self.past]:
            self.past.append(record)
            write_verdict(self.run, record, self.history_file)
            with contextlib.suppress(OSError):
                write_json(self.folder / f"attempt_{verdict.attempt:04d}.json", json.loads(json.dumps(asdict(evidence))))
        if verdict.attempt not in [other.attempt for other in self.lines]:
            self.lines.append(line)
            ledger.append(self.run, line)
            ledger.show_in_tensorboard(self.run, self.lines)
        with contextlib.suppress(OSError):
            (self.folder / CURRENT_FILE).unlink(missing_ok=True)
        say(f"attempt {verdict.attempt} ended after {format_seconds(ended.seconds)}: {verdict.line()}")
        for line_of_it in (*verdict.evidence[1:4], *evidence.left):
            say(f"    {line_of_it}")

    def _down(self) -> float:
        """Seconds since the last attempt; of another supervisor's by the clock, which may have been set."""
        if self._ended is not None:
            return time.monotonic() - self._ended
        return max(0.0, time.time() - self.lines[-1].launched - self.lines[-1].total) if self.lines else 0.0

    def _wait(self, verdict: Verdict) -> bool:
        """The pause before a restart; False: asked to stop meanwhile."""
        trail = sum(record["class"] != PREEMPTED for record in trail_of(self.past))
        seconds = 0.0 if verdict.kind == PREEMPTED else self.options.pause(trail)
        checkpoint = "no checkpoint yet" if verdict.after is None else f"checkpoint of step {verdict.after}"
        say(f"{verdict.action} in {seconds:.0f} s ({checkpoint}; restarts without a newer one: {trail} of {self.options.restarts})")
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stop.asked:
            time.sleep(0.1)
        return not self.stop.asked

    def _end(self, verdict: Verdict) -> int:
        say(f"{verdict.action}: {verdict.reason}")
        print(ledger.table(self.lines), flush=True)
        if verdict.kind == COMPLETED:
            return 0
        if verdict.action == DONE:
            saved = verdict.kind == PREEMPTED and self.stop.asked < 2
            return EXIT_PREEMPTED if saved else 128 + self.stop.number
        return {USER: 2, DATA: 2, DISK: 2, HANG: EXIT_HANG}.get(verdict.kind, 1)

    def _end_leftovers(self) -> None:
        """What an earlier supervisor of this run left, which was killed: its training is given the time to save. Raises `UserError`
        if someone else trains in the folder."""
        mark, said = f"{self.id}.", False
        until = time.monotonic() + self.options.limits(self.job).save
        while orphans.marked(mark) and time.monotonic() < until and not self.stop.asked:
            if not said:
                say("the training of an earlier supervisor is still there: waiting until it has saved and ended")
                said = True
            time.sleep(0.5)
        orphans.end_here(mark)
        self.shell.visit_all(self.hosts, mark)
        owner = read_owner(self.run / LOCK_FILE)
        if owner is not None and lives(owner, self.run / LOCK_FILE):
            raise UserError(
                f"{self.run} is in use: process {owner['pid']} on {owner['host']} trains there since {owner['since']}; wait for "
                "its end, stop it, or choose another --run.out"
            )


class KernelKills:
    """What the kernel had killed for want of memory on this machine when an attempt began."""

    def __init__(self) -> None:
        self._count, self._log = orphans.kills_for_memory(), orphans.killed_by_the_kernel()

    def of(self, ended: Ended) -> int:
        """How many since then: of the attempt's own processes where the kernel's log tells, else of all that are counted."""
        log = orphans.killed_by_the_kernel()
        if log is not None and self._log is not None:
            mentioned = {int(pid) for failure in ended.files.failures() for pid in re.findall(r"\bpid (\d+)", failure.message)}
            return len({pid for _, pid in log - self._log} & (ended.pids | mentioned))
        count = orphans.kills_for_memory()
        return 0 if None in (count, self._count) else count - self._count


def free_bytes(run: Path) -> int:
    try:
        return shutil.disk_usage(run).free
    except OSError:
        return 0


def say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)

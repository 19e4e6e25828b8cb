"""What a supervisor knows its run by, and writes down of it, whatever was done to the folder or to the supervisor before."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks.process_table import whoami
from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE, FAILURES, HEARTBEATS, record_failure, write_status
from sycoca_ds.supervise import evidence, ledger, orphans
from sycoca_ds.supervise.attempt import Attempt, Limits, Stop
from sycoca_ds.supervise.causes import find_cause
from sycoca_ds.supervise.evidence import Evidence, Files, bytes_of_newest, newest_sealed
from sycoca_ds.supervise.job import parse_job
from sycoca_ds.supervise.options import SuperviseOptions
from sycoca_ds.supervise.orphans import Shell
from sycoca_ds.supervise.supervisor import CURRENT_FILE, FOLDER, Supervisor
from sycoca_ds.supervise.verdict import read_history
from tests.worlds.processes.watching import wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(100)"]


def supervisor(run: Path) -> Supervisor:
    (run / FOLDER).mkdir(parents=True, exist_ok=True)
    job = parse_job(["python", "sycoca_ds/train.py", "--data.train", "somewhere", "--run.out", str(run)])
    options = replace(SuperviseOptions(), save_minutes=1 / 60)
    return Supervisor(job, options, Stop())


def attempt(run: Path, process: object) -> Attempt:
    job = supervisor(run).job
    made = Attempt(job, f"mark{os.getpid()}.", run / "log", Limits(1, 1, 1, 1), Stop(), Shell())
    made.began, made.files, made._met, made.process = time.monotonic(), Files(run), None, process
    return made


def test_a_copy_of_a_run_is_another_one_whose_processes_are_left_alone(tmp_path: Path) -> None:
    """As somebody makes it to go on from there with other options, while the run itself goes on."""
    original = supervisor(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    rank = subprocess.Popen(SLEEPER, env={**os.environ, ATTEMPT_VARIABLE: original._mark(1)})
    try:
        assert wait_until(lambda: rank.pid in orphans.marked(original._mark(1)), 10)
        supervisor(tmp_path / "copy")._end_leftovers()
        assert rank.poll() is None
        (tmp_path / "run").rename(tmp_path / "moved")
        supervisor(tmp_path / "moved")._end_leftovers()
        assert rank.wait(10) == -signal.SIGKILL, "a run that was moved is the same one"
    finally:
        rank.kill()
        rank.wait()


@pytest.mark.parametrize("lost", [(), ("ledger",), ("ledger", "history")])
def test_an_attempt_stands_in_the_books_once_wherever_its_supervisor_was_killed(lost: tuple[str, ...], tmp_path: Path) -> None:
    """In the middle of writing them; the next one finds it as one that runs."""
    run, current = tmp_path / "run", {"attempt": 1, "launched": time.time() - 5, "down": 0.0, "before": None}
    first = supervisor(run)
    (run / FOLDER / CURRENT_FILE).write_text(json.dumps(current))
    first._adopt()
    assert not (run / FOLDER / CURRENT_FILE).exists()
    (run / FOLDER / CURRENT_FILE).write_text(json.dumps(current))
    if "ledger" in lost:
        (run / ledger.LEDGER_FILE).unlink()
    if "history" in lost:
        first.history_file.unlink()
    supervisor(run)._adopt()
    assert [record["attempt"] for record in read_history(first.history_file)] == [1]
    assert [line.attempt for line in ledger.read_ledger(run)] == [1]
    assert not (run / FOLDER / CURRENT_FILE).exists()


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "run" / FOLDER).mkdir(parents=True)
    (tmp_path / "run" / FOLDER / f".id.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left on device: choose a folder that can be written"):
        supervisor(tmp_path / "run")


def test_pauses_grow_to_the_longest_however_often_a_job_fails() -> None:
    options = SuperviseOptions(back_off_seconds=15.0, longest_back_off_seconds=600.0)
    assert [options.pause(n) for n in (0, 1, 2, 3, 7, 2000)] == [15, 15, 30, 60, 600, 600]


def test_a_disk_that_does_not_answer_has_no_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(checkpoints: Path) -> list[Path]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(evidence, "sealed", broken)
    assert newest_sealed(tmp_path) is None and bytes_of_newest(tmp_path) == 0


def test_a_process_group_whose_leader_has_been_waited_for_is_not_ended_by_number(tmp_path: Path) -> None:
    """Numbers come again: here a stranger has that of the command."""
    stranger = subprocess.Popen(SLEEPER, start_new_session=True)
    try:
        attempt(tmp_path, SimpleNamespace(pid=stranger.pid, poll=lambda: 0, wait=lambda: 0))._clean()
        time.sleep(0.2)
        assert stranger.poll() is None
        attempt(tmp_path, stranger)._clean()
        assert stranger.wait(10) == -signal.SIGKILL
    finally:
        stranger.kill()
        stranger.wait()


def test_a_rank_that_was_started_anew_under_the_same_number_is_another_process(tmp_path: Path) -> None:
    """As torchrun starts it after a failure."""
    watched = attempt(tmp_path, None)
    (tmp_path / HEARTBEATS).mkdir()
    for began in ("100", "200"):
        beat = {**whoami(), "began": began, "phase": "step", "step": 3, "seconds": 1.0, "spent": {}, "time": time.time()}
        (tmp_path / HEARTBEATS / "rank_00000.json").write_text(json.dumps(beat))
        watched._look_at_files()
        assert watched._ranks[0].began == began


def test_a_rank_of_an_earlier_attempt_that_wakes_up_and_fails_is_not_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine had stood still, and nobody reached it: this attempt must not be ended for it."""
    files = Files(tmp_path)
    files.look("run.2.")
    for mark, rank in (("run.1.", 1), ("run.2.", 0), (None, 2)):
        monkeypatch.delenv(ATTEMPT_VARIABLE, raising=False)
        if mark is not None:
            monkeypatch.setenv(ATTEMPT_VARIABLE, mark)
        record_failure(tmp_path, rank, "hang", "rank 0 is not reached")
        write_status(tmp_path, {"status": "failed", "step": rank})
        assert files.status().get("step") == {"run.1.": None, "run.2.": 0, None: 2}[mark]
    assert [failure.rank for failure in files.failures()] == [0, 2]
    for text in ("[]", "null", "", '{"rank": 3}'):
        (tmp_path / FAILURES / "rank_00003.json").write_text(text)
        assert [failure.rank for failure in files.failures()] == [0, 2]


def test_who_failed_first_is_said_by_the_clocks_of_the_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/failures.md says: rank 1 writes its end last, on a host whose clock is a minute behind."""
    files = Files(tmp_path)
    for rank, clock in ((2, 1001.0), (0, 1000.0), (1, 942.0)):
        monkeypatch.setattr("sycoca_ds.engine.safety.status.time.time", lambda clock=clock: clock)
        record_failure(tmp_path, rank, "error", f"ValueError: rank {rank}")
    found = Evidence(status=1, failures=files.failures())
    assert [failure.rank for failure in found.failures] == [1, 0, 2] and find_cause(found).rank == 1

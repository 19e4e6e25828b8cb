"""One training a folder: who holds it is refused by name, who is gone is taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks.process_table import whoami
from sycoca_ds.engine.safety import run_lock
from sycoca_ds.engine.safety.run_lock import FILE, RunLock, read_owner
from tests.worlds import REPOSITORY
from tests.worlds.processes.watching import wait_until

HOLDER = (
    "import sys, time; sys.path.insert(0, {repository!r})\nfrom pathlib import Path\nfrom sycoca_ds.engine.safety import run_lock\n"
    "run_lock.BEAT_SECONDS = 0.1\nlock = run_lock.RunLock(Path({run!r}))\nlock.take()\nprint('held', flush=True)\n"
    "while True:\n    time.sleep(0.05)\n    lock.check()\n"
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(run_lock, "DEAD_SECONDS", 3.0)


def holder(run: Path) -> subprocess.Popen:
    code = HOLDER.format(repository=str(REPOSITORY), run=str(run))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def elsewhere(run: Path, **changes: object) -> None:
    """The lock's file as a process on another machine would have written it."""
    owner = read_owner(run / FILE) or {**whoami(), "id": "x", "since": "then", "beat": 1}
    (run / FILE).write_text(json.dumps({**owner, "host": "node-b", "boot": "another", "pid": 77, **changes}))


def test_a_second_training_is_refused_by_name_and_a_killed_one_taken_over(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with pytest.raises(UserError, match=f"in use: process {process.pid} on {os.uname().nodename} trains there"):
        RunLock(tmp_path).take()
    process.send_signal(signal.SIGKILL)
    process.wait()
    lock = RunLock(tmp_path)
    lock.take()
    assert read_owner(tmp_path / FILE)["pid"] == os.getpid()
    lock.release()
    assert not (tmp_path / FILE).exists()


def test_a_number_that_another_process_has_now_is_no_sign_of_life(tmp_path: Path) -> None:
    owner = {**whoami(), "id": "x", "since": "then", "beat": 1}
    (tmp_path / FILE).write_text(json.dumps({**owner, "began": "1"}))
    RunLock(tmp_path).take()
    (tmp_path / FILE).write_text(json.dumps(owner))
    with pytest.raises(UserError, match=f"process {os.getpid()} on"):
        RunLock(tmp_path).take()


@pytest.mark.parametrize("host", ["node-b", os.uname().nodename])
def test_on_another_machine_a_beat_is_the_sign_of_life(host: str, tmp_path: Path) -> None:
    """Also where it is called as this one is; this one itself, started anew since, gives none."""
    elsewhere(tmp_path, host=host)
    beats = iter(range(2, 1000))
    done = threading.Event()
    giver = threading.Thread(
        target=lambda: [elsewhere(tmp_path, host=host, beat=next(beats)) for _ in iter(lambda: done.wait(0.2), True)]
    )
    giver.start()
    try:
        with pytest.raises(UserError, match=f"in use: process 77 on {host}"):
            RunLock(tmp_path).take()
    finally:
        done.set()
        giver.join()
    began = time.monotonic()
    lock = RunLock(tmp_path)
    lock.take()
    assert time.monotonic() - began >= 3 and read_owner(tmp_path / FILE)["pid"] == os.getpid()
    lock.release()


def test_a_process_that_was_stopped_and_overtaken_ends(tmp_path: Path) -> None:
    process = holder(tmp_path)
    process.send_signal(signal.SIGSTOP)
    elsewhere(tmp_path, id="taken over")
    process.send_signal(signal.SIGCONT)
    assert process.wait(20) == 1 and "was taken over by process 77 on node-b" in process.stderr.read()
    assert read_owner(tmp_path / FILE)["id"] == "taken over"


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"id": 1'])
def test_a_file_that_is_no_owners_holds_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(content)
    lock = RunLock(tmp_path)
    lock.take()
    lock.release()


def test_of_many_starts_at_once_one_gets_it(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({**whoami(), "id": "x", "since": "then", "beat": 1, "began": "1"}))  # of a killed one
    code = HOLDER.format(repository=str(REPOSITORY), run=str(tmp_path))
    starts = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(5)
    ]
    try:
        assert wait_until(lambda: sum(p.poll() is not None for p in starts) == 4, 40)
        time.sleep(1)
        (winner,) = (p for p in starts if p.poll() is None)
        assert read_owner(tmp_path / FILE)["pid"] == winner.pid
        for process in starts:
            if process is not winner:
                assert f"in use: process {winner.pid} on" in process.stderr.read()
    finally:
        for process in starts:
            process.kill()


def test_a_lock_that_cannot_be_removed_hides_no_other_error(tmp_path: Path) -> None:
    """On a disk that is read-only by the end of the run; the next start finds that its process is gone."""
    lock = RunLock(tmp_path)
    lock.take()
    (tmp_path / FILE).unlink()
    (tmp_path / FILE).mkdir()
    lock.release()

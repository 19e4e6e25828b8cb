"""How the commands that run others end what they have started."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from sycoca_ds.launch import processes
from tests.worlds.processes.launching import members


def started(tmp_path: Path, on_term: str) -> subprocess.Popen:
    """A program that is gone at once when it is asked to end, as DeepSpeed's is; another in its group then runs `on_term`."""
    rank = f"trap '{on_term}' TERM; touch {tmp_path}/ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(["sh", "-c", 'sh -c "$0" & wait', rank], start_new_session=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_what_saves_is_waited_for_after_its_launcher_is_gone(tmp_path: Path) -> None:
    process = started(tmp_path, f"sleep 2; touch {tmp_path}/saved; exit")
    processes.stop(process)
    assert (tmp_path / "saved").exists() and not members(process.pid)


def test_what_does_not_end_is_killed_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "SAVE_SECONDS", 1.0)
    process = started(tmp_path, "")
    processes.stop(process)
    time.sleep(0.1)
    assert not members(process.pid)


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = started(tmp_path, "")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            processes.stop(process)
    finally:
        signal.signal(signal.SIGALRM, before)
    time.sleep(0.1)
    assert not members(process.pid) and time.monotonic() - began < 10

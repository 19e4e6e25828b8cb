"""Processes are found by a mark that they inherit, signalled by number and start, and nobody else is touched."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sycoca_ds.engine.ranks.process_table import process_began
from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE
from sycoca_ds.supervise import orphans
from sycoca_ds.supervise.orphans import Shell, Visit
from tests.worlds.processes.watching import wait_until

FAMILY = (
    "import os, signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'], start_new_session=True)\n"
    "os.fork()\ntime.sleep(100)\n"
)
"""Three processes: one that ignores SIGTERM, its fork, and a child in a session of its own, as writers of checkpoints are."""


OWN = uuid.uuid4().hex[:8]
"""What an earlier call of these tests left is not ours."""


def start(mark: str, code: str = "import time; time.sleep(100)", **more: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, ATTEMPT_VARIABLE: mark, **more})


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen]:
    """Of another run's supervisor, whose mark begins alike."""
    process = start(f"{OWN}feed12.1")
    yield process
    assert process.poll() is None, "a process of another run was ended"
    process.kill()
    process.wait()


def test_a_whole_family_is_ended_and_nobody_else(stranger: subprocess.Popen) -> None:
    process = start(f"{OWN}feed1.7", FAMILY)
    assert wait_until(lambda: len(orphans.marked(f"{OWN}feed1.")) == 3, 10)
    ended, left = orphans.end_here(f"{OWN}feed1.")
    assert process.pid in ended and len(ended) >= 3 and left == []
    assert process.wait() == -signal.SIGKILL and orphans.marked(f"{OWN}feed1.") == {}


def test_one_attempt_is_told_from_another() -> None:
    first, second = start(f"{OWN}feed2.1."), start(f"{OWN}feed2.11.")
    assert wait_until(lambda: len(orphans.marked(f"{OWN}feed2.")) == 2, 10)
    orphans.end_here(f"{OWN}feed2.1.")
    assert first.wait() == -signal.SIGKILL and second.poll() is None
    orphans.end_here(f"{OWN}feed2.")
    assert second.wait() == -signal.SIGKILL


def test_ranks_are_those_with_a_place() -> None:
    launcher, rank = start(f"{OWN}feed3.1"), start(f"{OWN}feed3.1", LOCAL_RANK="0")
    assert wait_until(lambda: len(orphans.marked(f"{OWN}feed3.")) == 2, 10)
    assert orphans.ranks_here(f"{OWN}feed3.1") == [rank.pid]
    orphans.end_here(f"{OWN}feed3.")
    launcher.wait(), rank.wait()


@pytest.mark.parametrize("code, status", [("exit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -11), ("", 0)])
def test_how_a_process_ended_is_seen_before_its_parent_asks(code: str, status: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"input(); {code}"], stdin=subprocess.PIPE)
    began = process_began(process.pid)
    assert orphans.exit_status(process.pid, began) is None
    process.stdin.write(b"\n")
    process.stdin.close()
    assert wait_until(lambda: orphans.exit_status(process.pid, began) is not None, 10)
    assert orphans.exit_status(process.pid, began) == status and orphans.exit_status(process.pid, "1") is None
    assert process.wait() == status and orphans.exit_status(process.pid, began) is None


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In ssh's place a script that notes its words and runs what it is given here."""
    script = tmp_path / "ssh"
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/words\ncase "$*" in *silent*) sleep 60;; *gone*) exit 255;; esac\nexec sh\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "words"


def test_another_host_is_cleaned_by_mark_and_by_name(ssh: Path, stranger: subprocess.Popen) -> None:
    marked, named, reused = start(f"{OWN}feed1.3", FAMILY), start(f"{OWN}other.1"), start(f"{OWN}other.2")
    assert wait_until(lambda: len(orphans.marked(f"{OWN}feed1.")) == 3 and len(orphans.marked(f"{OWN}other.")) == 2, 10)
    found = Shell(("-p", "2222")).visit("node-b", f"{OWN}feed1.", [(named.pid, process_began(named.pid)), (reused.pid, "1")])
    assert found.problem == "" and {marked.pid, named.pid} < set(found.ended) and found.left == () and found.oom_kills is not None
    assert marked.wait() == named.wait() == -signal.SIGKILL and reused.poll() is None
    assert "-p 2222 node-b sh" in ssh.read_text() and "BatchMode=yes" in ssh.read_text()
    reused.kill()
    reused.wait()


def test_a_visit_may_ask_politely_and_touches_nobody_unnamed(ssh: Path, stranger: subprocess.Popen) -> None:
    process = start(f"{OWN}other.1")
    found = Shell().visit("node-b", named=[(process.pid, process_began(process.pid))], number=signal.SIGTERM)
    assert found.ended == (process.pid,) and process.wait() == -signal.SIGTERM
    assert Shell().visit("node-b").ended == ()


def test_what_a_login_prints_is_not_taken_for_an_answer() -> None:
    lines = ["left over from yesterday", "ended 12", "ended well", "left 7", "oom ", "done"]
    assert (orphans._after(lines, "left"), orphans._after(lines, "ended"), orphans._after(lines, "oom")) == (["7"], ["12"], [])


def test_hosts_that_are_silent_do_not_keep_the_others(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "SWEEP_SECONDS", 2.0)
    began = time.monotonic()
    found = Shell().visit_all(["node-a", "silent-b", "silent-c", "gone-d"], f"{OWN}feed1.")
    assert time.monotonic() - began < 10
    assert found["node-a"] == Visit(oom_kills=found["node-a"].oom_kills)
    assert found["silent-b"].problem == found["silent-c"].problem == "no answer within 2 s"
    assert found["gone-d"].problem == "ssh ended with status 255"


def test_a_kill_by_the_kernel_stands_in_its_log() -> None:
    """In a control group with little memory; the second of two processes with one number, too (numbers come again)."""
    group = Path(f"/sys/fs/cgroup/memory/sycoca_test_{os.getpid()}")
    if orphans.killed_by_the_kernel() is None:
        pytest.skip("the kernel's log cannot be read here")
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(100 << 20))
    except OSError:
        pytest.skip("making a control group needs to be root, and version 1 of them")
    code = f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid())); bytearray(1 << 30)"
    last, number = Path("/proc/sys/kernel/ns_last_pid"), None
    for _ in range(2):
        before, counted = orphans.killed_by_the_kernel(), orphans.kills_for_memory()
        for _ in range(50):  # another process may take the number first
            if number is not None:
                last.write_text(str(number - 1))
            process = subprocess.Popen([sys.executable, "-c", code])
            assert process.wait(60) == -signal.SIGKILL
            if number in (None, process.pid):
                break
            before = orphans.killed_by_the_kernel()
        number = number or process.pid
        assert process.pid == number
        assert number in {pid for _, pid in orphans.killed_by_the_kernel() - before}
        assert orphans.kills_for_memory() > counted
    group.rmdir()

"""The guard around a command whose starter is gone: in its second form a training may save first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from sycoca_ds.launch.processes import GUARD
from tests.worlds.processes.watching import members, mentioning, wait_until

RANK = (
    "import signal, sys, time\n"
    "def save(*_):\n    time.sleep({seconds})\n    open({file!r}, 'a').write('saved\\n')\n    sys.exit(75)\n"
    "signal.signal(signal.SIGTERM, save)\nopen({file!r}, 'a').write('ready\\n')\nwhile True:\n    time.sleep(0.1)\n"
)
LAUNCHER = (
    "import os, signal, subprocess, sys, time\n"
    "place = {{**os.environ, 'LOCAL_RANK': '0'}}\n"
    "rank = subprocess.Popen([sys.executable, '-c', {rank!r}], env=place, start_new_session={apart})\n"
    "{then}\n"
)
"""`apart`: as torchrun starts its ranks, in groups of their own."""


def guarded(tmp_path: Path, *, seconds: float, patience: float, apart: bool = False, then: str = "rank.wait()") -> subprocess.Popen:
    """The guard, after its rank has said that it is ready."""
    file, mark = tmp_path / "said", f"PYTHON_TEST_MARK={uuid.uuid4().hex}"
    rank = RANK.format(seconds=seconds, file=str(file))
    words = [sys.executable, "-c", LAUNCHER.format(rank=rank, apart=apart, then=then)]
    name, value = mark.split("=")
    process = subprocess.Popen(
        [sys.executable, "-I", str(GUARD), "--mark", mark, "--patience", str(patience), *words],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, name: value},
    )
    assert wait_until(lambda: file.exists() and "ready" in file.read_text(), 20)
    return process


@pytest.mark.parametrize("apart", [False, True])
def test_a_training_may_save_when_its_starter_is_gone(apart: bool, tmp_path: Path) -> None:
    process = guarded(tmp_path, seconds=1.0, patience=30, apart=apart)
    process.stdin.close()
    assert process.wait(20) == -signal.SIGKILL, "it ends its own group, itself included"
    assert (tmp_path / "said").read_text() == "ready\nsaved\n" and not members(process.pid)


def test_ranks_whose_launcher_is_gone_first_have_the_time_as_well(tmp_path: Path) -> None:
    then = "signal.signal(signal.SIGTERM, lambda *_: os._exit(1))\ntime.sleep(1000)"
    process = guarded(tmp_path, seconds=2.0, patience=30, then=then)
    (launcher,) = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    process.stdin.close()
    time.sleep(0.5)
    os.kill(launcher, signal.SIGKILL)
    process.wait(20)
    assert (tmp_path / "said").read_text() == "ready\nsaved\n" and not members(process.pid)


@pytest.mark.parametrize("apart", [False, True])
def test_not_for_ever(apart: bool, tmp_path: Path) -> None:
    process, began = guarded(tmp_path, seconds=1000, patience=1.5, apart=apart), time.monotonic()
    process.stdin.close()
    process.wait(20)
    assert time.monotonic() - began < 10 and (tmp_path / "said").read_text() == "ready\n"
    assert wait_until(lambda: not mentioning(str(tmp_path / "said")), 5)


def test_a_command_that_is_a_rank_itself_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "said"
    words = [sys.executable, "-c", RANK.format(seconds=0.5, file=str(file))]
    process = subprocess.Popen(
        [sys.executable, "-I", str(GUARD), "--mark", "PYTHON_TEST_MARK=x", "--patience", "30", *words],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert wait_until(file.exists, 20)
    process.stdin.close()
    process.wait(20)
    assert file.read_text() == "ready\nsaved\n"

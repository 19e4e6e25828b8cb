"""`launch check` with more hosts than a process may have open files, and of machines that tell little: programs stand in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sycoca_ds.launch import probe
from tests.worlds import REPOSITORY

HOSTS = 40


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    "hard, status, said", [(4096, 1, f"node3 and {HOSTS - 4} more: not checked: no ssh\n1 red\n"), (200, 2, "`ulimit -Hn` is 200")]
)
def test_as_many_files_are_open_as_hosts_need(hard: int, status: int, said: str, tmp_path: Path) -> None:
    """The usual limit of 1024 is reached with some hundred hosts."""
    program(tmp_path, "ssh", 'case "$*" in *-G*) exit 0;; esac\nsleep 4; exit 255')
    program(tmp_path, "pdsh", "exit 1")
    (tmp_path / "hosts").write_text("".join(f"node{n} slots=1\n" for n in range(HOSTS)))
    limited = (
        f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))\n"
        "runpy.run_module('sycoca_ds.launch', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "check", "--hostfile", str(tmp_path / "hosts")],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == status and said in done.stdout and "Traceback" not in done.stdout, done.stdout[-2000:]


def test_a_driver_that_does_not_tell_the_memory_hides_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA A100, 81920, 4'; echo 'NVIDIA GB10, [N/A], [N/A]'; echo 'Unable to determine'")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert probe.gpus() == [["NVIDIA A100", 81920, 4], ["NVIDIA GB10", 0, 0]]

"""The lock that a killed compilation leaves behind must not stop the next one for ever."""

from __future__ import annotations

import os
import shutil
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.engine import operators
from sycoca_ds.engine.operators import STALE_SECONDS, lacking, needed_operators, said_if_compiling, wait_for_builds, wait_for_lock
from sycoca_ds.engine.ranks.environment import prepare_deepspeed
from tests.worlds.processes.launching import finish, start


def test_a_left_over_lock_is_removed_and_a_live_one_is_waited_for(tmp_path: Path) -> None:
    assert wait_for_lock(tmp_path) is False
    lock = tmp_path / "lock"
    lock.touch()
    old = time.time() - 1000
    os.utime(lock, (old, old))
    assert wait_for_lock(tmp_path, stale_seconds=180) is True and not lock.exists()
    lock.touch()
    release = threading.Timer(1.0, lock.unlink)
    release.start()
    start = time.monotonic()
    assert wait_for_lock(tmp_path, stale_seconds=180) is False
    assert 0.9 < time.monotonic() - start < 10, "a live build holds its lock until it is done"


@pytest.mark.timeout(60)
def test_a_lock_from_the_future_is_left_over_too_when_nothing_changes(tmp_path: Path) -> None:
    """Made before a clock was set back, or on a host whose clock is ahead."""
    later = time.time() + 1000
    (tmp_path / "lock").touch()
    os.utime(tmp_path / "lock", (later, later))
    start = time.monotonic()
    assert wait_for_lock(tmp_path, stale_seconds=2) is True and not (tmp_path / "lock").exists()
    assert time.monotonic() - start > 2, "it may be a live build"


def test_a_run_gets_past_the_lock_of_a_killed_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real process that starts as train.py does, with copies of the compiled operators and a lock of long ago beside them."""
    prepare_deepspeed()
    old = time.time() - 1.1 * STALE_SECONDS
    folder = next(folder for builder, folder in needed_operators() if builder.NAME == "deepspeed_shm_comm")
    copy = tmp_path / "extensions" / folder.name
    shutil.copytree(folder, copy)
    (copy / "lock").touch()
    os.utime(copy / "lock", (old, old))  # and nothing else: ninja would compile anew what has another time than it noted
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    script = tmp_path / "begin.py"
    script.write_text(
        "from sycoca_ds.engine.ranks.environment import prepare_deepspeed\n"
        "from sycoca_ds.engine.ranks.runtime import start_runtime\n"
        "from sycoca_ds.train import end_process\n"
        "prepare_deepspeed()\nruntime = start_runtime()\nprint('started', runtime.world_size)\nruntime.leave()\nend_process(0)\n"
    )
    status, output = finish(start([], ranks=0, script=script))
    assert status == 0 and "started 1" in output, output
    assert "deepspeed_shm_comm is being compiled (lock in" in output and not (copy / "lock").exists()


def test_a_compilation_is_said_and_a_start_without_one_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_deepspeed()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    folder = needed_operators()[0][1]
    with said_if_compiling(after=0.4):
        time.sleep(1.2)
    assert capsys.readouterr().out == ""
    (folder / "lock").touch()
    with said_if_compiling(after=0.4):
        time.sleep(2)
    assert capsys.readouterr().out.count(f"compiling DeepSpeed's operators into {folder}: about 45 s") == 1


def test_what_compiling_lacks_is_named_before_it_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lacking() is None
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ninja").symlink_to(shutil.which("ninja"))
    assert lacking(str(tools)) == ("c++ on PATH", "g++ (Red Hat: gcc-c++)")
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    what, package = lacking()
    assert what == f"{tmp_path}/Python.h" and "python3-dev" in package
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    with pytest.raises(
        UserError, match="Python.h: DeepSpeed compiles its operators with it; install Python's headers: python3-dev"
    ):
        wait_for_builds()


def test_what_the_compiler_refuses_is_its_first_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Builder:
        NAME = "cpu_adam"

        def load(self, verbose: bool) -> None:
            raise RuntimeError(
                "Error building extension 'cpu_adam': [1/3] c++ ...\nx.h:13:10: fatal error: y.h: No such file\nmore"
            )

    monkeypatch.setattr(operators, "needed_operators", lambda: [(Builder(), tmp_path)])
    with pytest.raises(UserError, match="cpu_adam could not be compiled: x.h:13:10: fatal error: y.h: No such file; its folder"):
        operators.build_operators()

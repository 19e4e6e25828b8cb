"""What DeepSpeed finds in the environment, whether it is activated or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sycoca_ds.engine.operators import needed_operators
from sycoca_ds.engine.ranks.environment import prepare_deepspeed
from tests.worlds.processes.launching import REPOSITORY


def test_another_ninja_on_path_compiles_nothing_anew(tmp_path: Path) -> None:
    """A run as it starts without an activated environment, another ninja first on PATH: compiled operators stay as they are."""
    prepare_deepspeed()
    other = tmp_path / "ninja"
    other.write_text(f"#!/bin/sh\necho used >> {tmp_path}/used\nexit 1\n")
    other.chmod(0o755)
    built = [folder / f"{builder.NAME}.so" for builder, folder in needed_operators()]
    before = [path.stat().st_mtime_ns for path in built]
    code = (
        "from sycoca_ds.engine.ranks.environment import prepare_deepspeed\n"
        "from sycoca_ds.engine.operators import build_operators\n"
        "prepare_deepspeed()\nprint(*build_operators())"
    )
    words = [sys.executable, "-c", code]
    environment = {**os.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / "used").exists() and "compiling" not in done.stdout
    assert [path.stat().st_mtime_ns for path in built] == before

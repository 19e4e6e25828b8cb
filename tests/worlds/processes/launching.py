"""Processes of tests: every launch has its own port and process group, a hard time limit, and must leave no process behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import REPOSITORY
from tests.worlds.processes import warm
from tests.worlds.processes.watching import members, wait_until

LIMIT = 240
"""Seconds that any command may take."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    options: list[str],
    ranks: int,
    script: Path = REPOSITORY / "sycoca_ds/train.py",
    launch: list[str] | None = None,
    **environment: str,
) -> subprocess.Popen:
    """Starts a run in a process group of its own; `ranks` 0 runs the script without a launcher, `launch` are more words for it in
    place of a port."""
    program = [sys.executable, str(script)]
    if ranks:
        launcher = Path(sys.executable).with_name("deepspeed")
        port = ["--master_port", str(free_port())] if launch is None else launch
        program = [str(launcher), "--num_accelerators", str(ranks), *port, program[1]]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja stands beside the interpreter
    return subprocess.Popen(
        [*program, *options],
        cwd=REPOSITORY,
        env={**os.environ, "PATH": path, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def start_warm(
    options: list[str], ranks: int, script: Path = REPOSITORY / "sycoca_ds/train.py", **environment: str
) -> warm.WarmProcess:
    """The same without DeepSpeed's launcher, in processes that have imported everything: where the launch is not what is tested."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return warm.start(script, options, ranks, free_port(), {**os.environ, "PATH": path, **environment})


def finish(process: subprocess.Popen | warm.WarmProcess, limit: float = LIMIT) -> tuple[int, str]:
    """(status, output) within the limit; kills the group and fails if it takes longer or leaves a process behind."""
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"no end within {limit} s:\n{process.communicate()[0][-3000:]}")
    if not wait_until(lambda: not members(process.pid), 10):
        left = members(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"processes {left} outlived their launcher:\n{output[-3000:]}")
    port = process.args[process.args.index("--master_port") + 1] if "--master_port" in process.args else "none"
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*")), "the run left memory behind"
    return process.returncode, output


def run_on_ranks(folder: Path, module: str, *arguments: str, ranks: int = 2) -> str:
    """Runs `on_a_rank(runtime, *arguments)` of a module on ranks of their own, `ranks` 0 without a launcher; what they said."""
    folder.mkdir(exist_ok=True)
    script = folder / f"on_{ranks}_ranks.py"
    script.write_text(
        f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom {module} import on_a_rank\n"
        "from sycoca_ds.engine.ranks.environment import prepare_deepspeed\n"
        "from sycoca_ds.engine.ranks.runtime import start_runtime\n"
        "from sycoca_ds.train import end_process\n"
        f"prepare_deepspeed()\nruntime = start_runtime()\non_a_rank(runtime, *{arguments!r})\nruntime.leave()\nend_process(0)\n"
    )
    status, output = finish(start_warm([], ranks=ranks, script=script), limit=3 * LIMIT)  # several runs
    assert status == 0, output[-3000:]
    return output

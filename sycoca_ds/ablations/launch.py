"""Starting the public commands one after another, so that none outlives us and no two of our kind work in one folder."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.launch.processes import child_environment, free_port, stop, usable_accelerators

GUARD = Path(__file__).with_name("guard.py")
FIRST_PORT = 29500


def launcher(text: str) -> list[str]:
    """The words before train.py; the program is looked for beside the interpreter first.

    Raises:
        UserError: no such program.
    """
    try:
        words = shlex.split(text) or ["deepspeed", "--num_accelerators", str(usable_accelerators())]
    except ValueError as error:
        raise UserError(f"--launch {text}: {error}: expected words as a shell takes them") from None
    beside = Path(sys.executable).parent / words[0]
    program = str(beside) if beside.is_file() else shutil.which(words[0])
    if program is None:
        raise UserError(f"--launch {text}: {words[0]} is no program here; expected for example 'deepspeed --num_accelerators 2'")
    return [program, *words[1:]]


def with_port(launch: Sequence[str]) -> list[str]:
    """A free port for launchers that take one, so that no two jobs of a machine meet."""
    needs = Path(launch[0]).name in ("deepspeed", "torchrun")
    given = any(word.replace("-", "_").startswith("__master_port") for word in launch)
    port = ["--master_port", str(free_port(FIRST_PORT + os.getpid() % 1000))] if needs and not given else []
    return [launch[0], *port, *launch[1:]]


@contextmanager
def guarded(command: Sequence[str], log: Path, progress: Path, lock: int) -> Iterator[subprocess.Popen]:
    """The command in a process group of its own that ends with the block, and with this process however it ends.

    Args:
        log: takes its output, after a line with the command itself.
        progress: file for `data_pipeline.progress`.
        lock: handle that the guard holds as long as it lives.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    progress.unlink(missing_ok=True)
    with open(log, "w") as file:
        print("$", shlex.join(command), file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-I", str(GUARD), *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
            env=child_environment(progress),
        )
        try:
            yield process
        finally:
            stop(process)
            process.stdin.close()


def reason_in(log: Path) -> str:
    """The line of a log that says best why a command ended: an error of the user, else the last exception, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    for pattern in (r"error: ", r"(\w+\.)*\w*(Error|Exception)\b", r""):
        found = [line for line in lines if re.match(pattern, line)]
        if found:
            return found[-1].removeprefix("error: ")[:300]
    return "it printed nothing"

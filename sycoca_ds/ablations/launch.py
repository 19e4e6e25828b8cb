"""The launcher of each training, and what its log says when it ends."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.launch.processes import free_port, usable_accelerators

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


def reason_in(log: Path) -> str:
    """The line of a log that says best why a command ended: an error of the user, else the last exception, else the last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()[1:] if line.strip()]
    for pattern in (r"error: ", r"(\w+\.)*\w*(Error|Exception)\b", r""):
        found = [line for line in lines if re.match(pattern, line)]
        if found:
            return found[-1].removeprefix("error: ")[:300]
    return "it printed nothing"

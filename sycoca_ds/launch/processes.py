"""Child processes of the commands that run others: their environment, ports and end."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import make_folder
from data_pipeline.own_package import ROOT, import_path
from data_pipeline.progress import PROGRESS_FILE_VARIABLE
from sycoca_ds.engine.ranks.environment import own_tools_first

REPOSITORY = ROOT
TRAIN = Path("sycoca_ds/train.py")
GUARD = Path(__file__).with_name("guard.py")
SAVE_SECONDS = 300.0
"""How long a stage that is stopped may take to end by itself: a training saves first."""


def train_script() -> str:
    """train.py for a command line: by its short name where the current folder is the checkout, else where it is installed."""
    installed = REPOSITORY / TRAIN
    return str(TRAIN if TRAIN.exists() and TRAIN.samefile(installed) else installed)


def free_port(first: int) -> int:
    """The first port from `first` on loopback that nothing listens on."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"no free port between {first} and {first + 99} on 127.0.0.1: end what listens there")


def child_environment(progress: Path) -> dict[str, str]:
    """The environment of every stage: this environment's tools first on PATH, where to report."""
    return {
        **os.environ,
        **import_path(),
        "PATH": own_tools_first(),
        PROGRESS_FILE_VARIABLE: str(progress.absolute()),
        "TOKENIZERS_PARALLELISM": "false",
    }


@contextlib.contextmanager
def guarded(command: Sequence[str], log: Path, progress: Path, handles: Sequence[int] = ()) -> Iterator[subprocess.Popen]:
    """The command in a process group of its own that ends with the block, and with this process however it ends.

    Args:
        log: takes its output, after a line with the command itself.
        progress: file for `data_pipeline.progress`.
        handles: open files that the guard holds as long as it lives, for a lock.
    """
    make_folder(log.parent)
    progress.unlink(missing_ok=True)
    with open(log, "w") as file:
        print("$", shlex.join(command), file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-I", str(GUARD), *command],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=tuple(handles),
            env=child_environment(progress),
        )
        try:
            yield process
        finally:
            stop(process)
            process.stdin.close()


def stop(process: subprocess.Popen) -> None:
    """Ends a stage and everything it started: SIGTERM to its process group, SIGKILL to what is left of it after SAVE_SECONDS, or at
    once if the wait is interrupted (a second Ctrl-C).

    To the whole group and until it is empty: DeepSpeed's launcher is gone at once, while its ranks still save.
    """
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            until, said = time.monotonic() + SAVE_SECONDS, time.monotonic() + 2
            while _lives(process) and time.monotonic() < until:
                if said and time.monotonic() > said:
                    print("stopping: what runs saves first; Ctrl-C ends it at once", file=sys.stderr, flush=True)
                    said = None
                time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _lives(process: subprocess.Popen) -> bool:
    """Whether a process of the group that `process` leads is still there, zombies left out."""
    process.poll()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, group = path.read_text().rsplit(")", 1)[1].split()[:3]
            if int(group) == process.pid and state != "Z":
                return True
    return False


def read_report(progress: Path) -> dict:
    try:
        return json.loads(progress.read_text())
    except (OSError, ValueError):
        return {}


def tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def usable_accelerators() -> int:
    """Every GPU, as far as the count divides the preset's lanes (a power of two); 2 processes on a machine without one."""
    import torch

    gpus = torch.cuda.device_count()
    return 1 << (gpus.bit_length() - 1) if gpus else 2

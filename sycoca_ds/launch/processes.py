"""Child processes of the commands that run others: their environment, ports and end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.progress import PROGRESS_FILE_VARIABLE

REPOSITORY = Path(__file__).resolve().parents[2]


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
    """The environment of every stage: tools that stand beside the interpreter (ninja) first on PATH, where to report."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**os.environ, "PATH": path, PROGRESS_FILE_VARIABLE: str(progress), "TOKENIZERS_PARALLELISM": "false"}


def stop(process: subprocess.Popen) -> None:
    """Ends a stage and everything it started: its own signal first, then the whole process group."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


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

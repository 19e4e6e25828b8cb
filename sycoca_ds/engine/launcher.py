"""DeepSpeed's launcher around this process: what it was told, and what it does that a run has to know of.

`deepspeed OPTIONS train.py ...` is a runner that starts launch.py, once a machine, which starts the ranks. On one machine the
runner is launch.py's parent; on several a remote shell stands between, and its options cannot be seen from here.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from data_pipeline.errors import UserError
from data_pipeline.files import write_bytes
from sycoca_ds.engine.process_table import parent_and_begin, process_began, words_of

LAUNCH = "deepspeed.launcher.launch"
RUNNERS = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner")
"""How the runner's command line names it: three scripts of one content, and the module."""


@dataclass(frozen=True)
class Launcher:
    """The launch.py that started this process."""

    pid: int
    began: str
    """Its start in clock ticks: with the pid the name of one launch, also after the pid is used again."""
    hostfile: Path | None
    """What the user gave the runner as --hostfile; None: nothing, or it cannot be seen."""
    port_given: bool
    """Whether the user chose --master_port."""
    watched: tuple[tuple[int, str], ...] = ()
    """(pid, start) of launch.py and what it depends on: the runner on this machine, or the remote shell's server."""
    _helpers: list[subprocess.Popen] = field(default_factory=list)

    def wait_for_us(self) -> None:
        """Stops the launcher until this process has ended. By one rank a machine, at a Ctrl-C and before a save that ends a run.

        A Ctrl-C, or a SIGTERM to the job, reaches the launcher, too, which kills its ranks 30 seconds later, saved or not. A helper
        with the other end of a pipe lets it go on whenever this process ends, however it does.
        """
        if not self._helpers and os.getppid() == self.pid:
            words = ["/bin/sh", "-c", "trap '' HUP INT TERM USR1; kill -STOP $0; cat; kill -CONT $0", str(self.pid)]
            helper = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            self._helpers.append(helper)  # held to the end: the pipe closes with the process

    def is_gone(self) -> bool:
        """Whether one of the processes that this launch hangs on has ended."""
        return any(process_began(pid) != began for pid, began in self.watched)


def find_launcher() -> Launcher | None:
    """The launcher of this process; None under another one (Slurm, torchrun) or none."""
    pid = os.getppid()
    if LAUNCH not in words_of(pid):
        return None
    parent, began = parent_and_begin(pid)
    words = words_of(parent)
    place = next((n for n, word in enumerate(words[:4]) if Path(word).name in RUNNERS), None)
    watched = ((pid, began), *_above(pid))
    if place is None:
        return Launcher(pid, began, None, port_given=True, watched=watched)
    from deepspeed.launcher.runner import DLTS_HOSTFILE, parse_args

    options = parse_args(words[place + 1 :])
    own = words[place + 1 : len(words) - len(options.user_args) - 1]
    hostfile = None if options.hostfile == DLTS_HOSTFILE else Path(os.readlink(f"/proc/{parent}/cwd")) / options.hostfile
    return Launcher(pid, began, hostfile, any(word.startswith("--master_p") for word in own), watched)


def _above(pid: int) -> list[tuple[int, str]]:
    """(pid, start) of the processes above launch.py up to the one that its end should follow: the runner, or ssh's server for this
    connection. Empty if there is neither: what is above then (a shell, say) may leave without meaning anything by it."""
    found = []
    with contextlib.suppress(OSError, IndexError):
        pid = parent_and_begin(pid)[0]
        while pid > 1:
            found.append((pid, parent_and_begin(pid)[1]))
            words = words_of(pid)
            if any(Path(word).name in RUNNERS for word in words[:4]) or (
                words and Path(words[0].split(":")[0]).name.startswith("sshd")
            ):
                return found
            pid = parent_and_begin(pid)[0]
    return []


def check_hostfile(expected_world_size: int | None) -> None:
    """Refuses a hostfile that does not exist: DeepSpeed only warns and goes on with this machine alone.

    Args:
        expected_world_size: the user's word that so many ranks are meant, which is checked elsewhere.

    Raises:
        UserError: naming the file.
    """
    launcher = find_launcher() if expected_world_size is None else None
    if launcher is not None and launcher.hostfile is not None and not launcher.hostfile.is_file():
        world = os.environ["WORLD_SIZE"]
        raise UserError(
            f"--hostfile {launcher.hostfile} does not exist, and DeepSpeed would train on this machine alone: mend the path, leave "
            f"--hostfile out, or say with --run.expected-world-size {world} that its {world} ranks are meant"
        )


def meet_on_a_free_port(backend: str, device: torch.device, timeout: timedelta) -> None:
    """Makes the process group of a launch on one machine on a port that the system chooses, and puts it into MASTER_PORT: the
    launcher's default, 29500, is that of every other launch. Does nothing where the user chose one, or with several machines.

    Rank 0 listens before it tells the others, by a file that has the launch's name: no moment at which another could take the port.
    """
    launcher = find_launcher() if os.environ.get("CROSS_SIZE") == "1" else None
    if launcher is None or launcher.port_given:
        return
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    note = Path(tempfile.gettempdir()) / f"sycoca_ds_{os.getuid()}_{launcher.pid}_{launcher.began}"
    until = time.monotonic() + timeout.total_seconds()
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        write_bytes(note, str(store.port).encode())
    else:
        while not note.is_file():  # if rank 0 ends before it is written, the launcher ends this rank, too
            _wait(until)
        if note.stat().st_uid != os.getuid():
            raise UserError(f"{note} belongs to another user: delete it, or choose a port with `deepspeed --master_port`")
        store = dist.TCPStore("127.0.0.1", int(note.read_text()), world_size, is_master=False, timeout=timeout)
    read = store.add("read", 1)
    while rank == 0 and read < world_size:
        _wait(until)
        read = store.add("read", 0)
    if rank == 0:
        note.unlink()
    os.environ["MASTER_PORT"] = str(store.port)
    options = {"device_id": device} if device.type == "cuda" and world_size > 1 else {}  # as DeepSpeed does
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout, **options)


def _wait(until: float) -> None:
    if time.monotonic() > until:
        raise TimeoutError("the ranks of this machine did not meet in time")
    time.sleep(0.05)

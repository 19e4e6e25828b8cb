"""DeepSpeed's launcher around this process: what it was told, and what it does that a run has to know of.

`deepspeed OPTIONS train.py ...` is a runner that starts launch.py, once a machine, which starts the ranks. On one machine the
runner is launch.py's parent; on several a remote shell stands between, and its options cannot be seen from here. What can be seen
everywhere is launch.py's --world_info: every host with its slots, as the runner read them from the hostfile.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks.process_table import parent_and_begin, process_began, words_of

LAUNCH = "deepspeed.launcher.launch"
RUNNERS = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner", "deepspeed_runner.py")
"""How the runner's command line names it: three scripts of one content, the module, and sycoca_ds/cli/deepspeed_runner.py."""


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
    plan: dict[str, list[int]]
    """Every host of the launch, in the order of its ranks, with its slots: what the runner made of hostfile and filters."""
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
    words = words_of(pid)
    if LAUNCH not in words:
        return None
    plan = _plan(words)
    parent, began = parent_and_begin(pid)
    words = words_of(parent)
    place = next((n for n, word in enumerate(words[:4]) if Path(word).name in RUNNERS), None)
    watched = ((pid, began), *_above(pid))
    if place is None:
        return Launcher(pid, began, None, True, plan, watched)
    from deepspeed.launcher.runner import DLTS_HOSTFILE, parse_args

    options = parse_args(words[place + 1 :])
    own = words[place + 1 : len(words) - len(options.user_args) - 1]
    hostfile = None if options.hostfile == DLTS_HOSTFILE else Path(os.readlink(f"/proc/{parent}/cwd")) / options.hostfile
    return Launcher(pid, began, hostfile, any(word.startswith("--master_p") for word in own), plan, watched)


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


def in_words(plan: dict[str, list[int]]) -> str:
    """A launcher's plan: `2 ranks (a: 1, b: 1)`."""
    if not plan:
        return "ranks that another launcher than `deepspeed` counts"
    return f"{sum(map(len, plan.values()))} ranks ({', '.join(f'{host}: {len(slots)}' for host, slots in plan.items())})"


def _plan(words: list[str]) -> dict[str, list[int]]:
    """What launch.py was given as --world_info; empty if that cannot be read."""
    coded = next((word.split("=", 1)[1] for word in words if word.startswith("--world_info=")), "")
    with contextlib.suppress(ValueError):
        return json.loads(base64.urlsafe_b64decode(coded))
    return {}


def check_world_size(expected: int | None) -> None:
    """Refuses a launch with another number of ranks than was meant, before they meet. What can be known of that: the user's word,
    what `deepspeed` read from the hostfile, and whether that exists: where it does not, DeepSpeed only warns and goes on with this
    machine alone. Under torchrun and Slurm there is the user's word alone, which `launch print` and hostfiles/slurm.sbatch give.

    Args:
        expected: run.expected_world_size.

    Raises:
        UserError: on every rank, naming the number or the file.
    """
    launcher, world_size = find_launcher(), int(os.environ.get("WORLD_SIZE", "1"))
    if expected is not None and world_size != expected:
        raise UserError(
            f"run.expected-world-size = {expected} but the launcher started {world_size} ranks: check that the "
            "hostfile exists and lists every host (DeepSpeed goes on alone when it is missing)"
        )
    if launcher is None:
        return
    if launcher.plan and sum(map(len, launcher.plan.values())) != world_size:
        raise UserError(
            f"WORLD_SIZE is {world_size} but `deepspeed` planned {in_words(launcher.plan)}: find what sets WORLD_SIZE "
            "between the launcher and the ranks"
        )
    if expected is None and launcher.hostfile is not None and not launcher.hostfile.is_file():
        raise UserError(
            f"--hostfile {launcher.hostfile} does not exist, and DeepSpeed would train on this machine alone: mend the path, leave "
            f"--hostfile out, or say with --run.expected-world-size {world_size} that its {world_size} ranks are meant"
        )

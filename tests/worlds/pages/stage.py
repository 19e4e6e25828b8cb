"""The folder that stands for the repository while a page's commands run in it, one after another, as a shell would run them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from sycoca_ds.cli.train import divide
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY
from tests.worlds.machines.one_host import write_ssh
from tests.worlds.machines.slurm import write_programs
from tests.worlds.pages.reducing import HOSTFILE, halves, is_training, option, outputs, small
from tests.worlds.pages.taken_for_granted import Shelf, provide
from tests.worlds.pages.typed import Python, Typed, entry_of
from tests.worlds.processes.launching import free_port
from tests.worlds.processes.watching import members, wait_until

LIMIT = 600
"""Seconds that any command may take."""
LINKED = ("sycoca_ds", "data_pipeline", "tests", "benchmarks", "docs", "ds_configs", "pyproject.toml", "README.md")
SERVING = {"data scenes", "data folder", "explore"}
"""Commands that go on until Ctrl-C. Their status then is 130, or 0 where that is how they are meant to end."""
STATUS = {
    "launch check": None,  # whatever of this machine is red
    "doctor": None,  # whatever this machine lacks
}
"""Exit statuses other than 0 that docs/command_line.md has for them; None: 0, or 1 without a traceback."""
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Stage:
    """See the module. `folder` must not be there yet."""

    folder: Path
    shelf: Shelf
    ports: dict[str, int] = field(default_factory=dict)
    made: dict[str, list[str]] = field(default_factory=dict)
    """Folder -> the words that built or trained what is in it."""
    servers: list[tuple[str, subprocess.Popen, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        for name in LINKED:
            (self.folder / name).symlink_to(REPOSITORY / name)
        shutil.copytree(REPOSITORY / "hostfiles", self.folder / "hostfiles")
        (self.folder / HOSTFILE).write_text("localhost slots=1\n")
        for name in ("home", "runs"):
            (self.folder / name).mkdir()
        programs = [write_programs(self.folder / "slurm"), write_ssh(self.folder / "ssh"), Path(sys.executable).parent]
        self.environment = {
            **os.environ,
            "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
            "PYTHONPATH": str(REPOSITORY),
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home/.cache"),
            "MPLCONFIGDIR": str(self.shelf.folder / "matplotlib"),  # its list of fonts takes seconds, once
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }

    def port(self, of_page: str) -> int:
        return self.ports.setdefault(of_page, free_port())

    def words(self, typed: Typed) -> list[str]:
        return small(typed, self.folder, self.port, f"127.0.0.1:{self.shelf.port}")

    def run(self, step: Typed | Python) -> None:
        """Runs a command, or Python, and looks at its status and its files.

        AssertionError: what went wrong, with the end of its output. Lacking: it needs what this machine does not have.
        """
        if isinstance(step, Python):
            provide(self.shelf, self.folder, re.findall(r'"([^"\s]+)"', step.code))
            status, said = self.finish(shlex.join(["python", "-c", step.code]))
            assert status == 0, f"{step.page}: its Python\n{said[-3000:]}"
        else:
            self.command(step)

    def command(self, typed: Typed) -> None:
        words = self.words(typed)
        name, _ = entry_of(tuple(words))
        self.clear(words)
        left = outputs(words)
        if "--help" not in words:
            provide(self.shelf, self.folder, [word for word in words if word not in left])
        shell = " ".join([*(word if word.startswith("~/") else shlex.quote(word) for word in words), *typed.behind])
        if "--help" not in words and (name in SERVING or words[0] == "tensorboard"):
            return self.serve(shell, self.port(self.served_at(words)), [self.folder / path for path in left])
        status, said = self.finish(shell)
        expected = 0 if "--help" in words else STATUS.get(name, 0)
        if f"{self.folder}/data/sets" in words and "--dry-run" not in words:
            # the official sets are larger; some are too small here to fit a linear probe on
            expected = 1 if name == "eval datasets" else None
        fits = status == expected or (expected is None and (status == 0 or (status == 1 and TRACEBACK not in said)))
        assert fits, f"{typed}\n$ {shell}\nstatus {status}\n{said[-3000:]}"
        missing = [path for path in [*left, *typed.behind[1:]] if not (self.folder / path.replace("~", "home")).exists()]
        assert not missing, f"{typed}\n$ {shell}\nleft no {missing}\n{said[-3000:]}"

    def clear(self, words: list[str]) -> None:
        """Pages show several ways to build one folder, or to train a run of one name: what another way left makes room."""
        if "--help" in words:
            return None
        name, rest = entry_of(tuple(words))
        if name == "supervise":
            return self.clear(halves(rest)[1][1:])
        if not (is_training(words) or name in ("data build", "data curate")):
            return None
        own = divide(rest)[1] if is_training(words) else rest
        out = parse_options(own).run.out if is_training(words) else option(rest, "--out")[0]
        if self.made.get(out) != own:
            shutil.rmtree(self.folder / out, ignore_errors=True)
        self.made[out] = own
        return None

    def served_at(self, words: list[str]) -> str:
        number = int(option(words, "--port")[0])
        return next(of_page for of_page, own in self.ports.items() if own == number)

    def serve(self, shell: str, port: int, left: list[Path]) -> None:
        """Starts a server, and waits until it listens and what it writes before that is there."""
        log = self.folder / f"server_{len(self.servers)}.log"
        print(f"$ {shell.replace(str(self.folder), '')} &", flush=True)
        with open(log, "w") as output:
            process = self.start(shell, output)
        self.servers.append((shell, process, log))

        def listens() -> bool:
            with socket.socket() as probe:
                listening = probe.connect_ex(("127.0.0.1", port)) == 0
            return process.poll() is not None or (listening and all(path.exists() for path in left))

        assert wait_until(listens, LIMIT) and process.poll() is None, f"$ {shell}\nserves nothing\n{log.read_text()[-3000:]}"

    def start(self, shell: str, output: object) -> subprocess.Popen:
        return subprocess.Popen(
            ["bash", "-c", f"exec {shell}"],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def finish(self, shell: str) -> tuple[int, str]:
        """(status, output) of a command that ends; 124 and no process of it where it does not within `LIMIT`."""
        log, before = self.folder / "output.log", os.times()
        print(f"$ {shell.replace(str(self.folder), '')}", flush=True)
        with open(log, "w") as output:
            process = self.start(shell, output)
        try:
            status = process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = 124
        if not wait_until(lambda: not members(process.pid), 10):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        after = os.times()
        taken = after.children_user + after.children_system - before.children_user - before.children_system
        print(f"  {status}, {taken:.1f} s of a core", flush=True)
        return status, log.read_text(errors="replace")

    def close(self) -> None:
        """Ctrl-C to what still serves, which has to be there until then, and to end by it."""
        wrong = []
        for shell, process, log in self.servers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGINT)
            ended = wait_until(lambda process=process: process.poll() is not None and not members(process.pid), 60)
            if not ended:
                os.killpg(process.pid, signal.SIGKILL)
            if process.wait() not in (0, 130):
                wrong.append(f"$ {shell}\nended with {process.returncode}\n{log.read_text()[-3000:]}")
        self.servers.clear()
        assert not wrong, "\n".join(wrong)

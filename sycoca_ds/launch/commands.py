"""`python -m sycoca_ds.launch print`: the commands that a launch would run on each host, and the same run by torchrun and Slurm.

DeepSpeed's commands are written by DeepSpeed: its runner and its launch.py run here, up to the moment at which they would start
something.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks.launcher import LAUNCH
from sycoca_ds.launch import hostfile, shell
from sycoca_ds.launch.hostfile import Host
from sycoca_ds.launch.processes import REPOSITORY, train_script
from sycoca_ds.options import parse_options

TEMPLATE = REPOSITORY / "sycoca_ds/hostfiles/slurm.sbatch"
NUMBER = re.compile(r"(?<=[ =])\d+(?= |$)")
"""A word of a command line, or the value of an option or a variable, that is a number."""


@dataclass(frozen=True)
class PrintCommand:
    """Prints what a launch would run on each host of a hostfile: by `deepspeed` over pdsh and ssh, and the same run by torchrun and
    by Slurm. Starts nothing; without --master-addr it asks the first host for its address, as DeepSpeed does.
    """

    hostfile: Path
    """The file that `deepspeed --hostfile` will be given."""
    master_addr: str = ""
    """As `deepspeed --master_addr`."""
    master_port: int = 29500
    """As `deepspeed --master_port`."""

    def run(self, *arguments: str) -> int:
        """Prints them; `arguments` are the options of train.py, which refuses here what it would refuse on all hosts."""
        parse_options(list(arguments))
        hostfile.check_port(self.master_port)
        hosts, problems = hostfile.read_hostfile(self.hostfile)
        variables: dict[str, str] = {}
        for path in hostfile.environment_files(Path.cwd()):
            own, wrong = hostfile.read_environment(path)
            variables |= own
            problems += wrong
        if problems:
            raise UserError(": ".join(problems[0]))
        address = self.master_addr or first_address(hosts[0].name)
        options = ["--hostfile", str(self.hostfile), "--master_port", str(self.master_port)]
        options += ["--master_addr", self.master_addr] if self.master_addr else []
        for problem in [*damaged(arguments), *(" ".join(found) for found in hostfile.unquoted())]:
            print(f"careful: {problem}", file=sys.stderr, flush=True)
        print("# 1. deepspeed")
        print(shlex.join(["deepspeed", *options, train_script(), *arguments]))
        how, blocks = by_deepspeed(options, address, arguments)
        for names, lines in folded(blocks):
            print("\n".join(["", heading(names, how), *lines]))
        print("\n# 2. torchrun: on each host, in the same folder")
        for names, lines in folded(by_torchrun(hosts, variables, address, self.master_port, arguments)):
            print("\n".join([heading(names), *lines]))
        print("\n# 3. Slurm")
        print("\n".join(by_slurm(hosts, variables, arguments)))
        return 0


def first_address(host: str) -> str:
    """What DeepSpeed takes for MASTER_ADDR, or a placeholder where the host does not answer."""
    words = ["ssh", *shell.QUIETLY, host, "hostname", "-I"]
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=2 * shell.CONNECT_SECONDS)
        if done.returncode == 0 and done.stdout.split():
            return done.stdout.split()[0]
    return f"ADDRESS_OF_{host}"


class Recorder:
    """In the place of `subprocess` in DeepSpeed's launcher: keeps what would be started, and answers as if it had run."""

    CalledProcessError, DEVNULL = subprocess.CalledProcessError, subprocess.DEVNULL
    returncode, pid = 0, 0

    def __init__(self, address: str = ""):
        self.address = address
        self.started: list[tuple[list[str], dict[str, str]]] = []

    def check_call(self, words: list[str], **_: Any) -> int:
        return 0

    def check_output(self, words: list[str]) -> bytes:
        return self.address.encode()

    def Popen(self, words: list[str], env: dict[str, str], **_: Any) -> Recorder:
        self.started.append((words, dict(env)))
        return self

    def wait(self) -> int:
        return 0

    def poll(self) -> int:
        return 0


class NoWait:
    """In the place of `time` in launch.py, which looks after its ranks once a second."""

    @staticmethod
    def sleep(seconds: float) -> None:
        pass


@contextlib.contextmanager
def as_if(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """(object, attribute, value) hold in the block, which prints nothing and leaves no signal handler behind."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)
        for number, handler in signals.items():
            signal.signal(number, handler)


def runner_starts(options: Sequence[str], address: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(words, environment) of what `deepspeed OPTIONS train.py ARGUMENTS` starts on this machine: pdsh, or launch.py itself."""
    with contextlib.redirect_stdout(io.StringIO()):  # what DeepSpeed logs when it is imported
        from deepspeed.launcher import runner

    recorder = Recorder(address)
    installed = (runner.PDSHRunner, "backend_exists", lambda self: True)  # perhaps it is not yet
    with as_if((runner, "subprocess", recorder), installed):
        runner.main([*options, train_script(), *arguments])
    return recorder.started[0]


def launch_starts(words: Sequence[str]) -> list[tuple[list[str], dict[str, str]]]:
    """(words, environment) of every rank that launch.py starts when it is given `words`."""
    from deepspeed.launcher import launch

    recorder = Recorder()
    with as_if((launch, "subprocess", recorder), (launch, "time", NoWait), (sys, "argv", ["launch.py", *words])):
        launch.main()
    return recorder.started


def folded(blocks: Mapping[str, Sequence[str]]) -> Iterator[tuple[list[str], list[str]]]:
    """(hosts, lines): hosts whose lines are the same but for numbers together, these numbers side by side in `spread`'s way.

    Args:
        blocks: host -> its lines.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for host, lines in blocks.items():
        alike.setdefault(tuple(NUMBER.sub("#", line) for line in lines), []).append(host)
    for hosts in alike.values():
        together = []
        for same in zip(*(blocks[host] for host in hosts), strict=True):
            numbers = [spread(values) for values in zip(*map(NUMBER.findall, same), strict=True)]
            between = NUMBER.split(same[0])
            together.append("".join(text + number for text, number in zip(between, [*numbers, ""], strict=True)))
        yield hosts, together


def spread(values: Sequence[str]) -> str:
    """The number that all have, or those of all: `{0..120..8}`, from 0 in steps of 8, as shells write it, else `{0,3,4}`."""
    first, *others = map(int, values)
    if len(set(values)) == 1:
        return values[0]
    step = others[0] - first
    if step > 0 and [first, *others] == list(range(first, first + step * len(values), step)):
        return f"{{{first}..{others[-1]}{'' if step == 1 else f'..{step}'}}}"
    return f"{{{','.join(values)}}}"


def heading(hosts: Sequence[str], *how: str) -> str:
    return f"# {', '.join([*hosts, *how])}:" + (" {...} has the number of each, in this order" if len(hosts) > 1 else "")


def by_deepspeed(options: Sequence[str], address: str, arguments: Sequence[str]) -> tuple[str, dict[str, list[str]]]:
    """(how the hosts are reached, host -> what its shell is given, and what that starts there)."""
    words, _ = runner_starts(options, address, arguments)
    over_pdsh, blocks = words[0] == "pdsh", {}
    for number, host in enumerate(hosts_of(words)):
        command = " ".join(words[words.index("-w") + 2 :]).strip().replace("%n", str(number)) if over_pdsh else shlex.join(words)
        lines = [command]
        try:
            own = shlex.split(command)  # as the shell there reads it
        except ValueError as error:
            where = f"something in the launch's folder {os.getcwd()!r}, or in an exported NCCL.., PYTHON.. or UCX.. variable"
            why = next(iter(damaged(arguments)), f"{where}, is one of its own signs")
            raise UserError(f"the shell on the other host could not read its command ({error}): {why}") from error
        for n, (started, environment) in enumerate(launch_starts(own[own.index(LAUNCH) + 1 :])):
            added = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
            lines += ["#   there that starts" if n == 0 else "#   and", "#   " + " ".join([*added, shlex.join(started)])]
        blocks[host] = lines
    return "over pdsh and ssh" if over_pdsh else "which has to be this machine, without ssh", blocks


def hosts_of(words: list[str]) -> dict[str, list[int]]:
    """The hosts, and slots of each, in launch.py's --world_info."""
    coded = next(word.split("=", 1)[1] for word in words if word.startswith("--world_info="))
    return json.loads(base64.urlsafe_b64decode(coded))


def by_torchrun(
    hosts: list[Host], variables: dict[str, str], address: str, port: int, arguments: Sequence[str]
) -> dict[str, list[str]]:
    """Host -> its line. Variables of `.deepspeed_env` are written out: torchrun does not know the file."""
    total, blocks = sum(host.slots for host in hosts), {}
    for number, host in enumerate(hosts):
        words = [str(Path(sys.executable).with_name("torchrun")), "--nnodes", str(len(hosts)), "--nproc-per-node", str(host.slots)]
        words += ["--node-rank", str(number), "--master-addr", address, "--master-port", str(port)]
        words += [train_script(), "--run.expected-world-size", str(total), *arguments]
        before = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
        blocks[host.name] = [" ".join([*before, shlex.join(words)])]
    return blocks


def by_slurm(hosts: list[Host], variables: dict[str, str], arguments: Sequence[str]) -> list[str]:
    """What to submit, and what the template runs."""
    slots = {host.slots for host in hosts}
    if len(slots) > 1:
        return [f"# one `srun` starts equally many ranks on every node, the hostfile has {', '.join(map(str, sorted(slots)))}"]
    each = str(slots.pop())
    words = ["sbatch", "--nodes", str(len(hosts)), "--ntasks-per-node", each, "--gpus-per-node", each]
    words += ["--nodelist", ",".join(host.name for host in hosts), "hostfiles/slurm.sbatch", *arguments]
    before = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    text = TEMPLATE.read_text()
    return [
        " ".join([*before, shlex.join(words)]),
        "# which runs on the first node:",
        *text[text.index("export MASTER_ADDR") :].splitlines(),
    ]


def damaged(arguments: Sequence[str]) -> list[str]:
    """Arguments that do not reach a rank as they are: DeepSpeed hands them to pdsh, which replaces %h, %n and %u, and on to a
    shell, between double quotes only where there is a blank."""
    problems = []
    for word in arguments:
        if found := re.search(r"%[hnu]", word):
            problems.append(f"{word!r}: pdsh replaces {found[0]}")
        elif found := re.search(r"[$`\\]" if " " in word else r"[^\w@%+=:,./\-^\]}]", word):
            problems.append(f"{word!r}: the shell on the other host takes {found[0]} for its own")
        elif not word:
            problems.append("an empty word is lost on the way")
    return [f"{problem}: write it into a file and give that as --config FILE" for problem in problems]

"""`sycoca train [OPTIONS OF deepspeed] [OPTIONS OF train.py]`: becomes `deepspeed` on train.py, or prints the command.

The two kinds of options are told apart by their names. What train.py would refuse on every rank, and a hostfile that cannot be
used, are refused here, before the launcher is started.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks.environment import own_tools_first
from sycoca_ds.launch.processes import train_script

if TYPE_CHECKING:
    from sycoca_ds.config import TrainConfig

PROGRAM = "sycoca_ds/train.py"
WITH_VALUE = frozenset(
    "-H --hostfile -i --include -e --exclude --num_nodes --num_gpus --num_accelerators --master_port --master_addr --node_rank "
    "--launcher --launcher_args --enable_each_rank_log --bind_core_list --ssh_port --venv_script --log_level".split()
)
"""Options of DeepSpeed's launcher that take a value."""
FLAGS = frozenset("--no_local_rank --no_ssh --no_ssh_check --force_multi --save_pid --bind_cores_to_rank -q --quiet".split())
"""Those that take none."""
REFUSED = {
    "--module": "train.py is what is started",
    "--no_python": "train.py is what is started",
    "--autotuning": "it starts another script; `sycoca plan` finds what fits",
}
"""Options of the launcher that have no place here: why."""
HELP = """\
Trains or fine-tunes a model: DeepSpeed's launcher starts sycoca_ds/train.py on every GPU of this machine, or on a file's hosts. The
same command resumes. Ctrl-C, SIGTERM and SIGUSR1 save first (status 75); after a crash all up to the last checkpoint is kept.

options of the launcher (deepspeed --help describes all):
  --hostfile FILE         hosts to train on, `NAME slots=GPUS` a line (default: this machine)
  --num_accelerators N    processes on each host (default: its GPUs; on a machine without any, name it)
  --num_nodes N           of the hosts in the file only the first N
  --include HOSTS         of the hosts in the file only these
  --exclude HOSTS         of the hosts in the file not these
  --master_addr ADDRESS   where rank 0 waits for the others (default: the first host's address)
  --master_port PORT      and on which port (default: a free one)
  --dry-run               print the command and start nothing

options of the training:
"""


def divide(words: list[str]) -> tuple[list[str], list[str], bool]:
    """(the launcher's words, train.py's, whether --dry-run is among them).

    Raises:
        UserError: an option of the launcher without its value, or one that has no place here.
    """
    own, rest, dry = [], [], False
    items = iter(words)
    for word in items:
        name, _, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        if name in REFUSED:
            raise UserError(f"{word}: {REFUSED[name]}; leave it out")
        if word == "--dry-run":
            dry = True
        elif name in FLAGS:
            own.append(name)
        elif name in WITH_VALUE:
            value = value if "=" in word else next(items, None)
            if value is None:
                raise UserError(f"{word} is the last word: expected a value after it")
            own += [name, value]
        else:
            rest.append(word)
    return own, rest, dry


def launcher() -> str:
    """The `deepspeed` of this environment. Raises `UserError` where there is none."""
    beside = Path(sys.executable).with_name("deepspeed")
    found = str(beside) if beside.is_file() else shutil.which("deepspeed")
    if found is None:
        raise UserError("deepspeed is not installed here: `pip install 'sycoca-ds[train]'`; `sycoca doctor --for train` says more")
    return found


def command(own: list[str], rest: list[str]) -> list[str]:
    """The launch. Raises `UserError` for a hostfile that cannot be used."""
    from sycoca_ds.launch.hostfile import whole_hostfile

    for name in ("-H", "--hostfile"):
        if name in own:  # where it is missing DeepSpeed would train on this machine alone
            whole_hostfile(Path(own[own.index(name) + 1]))
    return [launcher(), *own, train_script(), *rest]


def check_here(config: TrainConfig) -> None:
    """What a launch on this machine would refuse after half a minute of imports, as far as it shows without them.

    Raises:
        UserError: no policy, no data set, no tokenizer, no weights, or a run's folder that cannot be made.
    """
    from data_pipeline.files import check_folder
    from data_pipeline.shards.manifest import Manifest
    from sycoca_ds.config import check_run_folder, check_tokenizer_file, check_weights_there
    from sycoca_ds.data.storage import is_url
    from sycoca_ds.engine.checkpoint.seal import sealed
    from sycoca_ds.engine.policy import known_sections

    known_sections(config.run.ds_config)
    folders = [*config.data.train, *([config.data.validation] if config.data.validation else [])]
    for folder in folders:
        if not is_url(folder):
            Manifest.load(folder, check_tars=False)
    first = config.data.train[0]
    if config.data.tokenizer is not None:
        check_tokenizer_file(Path(config.data.tokenizer))
    elif config.run.weights is None and not is_url(first):
        check_tokenizer_file(Manifest.load(first, check_tars=False).root / "tokenizer.json")
    if config.run.weights is not None and not sealed(Path(config.run.out) / "checkpoints"):
        check_weights_there(config.run.weights)
    check_run_folder(config.run.out)
    check_folder(Path(config.run.out))


def ranks(own: list[str]) -> int | None:
    """How many processes the launcher's words start in all; None where they leave it to the GPUs of this machine, or name hosts."""
    from sycoca_ds.supervise.job import FILTERS, SLOTS, option, read_hosts

    if hosts := read_hosts(["deepspeed", *own], 1 + len(own)):
        return sum(host.slots for host in hosts)
    slots = option(own, SLOTS)
    known = slots is not None and slots.isdecimal() and all(option(own, (name,)) is None for name in FILTERS)
    return int(slots) if known else None


def main() -> int:
    from sycoca_ds.engine.batches import plan_batches
    from sycoca_ds.options import parse_options

    own, rest, dry = divide(sys.argv[1:])
    if {"-h", "-H", "--help", "--help-verbose"} & set(rest):
        print(HELP)
    options = [name for name in sorted(WITH_VALUE | FLAGS) if name.startswith("--")]
    config = parse_options(rest, PROGRAM, [name[2:] for name in [*options, "--dry-run"]])
    if not config.data.train:
        raise UserError("data.train is not given: expected --data.train FOLDER, a data set folder; `sycoca data --help` makes one")
    words = command(own, rest)
    if not {"-H", "--hostfile"} & set(own):  # what other hosts have is not known here
        check_here(config)
    if count := ranks(own):
        plan_batches(config, count)
    if dry:
        print(shlex.join(words))
        return 0
    from sycoca_ds.cli import deepspeed_runner

    if Path(words[0]).parent == Path(sys.executable).parent:  # of this environment, whose Python can wait for it
        words = [sys.executable, str(Path(deepspeed_runner.__file__)), *words[1:]]
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it answers even what comes before it has begun
    sys.stdout.flush()
    os.execve(words[0], words, {**os.environ, "PATH": own_tools_first(), deepspeed_runner.RUN: config.run.out})

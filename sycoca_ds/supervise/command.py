"""Keeps a training going: starts it, says why it ended, starts it again, or stops where that would be no use.

    python -m sycoca_ds.supervise -- deepspeed --hostfile hostfiles/a100x16 sycoca_ds/train.py --data.train /data/cc12m
    python -m sycoca_ds.supervise --min-hosts 1 -- deepspeed --hostfile F sycoca_ds/train.py ...
    sycoca supervise -- sycoca train --hostfile F ...

What stands after `--` is the command. RUN/verdict.json says how the last attempt ended and what followed; RUN/supervise/ has every
attempt's output, evidence and verdict; RUN/ledger.jsonl where the time went. SIGTERM, SIGUSR1 and Ctrl-C are passed on: the
training saves and ends, and so does the supervisor; a second one ends everything at once. docs/failures.md has the rules.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import tyro

from data_pipeline.command_line import called, parse_command
from data_pipeline.errors import UserError
from data_pipeline.files import check_folder
from data_pipeline.lock import only_one
from sycoca_ds.cli import train
from sycoca_ds.engine.ranks.environment import own_tools_first
from sycoca_ds.engine.ranks.output import never_fatal
from sycoca_ds.supervise.attempt import Stop
from sycoca_ds.supervise.evidence import newest_sealed
from sycoca_ds.supervise.job import Job, parse_job
from sycoca_ds.supervise.options import SuperviseOptions
from sycoca_ds.supervise.supervisor import FOLDER, Supervisor, say
from sycoca_ds.supervise.verdict import read_history

PROGRAM = "python -m sycoca_ds.supervise"


@contextlib.contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Signals are counted in the block, and passed on by who looks at the count."""

    def note(number: int, frame: object) -> None:
        stop.asked, stop.number = stop.asked + 1, number
        first = "asked to stop: the training saves first; once more ends everything at once"
        say(first if stop.asked == 1 else "ending everything at once")

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup, a shell's background
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def parse(arguments: list[str]) -> tuple[SuperviseOptions, Job]:
    """(options, the command after `--`).

    Raises:
        UserError: anything that could not work, before anything is started.
        SystemExit: after `--help`.
    """
    place = arguments.index("--") if "--" in arguments else len(arguments)
    own, words = arguments[:place], arguments[place + 1 :]
    if not words and not {"-h", "--help"} & set(own):  # first, or a command without `--` is refused as a list of unknown options
        name, training = called(PROGRAM), "deepspeed ... sycoca_ds/train.py" if called(PROGRAM) == PROGRAM else "sycoca train"
        raise UserError(f"there is no command after `--`: expected `{name} [options] -- {training} ...`")
    options = parse_command(tyro.conf.OmitArgPrefixes[SuperviseOptions], own, PROGRAM)
    if [Path(words[0]).name, *words[1:2]] == ["sycoca", "train"]:
        launcher_words, rest, _ = train.divide(words[2:])
        words = train.command(launcher_words, rest)
    job = parse_job(words)
    if shutil.which(words[0], path=own_tools_first()) is None:
        raise UserError(f"{words[0]!r} is no command here: expected deepspeed, torchrun, srun or python after `--`")
    if options.min_hosts is not None and not job.hosts:
        raise UserError("--min-hosts: the command uses no hostfile (or filters it by --include or --exclude): leave it out")
    if options.restarts < 0 or options.back_off_seconds < 0:
        raise UserError(f"--restarts {options.restarts}, --back-off-seconds {options.back_off_seconds}: expected 0 or more")
    return options, job


def plan(options: SuperviseOptions, job: Job) -> list[str]:
    """What would be started, as lines."""
    limits, step, past = options.limits(job), newest_sealed(job.run), read_history(job.run / FOLDER / "history.jsonl")
    hosts = ", ".join(f"{host.name} ({host.slots})" for host in job.hosts) or "this machine"
    return [
        f"command:    {shlex.join(job.words)}",
        f"hosts:      {hosts}",
        f"run:        {job.run}, {'no checkpoint yet' if step is None else f'checkpoint of step {step}'}",
        f"attempts:   {len(past)} before this one; stops after {options.restarts} restarts without a newer checkpoint",
        f"limits:     {limits.first_sign:.0f} s to the first sign, {limits.silent:.0f} s of silence, {limits.save:.0f} s to save",
    ]


def main() -> int:
    never_fatal()
    options, job = parse(sys.argv[1:])
    if options.dry_run:
        check_folder(job.run / FOLDER)
        print("\n".join(plan(options, job)))
        return 0
    try:
        (job.run / FOLDER).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.out = {job.run}: {error}: choose a folder that can be written") from error
    stop = Stop()
    with only_one(job.run / FOLDER / ".lock", f"{job.run} has a supervisor already: end that one, or choose another --run.out"):
        with listening(stop):
            return Supervisor(job, options, stop).work()

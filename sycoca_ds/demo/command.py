"""The whole way, small: `python -m sycoca_ds.demo` runs every stage through its public command and checks the result.

Killed at any moment, the same command goes on where it stopped: each stage knows what it has already done. This file only
starts processes, shows how far they are, and stops them.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.command_line import parse_command
from data_pipeline.errors import UserError, leaves
from data_pipeline.files import check_folder
from data_pipeline.progress import format_seconds
from sycoca_ds.demo import KEPT
from sycoca_ds.launch.display import EVALUATION_PARTS, LOADS_TORCH, TRAINING_PARTS, Display, Stage
from sycoca_ds.launch.processes import REPOSITORY, free_port, guarded, read_report, tail, usable_accelerators
from sycoca_ds.presets import VOCABULARIES

FIRST_PORT = 8731
GONE_SECONDS = 10.0
"""Granted to the server of a demo that was killed to be gone."""
REQUIREMENTS = (
    "retrieval.i2t_r1>=40",
    "retrieval.t2i_r1>=40",
    "classification.top1>=60",
    "captioning.cider>=1",
    "reconstruction.gap>=5",
)
"""What `make demo` must reach on the 500 held-out scenes, in the units of the results table. Below what any of the runs noted in
benchmarks/results/2026-11-25_demo_2cpu.md reached: the classes, 77 to 96 %, move most with the random numbers of so short a run."""

SHOWN = {
    "build": ((("curate", 0.1), ("download", 0.75), ("verify", 0.15)),),
    "pretrain": (TRAINING_PARTS, LOADS_TORCH),
    "evaluate": (EVALUATION_PARTS, LOADS_TORCH),
}
"""By the first word of a stage's name: the parts it reports, what it does before (`Stage`)."""


@dataclass(frozen=True)
class DemoOptions:
    """Runs the main job end to end on a drawn world and checks what was learned."""

    out: Path = Path("runs/demo")
    """Folder for everything the demo makes."""
    train: int = 8000
    """Training scenes."""
    steps: int = 0
    """Optimizer steps; 0 takes the preset's. Fewer than the preset's will not reach the required numbers."""
    accelerators: int = 0
    """Training processes; 0 takes every GPU, or 2 on a machine without one."""
    dry_run: bool = False
    """Print the command of every stage; start nothing."""


def world_port(world: Path) -> int:
    """The port in the URLs of a world that is already drawn, else a free one."""
    try:
        return int(json.loads((world / "world.json").read_text())["port"])
    except (OSError, ValueError, KeyError):
        return free_port(FIRST_PORT)


@contextmanager
def started(stage: Stage, number: int, folder: Path) -> Iterator[tuple[subprocess.Popen, Path, Path]]:
    """A stage's process, which ends with the block or with this process: (process, progress file, log)."""
    logs = folder / "logs"
    log, progress = logs / f"{number + 1}_{stage.name.replace(' ', '_')}.log", logs / f"progress_{number + 1}.json"
    with guarded(stage.command, log, progress) as process:
        yield process, progress, log


def run_stage(stage: Stage, number: int, folder: Path, display: Display, allowed: tuple[int, ...] = (0,)) -> int:
    """Runs one stage to its end.

    Raises:
        UserError: a status that is not allowed; the end of its log is printed first.
    """
    display.begin(number)
    with started(stage, number, folder) as (process, progress, log):
        while process.poll() is None:
            display.show(read_report(progress))
            time.sleep(0.2)
    display.show(read_report(progress), force=True)
    if process.returncode not in allowed:
        print(tail(log), file=sys.stderr)
        raise UserError(
            f"stage {stage.name!r} ended with status {process.returncode}: see {log}; mend that and run the same "
            "command again, which goes on from there"
        )
    return process.returncode


def plan_stages(options: DemoOptions, port: int) -> list[Stage]:
    """Every stage with the public command that runs it."""
    out = options.out.resolve()
    world, data, run = out / "world", out / "data", out / "run"
    accelerators = options.accelerators or usable_accelerators()
    python, launcher = sys.executable, Path(sys.executable).with_name("deepspeed")
    train, evaluate = REPOSITORY / "sycoca_ds/train.py", REPOSITORY / "sycoca_ds/evaluate.py"

    def stage(name: str, seconds: float, *words: str, **values: object) -> Stage:
        line = " ".join(words).format_map({key: shlex.quote(str(value)) for key, value in values.items()})
        return Stage(name, shlex.split(line), seconds, *SHOWN.get(name.split()[0], ()))

    shared = {"python": python, "world": world, "port": port}
    return [
        stage(
            "draw the world",
            12,
            "{python} -m data_pipeline scenes --out {world} --train {train} --val 256 --test 500 --seed 0 --port {port}",
            train=options.train,
            **shared,
        ),
        *(
            stage(
                f"build {split} data",
                seconds,
                "{python} -m data_pipeline build --source laion2b --metadata {world}/catalogue/{split}.parquet --out {out}",
                "--allow-host 127.0.0.1:{port} --proxy none",
                "--image-size 64 --shard-size 1000 --processes 2 --threads 16 --timeout 3",
                split=split,
                out=data / split,
                **shared,
            )
            for split, seconds in (("train", 32), ("val", 12), ("test", 12))
        ),
        stage(
            "train the tokenizer",
            1,
            "{python} -m data_pipeline tokenizer train --data {data} --out {data}/tokenizer.json --vocab-size {entries}",
            entries=VOCABULARIES["tiny"],
            python=python,
            data=data / "train",
        ),
        stage(
            "pretrain",
            400,
            "{launcher} --num_accelerators {ranks} {train} --preset tiny --data.train {data}/train",
            "--data.validation {data}/val --data.regions {world}/val_regions.json",
            "--run.out {run} --run.expected-world-size {ranks}",
            "--optim.steps {steps}" if options.steps else "",
            launcher=launcher,
            ranks=accelerators,
            train=train,
            data=data,
            run=run,
            steps=options.steps,
            world=world,
        ),
        stage(
            "evaluate",
            60,
            "{python} {evaluate} --checkpoint {run} --data {data}/test --labels {world}/test_labels.json",
            "--regions {world}/test_regions.json --out {out}/eval --report {out}/report.html --require",
            *map(shlex.quote, REQUIREMENTS),
            evaluate=evaluate,
            run=run,
            data=data,
            out=out,
            **shared,
        ),
    ]


def demo(options: DemoOptions) -> int:
    """Runs all stages; 0 if the held-out numbers reach what is required, 1 if not."""
    check_folder(options.out)
    world = options.out / "world"
    port = world_port(world)
    stages = plan_stages(options, port)
    if options.dry_run:
        for number, stage in enumerate(stages, 1):
            print(f"{number}/{len(stages)} {stage.name}\n  {shlex.join(stage.command)}")
        return 0
    display = Display(stages)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends the stages' processes
    until = time.monotonic() + GONE_SECONDS
    while answers(port):
        if time.monotonic() > until:
            raise UserError(
                f"port {port} of 127.0.0.1, which the URLs of {world} name, is another server's: end it or choose another --out"
            )
        time.sleep(0.2)
    try:
        display.begin(0)
        with started(stages[0], 0, options.out) as (server, progress, log):
            while server.poll() is not None or not answers(port):
                if server.poll() is not None:
                    print(tail(log), file=sys.stderr)
                    raise UserError(f"the world's server ended with status {server.returncode}: see {log}")
                display.show(read_report(progress))
                time.sleep(0.2)
            for number in range(1, 4):
                run_stage(stages[number], number, options.out, display)
        for number in range(4, len(stages) - 1):
            run_stage(stages[number], number, options.out, display)
        status = run_stage(stages[-1], len(stages) - 1, options.out, display, allowed=(0, 1))
    finally:
        display.close()
    took = format_seconds(time.monotonic() - display.began)
    print_results(options.out, took)
    return status


def answers(port: int) -> bool:
    """Whether the world's server answers. Its port is taken while it still draws, so a connection alone says nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def print_results(out: Path, took: str) -> None:
    """The evaluation's own table, and the commands to look further."""
    log = sorted((out / "logs").glob("*_evaluate.log"))[-1].read_text()
    print(log.split("\n", 1)[1].strip())
    venv = os.path.relpath(Path(sys.executable).parent)
    print(
        f"\nThe whole way took {took}. To look further:\n"
        f"  report:       xdg-open {out / 'report.html'}\n"
        f"  TensorBoard:  {venv}/tensorboard --logdir {out / 'run/tensorboard'}\n"
        f"  by hand:      {venv}/sycoca explore {out / 'run'}"
    )


def main() -> int:
    leaves(KEPT)
    return demo(parse_command(DemoOptions, sys.argv[1:], "python -m sycoca_ds.demo", description=DemoOptions.__doc__))

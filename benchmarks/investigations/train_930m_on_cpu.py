"""Does the 930M model really train, here, and does the planner know what it needs?

    python benchmarks/investigations/train_930m_on_cpu.py --data DATA --out runs/930m_cpu

DATA is a data set folder with its tokenizer.json.

Trains two steps of the preset in bf16 under ZeRO-3, saves, then starts the same command again for one more step, which verifies
and resumes. Every second the memory of all its processes is summed (Pss: shared pages once). Prints the highest between
two lines of output, with the seconds, and the planner's prediction for this machine. Needs some 20 GiB free, and asks the kernel to
end it before anything else where that is not so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sycoca_ds.capacity.machines import GIB, Assumptions, Machine, this_machine
from sycoca_ds.capacity.search import Search
from sycoca_ds.config import with_vocabulary
from sycoca_ds.engine.ranks.environment import own_tools_first
from sycoca_ds.options import parse_options

REPOSITORY = Path(__file__).resolve().parents[2]
SUB_GROUP = 100_000_000
"""Weights that stage 3 updates together; its default, a billion, copies the whole gradient."""


@dataclass
class Memory:
    """Samples of a process group's memory."""

    group: int
    now: int = 0
    most: int = 0

    def sample(self) -> None:
        self.now = sum(pss(pid) for pid in members(self.group))
        self.most = max(self.most, self.now)

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(1.0):
            self.sample()


def members(group: int) -> Iterator[int]:
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                if int(Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()[2]) == group:
                    yield int(entry.name)
            except OSError:
                continue


def pss(pid: int) -> int:
    """Bytes of a process in memory, a page of n processes counted as an n-th."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def run(words: list[str], log: Path) -> list[tuple[float, float, str]]:
    """Runs a training; (seconds since its start, highest memory in GiB since the line before, line) of each line it prints."""
    command = [str(Path(sys.executable).with_name("deepspeed")), *words]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PATH": own_tools_first()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: Path("/proc/self/oom_score_adj").write_text("1000"),
    )
    memory, stop, began, found = Memory(process.pid), threading.Event(), time.monotonic(), []
    thread = threading.Thread(target=memory.watch, args=(stop,), daemon=True)
    thread.start()
    with open(log, "w") as file:
        for line in process.stdout:
            print(line, end="", file=file, flush=True)
            found.append((time.monotonic() - began, memory.most / GIB, line.rstrip()))
            memory.most = memory.now
    process.wait()
    stop.set()
    found.append((time.monotonic() - began, memory.most / GIB, f"ended with status {process.returncode}"))
    if process.returncode:
        raise SystemExit(f"the training ended with status {process.returncode}: see {log}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/930m_cpu"))
    parser.add_argument("--preset", default="930m")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--global-batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    policy = json.loads((REPOSITORY / "ds_configs" / "zero3.json").read_text())
    policy["zero_optimization"]["sub_group_size"] = SUB_GROUP
    (options.out / "ds_config.json").write_text(json.dumps(policy, indent=2))
    batch = str(options.global_batch_size)
    run_words = ["--preset", options.preset, "--data.train", str(options.data.resolve()), "--run.out", str(options.out.resolve())]
    run_words += ["--run.ds-config", str((options.out / "ds_config.json").resolve()), "--run.precision", "bf16"]
    run_words += ["--model.text.vocab-size", "49152", "--optim.global-batch-size", batch, "--data.lanes", batch]
    run_words += ["--optim.epochs", "None", "--data.workers", "1", "--run.log-every", "1", "--optim.warmup-steps", "1"]
    launch = ["--num_accelerators", str(options.ranks), "sycoca_ds/train.py"]

    config = parse_options(run_words)
    config = replace(config, model=with_vocabulary(config.model, 49152))
    machine = Machine(this_machine(options.ranks), "cpu", 1, options.ranks, 10, Assumptions())
    plan = Search(config, machine, {str(config.run.ds_config): policy}).asked()
    print(f"planned: {plan.peak.total * options.ranks / GIB:.2f} GiB on {options.ranks} ranks, highest in {plan.peak.moment}")
    print("  " + ", ".join(f"{name} {count / GIB:.2f}" for name, count in plan.peak.parts.items()))

    highest = 0.0
    for steps in (options.steps, options.steps + 1):
        found = run([*launch, *run_words, "--optim.steps", str(steps)], options.out / f"to_step_{steps}.log")
        print(f"to step {steps}: seconds, GiB since the line before")
        for seconds, gib, line in found:
            print(f"  {seconds:7.1f} s  {gib:6.2f} GiB  {line[:110]}")
        highest = max(highest, *(gib for _, gib, _ in found)) if steps == options.steps else highest
    newest = max((options.out / "checkpoints").iterdir())
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    print(f"highest while training: {highest:.2f} GiB, planned {plan.peak.total * options.ranks / GIB / highest - 1:+.1%}")
    print(f"checkpoint: {size / 1e9:.2f} GB, planned {plan.saves.bytes / size - 1:+.1%}")


if __name__ == "__main__":
    main()

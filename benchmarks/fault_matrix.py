"""Faults by the hundred, done to trainings under supervision: what is lost, what is said, how long it takes.

    python benchmarks/fault_matrix.py --out runs/faults --faults 200
    python benchmarks/fault_matrix.py --out runs/faults_deepspeed --faults 20 --launch deepspeed
    python benchmarks/fault_matrix.py --out runs/faults_a_minute --faults 10 --seconds-between 60

Trains a small model again and again; in each run some faults are done one after another, drawn by the seed: which, on which rank,
in which phase, at which step. At the end every curve, every sample's key and the weights must be those of a run without faults at
the same number of ranks, bit for bit, and every verdict must name the class that was done. Interrupted, the same command goes on
with the next run; OUT/report.json and the printed table count what is there. Some kinds need to be root, else they are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from sycoca_ds.supervise import ledger  # noqa: E402
from sycoca_ds.supervise.causes import PREEMPTED  # noqa: E402
from sycoca_ds.supervise.verdict import read_history  # noqa: E402
from tests.worlds.data.data_sets import write_data_set  # noqa: E402
from tests.worlds.machines.control_group import small_group  # noqa: E402
from tests.worlds.processes.warm_launch import listening  # noqa: E402
from tests.worlds.trainings import faults as world  # noqa: E402
from tests.worlds.trainings.training import SMALL, losses, weights  # noqa: E402

DISK_MIB, GROUP_MIB = 300, 200
EVERY = 3
"""Steps between checkpoints."""
MODEL = [
    *SMALL,
    *("--optim.global-batch-size", "24", "--data.lanes", "12", "--data.workers", "1", "--run.ds-config", "ds_configs/zero1.json"),
    *("--run.max-skipped-steps", str(world.SKIPS), "--guard.rewind-after", "0", "--guard.recompute"),
    *("--guard.spike-window", "8", "--guard.spike-sigma", "50"),
]
"""12 lanes of two samples a step go on one, two and three ranks."""


class Matrix:
    """Runs in a folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments, self.out = arguments, Path(arguments.out).absolute()
        self.out.mkdir(parents=True, exist_ok=True)
        self.data, self.root = self.out / "data", os.geteuid() == 0
        if not (self.data / "shards.parquet").exists():
            shutil.rmtree(self.data, ignore_errors=True)
            write_data_set(self.data, [31, 7, 25, 1, 32])
        self.every, self.apart = EVERY, arguments.steps_between

    def settle_pace(self) -> None:
        """Steps between faults, and between checkpoints, from the time that an undisturbed run's steps take."""
        if self.arguments.seconds_between:
            probe = self.undisturbed(self.arguments.ranks[0], steps=40)
            (line,) = ledger.read_ledger(probe)
            step = (line.spent["step"] + line.spent["data"]) / (line.steps() - 1)
            self.apart = max(8, round(self.arguments.seconds_between / step))
            self.every = max(EVERY, self.apart // 10)

    @property
    def steps(self) -> int:
        """Enough for the faults of a run, wherever they fall."""
        return 3 * self.every + self.arguments.per_run * (self.apart + self.apart // 2) + 2 * self.every

    def plan(self) -> list[list[str]]:
        """Kinds by run: all of them in turn, shuffled."""
        kinds = [name for name, kind in world.KINDS.items() if self.root or not kind.needs]
        kinds = [name for name in kinds if not self.arguments.kinds or name in self.arguments.kinds]
        drawn = random.Random(self.arguments.seed)
        names: list[str] = []
        while len(names) < self.arguments.faults:
            names += drawn.sample(kinds, len(kinds))
        names = names[: self.arguments.faults]
        size = self.arguments.per_run
        return [names[n : n + size] for n in range(0, len(names), size)]

    def options(self, run: Path, steps: int) -> list[str]:
        patience = self.arguments.patience
        watch = {"beat-seconds": 0.5, "silent-seconds": 6 * patience, "step-seconds": 8 * patience}
        words = [*MODEL, "--data.train", str(self.data), "--run.out", str(run), "--optim.steps", str(steps)]
        words += ["--run.checkpoint-every", str(self.every)]
        return words + [word for name, value in watch.items() for word in (f"--watch.{name}", str(value))]

    def supervise(self, script: Path, ranks: int, run: Path, steps: int, log: Path, limit: float) -> int | None:
        """Exit status; None: it took longer than the limit."""
        patience = self.arguments.patience
        own = [sys.executable, "-m", "sycoca_ds.supervise", "--back-off-seconds", "0.2", "--restarts", "6"]
        own += ["--grace-seconds", str(8 * patience), "--silent-seconds", str(15 * patience), "--first-sign-minutes", "3", "--"]
        launch = [sys.executable, "-m", "tests.worlds.processes.warm_launch", str(ranks)]
        if self.arguments.launch == "deepspeed":
            launch = [str(Path(sys.executable).with_name("deepspeed")), "--num_accelerators", str(ranks)]
        with open(log, "w") as file:
            process = subprocess.Popen(
                [*own, *launch, str(script), *self.options(run, steps)],
                cwd=REPOSITORY,
                env={**os.environ, **self.environment, "OMP_NUM_THREADS": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            try:
                return process.wait(limit)
            except subprocess.TimeoutExpired:
                return None
            finally:
                if process.poll() is None:  # twice: at once
                    for _ in range(2):
                        process.send_signal(signal.SIGTERM)
                        time.sleep(0.5)
                    process.wait(60)

    def undisturbed(self, ranks: int, steps: int | None = None) -> Path:
        steps = steps or self.steps
        folder = self.out / f"undisturbed_{ranks}_ranks_{steps}_steps"
        if not (folder / "whole").exists():
            shutil.rmtree(folder, ignore_errors=True)
            world.schedule(folder, folder / "run", [])
            status = self.supervise(world.script(folder), ranks, folder / "run", steps, folder / "output.log", 60 + 10 * steps)
            if status != 0:
                raise SystemExit(f"the run without faults ended with {status}: see {folder / 'output.log'}")
            (folder / "whole").touch()
        return folder / "run"

    def run(self, number: int, kinds: list[str]) -> dict[str, Any]:
        """A run with faults in it, and what it came to; of an earlier call if that finished it."""
        ranks = self.arguments.ranks[number % len(self.arguments.ranks)]
        folder = self.out / f"run_{number:03d}"
        result = folder / "result.json"
        if not result.exists():
            reference = self.undisturbed(ranks)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            faults = world.draw(kinds, ranks, 3 * self.every, self.apart, seed=1000 * self.arguments.seed + number)
            disk = own_disk(folder / "disk", any(world.KINDS[kind].needs == "disk" for kind in kinds))
            with disk, small_group(GROUP_MIB << 20) as group:
                world.schedule(folder, folder / "disk" / "run", faults, "" if group is None else str(group))
                limit = 120 + self.arguments.patience * (60 * len(kinds) + 5 * self.steps)
                script = world.script(folder)
                status = self.supervise(script, ranks, folder / "disk/run", self.steps, folder / "output.log", limit)
                found = {"ranks": ranks, "status": status, **self.compare(folder, folder / "disk/run", reference, faults, ranks)}
                if found["equal"]:
                    shutil.rmtree(folder / "disk/run/checkpoints")
                shutil.copytree(folder / "disk/run", folder / "run")
            result.write_text(json.dumps(found, indent=1))
        return json.loads(result.read_text())

    def compare(self, folder: Path, run: Path, reference: Path, faults: list[world.Fault], ranks: int) -> dict[str, Any]:
        verdicts = {record["attempt"]: record for record in read_history(run / "supervise/history.jsonl")}
        done, lines = world.done(folder), ledger.read_ledger(run)
        attempts: dict[int, list[str]] = {}
        for name, about in sorted(done.items(), key=lambda item: item[1]["at"]):
            attempts.setdefault(world.attempt_of(about), []).append(name)
        told = []
        for fault in faults:
            if fault.name not in done:
                told.append({"name": fault.name, "kind": fault.kind, "done": False})
                continue
            attempt = world.attempt_of(done[fault.name])
            last = attempts[attempt][-1] == fault.name
            verdict, expected = verdicts.get(attempt, {}), world.KINDS[fault.kind].ends
            right = last and verdict.get("class") == expected if expected else not last or verdict.get("class") == "completed"
            about = {"phase": fault.phase, "rank": fault.rank, "step": done[fault.name]["step"], "class": verdict.get("class")}
            about |= {"named_rank": verdict.get("rank"), "evidence": verdict.get("evidence", [])[:2]}
            told.append({"name": fault.name, "kind": fault.kind, "done": True, "right": right, **about})
        same = {
            "curve": losses(run, self.steps) == losses(reference, self.steps),
            "keys": world.fed(folder, ranks) == world.fed(reference.parent, ranks),
            "weights": same_weights(run, reference),
        }
        return {
            "faults": told,
            **same,
            "equal": all(same.values()),
            "attempts": len(verdicts),
            "ledger": [x.__dict__ for x in lines],
        }

    def report(self, results: list[dict[str, Any]]) -> dict[str, Any]:
        faults = [fault for result in results for fault in result["faults"]]
        done = [fault for fault in faults if fault["done"]]
        ended = [fault for fault in done if world.KINDS[fault["kind"]].ends]
        guilty = [fault for fault in ended if world.KINDS[fault["kind"]].ends != PREEMPTED]
        kept = {}
        for ranks in sorted({result["ranks"] for result in results}):
            speeds = []
            own = [[ledger.Line(**line) for line in result["ledger"]] for result in results if result["ranks"] == ranks]
            for group in ([ledger.read_ledger(self.undisturbed(ranks))], own):
                parts = [ledger.shares(lines) for lines in group]
                steps = sum(new_steps(lines) for lines in group)
                speeds.append(steps / sum(part[name] for part in parts for name in ("productive", "data", "saving", "validation")))
            kept[str(ranks)] = {"undisturbed": speeds[0], "with faults": speeds[1], "share": speeds[1] / speeds[0]}
        starts = [start for result in results for start in ledger.restart_times([ledger.Line(**x) for x in result["ledger"]])]
        parts: Counter[str] = Counter()
        for result in results:
            parts.update(ledger.shares([ledger.Line(**x) for x in result["ledger"]]))
        kinds = {}
        for name in sorted({fault["kind"] for fault in done}):
            mine = [fault for fault in done if fault["kind"] == name]
            kinds[name] = {"done": len(mine), "right": sum(fault["right"] for fault in mine)}
            kinds[name]["expected"] = world.KINDS[name].ends or "goes on"
        return {
            "runs": len(results),
            "equal": sum(result["equal"] for result in results),
            "faults": len(done),
            "not done": len(faults) - len(done),
            "attempts": sum(result["attempts"] for result in results),
            "right": sum(fault["right"] for fault in done),
            "classes right": sum(fault["right"] for fault in ended) / max(1, len(ended)),
            "rank named": sum(fault["named_rank"] == fault["rank"] for fault in guilty) / max(1, len(guilty)),
            "kinds": kinds,
            "steps a second outside starts": kept,
            "seconds by part": {name: round(seconds, 1) for name, seconds in parts.items()},
            "seconds from launch to first step": {
                name: round(sum(start[name] for start in starts) / len(starts), 2) for name in (starts[0] if starts else ())
            },
        }

    def work(self) -> int:
        until = time.monotonic() + 60 * self.arguments.minutes
        with listening(self.out) if self.arguments.launch == "warm" else contextlib.nullcontext({}) as self.environment:
            self.settle_pace()
            results, runs = [], self.plan()
            for number, kinds in enumerate(runs):
                if time.monotonic() > until:
                    print(f"{self.arguments.minutes:g} minutes are over, {number} of {len(runs)} runs; the same command goes on")
                    break
                began = time.monotonic()
                result = self.run(number, kinds)
                wrong = [f"{fault['name']} -> {fault.get('class')}" for fault in result["faults"] if not fault.get("right")]
                equal = "equal" if result["equal"] else f"NOT EQUAL (status {result['status']})"
                print(
                    f"run {number + 1}/{len(runs)}: {result['ranks']} ranks, {result['attempts']} attempts, {equal}, "
                    f"{time.monotonic() - began:.0f} s" + (f"; not as expected: {', '.join(wrong)}" if wrong else ""),
                    flush=True,
                )
                results.append(result)
            found = self.report(results)
        (self.out / "report.json").write_text(json.dumps(found, indent=1) + "\n")
        show(found)
        return 0 if found["equal"] == found["runs"] and found["classes right"] >= 0.95 else 1


def new_steps(lines: list[ledger.Line]) -> int:
    """Steps after the first of every attempt that nobody did again."""
    firsts = ledger.following_firsts(lines)
    kept = [line.steps() - ledger.lost_steps(line, first) for line, first in zip(lines, firsts, strict=True)]
    return sum(max(0, count - 1) for count in kept)


def same_weights(run: Path, reference: Path) -> bool:
    import torch

    mine, theirs = weights(run), weights(reference)
    return list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in mine)


@contextlib.contextmanager
def own_disk(place: Path, needed: bool) -> Iterator[None]:
    place.mkdir()
    if not needed:
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-R", "-l", str(place)], check=True)


def show(found: dict[str, Any]) -> None:
    print(f"\n{found['faults']} faults, {found['attempts']} attempts; {found['equal']} of {found['runs']} runs equal, bit for bit")
    print(f"class right: {100 * found['classes right']:.1f} %; rank named: {100 * found['rank named']:.1f} %")
    for name, counts in found["kinds"].items():
        print(f"  {name:<18}{counts['expected']:<15}{counts['right']:>4} of {counts['done']}")
    for ranks, speed in found["steps a second outside starts"].items():
        print(f"{ranks} ranks: {speed['with faults']:.2f} steps/s against {speed['undisturbed']:.2f}: {100 * speed['share']:.1f} %")
    print("launch to first step:", ", ".join(f"{k} {v} s" for k, v in found["seconds from launch to first step"].items()))
    print("time:", ", ".join(f"{k} {v} s" for k, v in found["seconds by part"].items()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for everything")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=10, help="faults in a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 2, 1, 2, 3], help="of the runs, in turn")
    parser.add_argument("--kinds", nargs="*", choices=list(world.KINDS), help="only these")
    parser.add_argument("--launch", choices=("warm", "deepspeed"), default="warm", help="ranks forked from a warm process, or not")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on all time limits, for a machine that is busy")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin no run after so many")
    parser.add_argument("--steps-between", type=int, default=8, help="faults so far apart, more or less")
    parser.add_argument("--seconds-between", type=float, default=0.0, help="the same by the time that steps take")
    return Matrix(parser.parse_args()).work()


if __name__ == "__main__":
    sys.exit(main())

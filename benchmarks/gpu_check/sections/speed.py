"""The presets on one GPU through the real entry: how fast, how much memory, what a save takes."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from check import Checks

from sections.data import data_of
from sections.runs import VOCABULARY, Ended, finish, launch
from sycoca_ds.capacity.machines import GIB, GPUS, Assumptions, Machine
from sycoca_ds.capacity.search import Configuration, Search
from sycoca_ds.config import with_vocabulary
from sycoca_ds.engine.policy import find_policy
from sycoca_ds.options import parse_options, read_json_object

STEPS, EVERY = 16, 4
TRACED = "9:10"
MEMORY = 0.15
"""Largest relative difference of the planner's peak."""


@dataclass(frozen=True)
class Case:
    name: str
    preset: str
    policy: str
    checkpointing: str
    batch: int
    saves: bool = False
    traced: bool = False


CASES = (
    Case("930m_zero3_full", "930m", "zero3", "full", 256, saves=True, traced=True),
    Case("930m_zero3_none", "930m", "zero3", "none", 64),
    Case("930m_zero1_none", "930m", "zero1", "none", 64, traced=True),
    Case("base_zero3_full", "base", "zero3", "full", 256),
    Case("base_zero1_none", "base", "zero1", "none", 128, traced=True),
    Case("small_zero1_none", "small", "zero1", "none", 256),
)


def words(case: Case) -> list[str]:
    lanes = 64
    return [
        *("--preset", case.preset, "--run.ds-config", f"ds_configs/{case.policy}.json", "--run.precision", "bf16"),
        *("--run.activation-checkpointing", case.checkpointing, "--optim.global-batch-size", str(case.batch)),
        *("--optim.accumulation-steps", "1", "--model.text.vocab-size", str(VOCABULARY), "--data.lanes", str(lanes)),
        *("--data.workers", "8", "--run.log-every", str(EVERY), "--run.expected-world-size", "1", "--optim.warmup-steps", "100"),
    ]


def planned(case: Case) -> Configuration:
    """What the planner says of a case on this GPU, in its bytes without what is no tensor of the run."""
    config = parse_options(words(case))
    config = replace(config, model=with_vocabulary(config.model, VOCABULARY))
    total = torch.cuda.get_device_properties(0).total_memory / GIB
    kind = min(GPUS, key=lambda name: abs(GPUS[name].memory_gib - total))
    machine = Machine(replace(GPUS[kind], memory_gib=total), kind, 1, 1, 400, Assumptions(framework_gib=0.0))
    policy = config.run.ds_config
    return Search(config, machine, {policy: read_json_object(find_policy(policy), "run.ds-config")}).asked()


def run(checks: Checks, options: argparse.Namespace) -> None:
    data, out = data_of(options), options.out
    for case in CASES:
        if options.runs and case.name not in options.runs:
            continue
        shutil.rmtree(out / case.name, ignore_errors=True)
        often = ("8", "--run.keep-checkpoints", "1") if case.saves else ("1000",)
        more = ["--optim.epochs", "None", "--optim.steps", str(STEPS), "--run.checkpoint-every", *often]
        try:
            ended = finish(launch(out / case.name, data, *words(case), *more), out / case.name, watch=True)
        except RuntimeError as error:
            checks.add(case.name, False, str(error))
            continue
        report(checks, case, ended, planned(case))
        if case.saves:
            resume(checks, case, data, options, ended)
        shutil.rmtree(out / case.name / "checkpoints")
        if case.traced:
            trace(checks, case, data, options)


def report(checks: Checks, case: Case, ended: Ended, plan: Configuration) -> None:
    # the first reports hold the first steps, in which kernels are chosen; the last two are taken together
    last = ended.records[-2:]
    speed = len(last) / sum(1 / record["samples_per_second"] for record in last)
    tflops = len(last) / sum(1 / record["model_tflops_per_second"] for record in last)
    peak = checks.notes["machine"]["measured_tflops"]
    mfu = f"{last[-1]['mfu']:.1%} of the data sheet's, " if "mfu" in last[-1] else ""
    said = f"batch {case.batch}: {speed:.0f} samples/s, {case.batch / speed:.3f} s a step, {tflops:.0f} TFLOP/s of the model, MFU "
    said += f"{mfu}{tflops / peak:.1%} of the measured peak; waiting for data {last[-1]['data_wait']:.1%}"
    checks.add(f"{case.name}: speed", None, f"{said}; planned {plan.speed.samples_per_second:.0f} samples/s")
    measured, expected = max(record["memory_gib"] for record in ended.records), plan.peak.total / GIB
    off = expected / measured - 1
    said = f"peak {measured:.2f} GiB, planned {expected:.2f} ({off:+.1%}), highest in {plan.peak.moment}"
    checks.add(f"{case.name}: memory", abs(off) <= MEMORY, f"{said}; {ended.gpu_mib / 1024:.2f} GiB of the GPU in use")
    checks.note(case.name, {"records": ended.records, "others": ended.others, "gpu_mib": ended.gpu_mib, "seconds": ended.seconds})


def resume(checks: Checks, case: Case, data: Path, options: argparse.Namespace, ended: Ended) -> None:
    """The saves of a run, and one more step from the last of them."""
    folder = options.out / case.name
    stalls = [record["checkpoint_seconds"] for record in ended.others if "checkpoint_seconds" in record]
    size = sum(path.stat().st_size for path in (folder / "checkpoints").rglob("*") if path.is_file())
    checks.add(f"{case.name}: save", None, f"{size / 1e9:.2f} GB; stopped the training {', '.join(f'{s:.2f}' for s in stalls)} s")
    more = ["--optim.epochs", "None", "--optim.steps", str(STEPS + 1), "--run.checkpoint-every", "1000"]
    again = finish(launch(folder, data, *words(case), *more), folder)
    said = [line for line in again.log.splitlines() if line.startswith("resumed from")]
    spent = json.loads((folder / "heartbeats" / "rank_00000.json").read_text())["spent"]
    phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in spent.items() if seconds >= 0.05)
    checks.add(f"{case.name}: resumed", bool(said), f"{again.seconds:.1f} s in all: {phases}")


def trace(checks: Checks, case: Case, data: Path, options: argparse.Namespace) -> None:
    """The ten largest costs of two steps, in a short run of its own: tracing slows what it looks at."""
    folder = options.out / f"{case.name}_traced"
    more = ["--optim.epochs", "None", "--optim.steps", "10", "--run.checkpoint-every", "1000", "--run.profile", TRACED]
    try:
        lines = finish(launch(folder, data, *words(case), *more), folder).log.splitlines()
    except RuntimeError as error:
        checks.add(f"{case.name}: traced", False, str(error))
        return
    first = next(number for number, line in enumerate(lines) if "operation (GPU time of its own)" in line)
    print("\n".join(lines[first : first + 11]), flush=True)
    checks.add(f"{case.name}: traced", True, "; ".join(" ".join(line.split()) for line in lines[first + 1 : first + 4]))
    checks.note(f"{case.name} costs", lines[first : first + 11])
    shutil.rmtree(folder / "checkpoints")

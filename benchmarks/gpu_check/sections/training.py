"""The same short training on the GPU, at every ZeRO stage and stopped half-way, and on the CPU."""

from __future__ import annotations

import argparse
import shutil

import torch
from check import Checks

from sections.data import data_of
from sections.runs import Ended, finish, launch

STEPS = 20
POLICIES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")
BOUND = 1e-2
"""Largest relative difference of a loss: float32 on a GPU multiplies in TF32, and steps add up what that rounds."""


def words(policy: str, steps: int) -> list[str]:
    return [
        *("--preset", "tiny", "--run.precision", "fp32", "--run.ds-config", f"ds_configs/{policy}.json"),
        *("--optim.steps", str(STEPS), "--optim.warmup-steps", "4", "--optim.lr", "5e-4", "--data.workers", "2"),
        *("--run.log-every", "1", "--run.checkpoint-every", "10", "--run.expected-world-size", "1"),
        *(("--optim.steps", str(steps)) if steps != STEPS else ()),
    ]


def curve(ended: Ended) -> list[float]:
    return [record["loss"] for record in ended.records]


def run(checks: Checks, options: argparse.Namespace) -> None:
    data, out = data_of(options), options.out
    # side by side: they are small, and none is timed
    started = {"cpu": launch(out / "cpu", data, *words("zero1", STEPS), gpu=False)}
    for policy in POLICIES:
        started[policy] = launch(out / policy, data, *words(policy, STEPS))
    started["twice"] = launch(out / "twice", data, *words("zero1", STEPS))
    found: dict[str, list[float]] = {}
    for name, process in started.items():
        try:
            found[name] = curve(finish(process, out / name))
        except RuntimeError as error:
            checks.add(f"{name}: trains", False, str(error))
    if "cpu" not in found:
        return
    for name, losses in found.items():
        if name != "cpu":
            checks.below(f"{name}: loss of {STEPS} steps against the CPU's", apart(losses, found["cpu"]), BOUND)
    if "twice" in found and "zero1" in found:
        checks.add("the same run twice", None, f"losses differ by {apart(found['twice'], found['zero1']):.1e}")
    resumed(checks, options, found)
    if torch.cuda.device_count() > 1:
        losses = curve(finish(launch(out / "two", data, *words("zero3", STEPS)[:-2], ranks=2), out / "two"))
        checks.below("two ranks, zero3: loss against the CPU's", apart(losses, found["cpu"]), BOUND)
    else:
        checks.add("two ranks", None, "left out: one GPU")


def resumed(checks: Checks, options: argparse.Namespace, found: dict[str, list[float]]) -> None:
    """From the checkpoint of step 10 again to the end: what comes after it is taken away first."""
    data, out = data_of(options), options.out
    started = {}
    for policy in ("zero1", "zero3"):
        if policy not in found:
            continue
        again = out / f"{policy}_resumed"
        shutil.copytree(out / policy, again)
        shutil.rmtree(again / "checkpoints" / f"step_{STEPS:08d}")
        started[policy] = launch(again, data, *words(policy, STEPS))
    for policy, process in started.items():
        losses = curve(finish(process, out / f"{policy}_resumed"))
        checks.below(f"{policy}: resumed at step 10, against the run in one go", apart(losses, found[policy]), BOUND)


def apart(one: list[float], other: list[float]) -> float:
    """Largest relative difference; curves of other lengths have none that is small."""
    if len(one) != len(other):
        return float("nan")
    return max(abs(a / b - 1) for a, b in zip(one, other, strict=True))

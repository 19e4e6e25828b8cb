"""Short real runs of `sycoca_ds/train.py`, and what they leave.

A start costs more than a run: importing torch and DeepSpeed takes a rank longer than the steps. What is no test of starting,
stopping or being killed goes through `in_turn`: the same runs, one after the other, in processes that start once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint.weights import load_for_inference, open_weights
from sycoca_ds.engine.monitoring.curves import CLOCK
from tests.worlds.processes.launching import finish, run_on_ranks, start_warm

if TYPE_CHECKING:
    from sycoca_ds.engine.ranks.runtime import Runtime

STEPS = 4
TOWERS = ("image", "text", "text-decoder", "image-decoder")
SHAPES = {
    "embed-dim": 32,
    "image.image-size": 24,
    "image.patch-size": 6,
    **{f"{tower}.layers": 1 + (tower in ("image", "text")) for tower in TOWERS},
    **{f"{tower}.width": 32 for tower in TOWERS},
    **{f"{tower}.heads": 2 for tower in TOWERS},
}
"""A step takes 0.05 s of a core; at tiny's 128 wide it would be three times as much."""
SMALL = [
    "--preset",
    "tiny",
    *(word for name, value in SHAPES.items() for word in (f"--model.{name}", str(value))),
    "--optim.global-batch-size",
    "16",
    "--optim.steps",
    str(STEPS),
    "--optim.warmup-steps",
    "2",
    "--data.lanes",
    "4",
    "--data.workers",
    "0",
    "--run.log-every",
    "1",
    "--run.precision",
    "fp32",
    "--run.checkpoint-every",
    "2",
    "--run.activation-checkpointing",
    "none",
]


def with_validation(data: Path) -> list[str]:
    return ["--data.validation", str(data), "--run.validation-samples", "16", "--run.pictures", "2"]


def run(out: Path, data: Path, *options: str, ranks: int, **script: Path) -> Path:
    status, output = finish(start_warm([*SMALL, "--data.train", str(data), "--run.out", str(out), *options], ranks, **script))
    assert status == 0, output[-4000:]
    assert json.loads((out / "run_status.json").read_text())["status"] == "completed", output[-2000:]
    return out


def train_here(runtime: Runtime, options: list[str]) -> None:
    """`train.main` in a process whose ranks have met: they meet once for all their runs."""
    from sycoca_ds.engine.loop import train
    from sycoca_ds.engine.preparation import check_before_start
    from sycoca_ds.options import parse_options

    config = parse_options(options)
    check_before_start(config)
    assert train(config, runtime) == "completed"


def on_a_rank(runtime: Runtime, file: str) -> None:
    """A line for each run, in the file's folder: why it was refused, or nothing."""
    said = []
    for options in json.loads(Path(file).read_text()):
        try:
            train_here(runtime, options)
            said.append("")
        except UserError as error:
            said.append(str(error))
    if runtime.leads:
        Path(file).with_name("refused.json").write_text(json.dumps(said))


def in_turn(folder: Path, data: Path, runs: list[tuple[Path, list[str]]], *, ranks: int) -> list[str]:
    """Runs of the same ranks, (run folder, options), in the order given; each one's refusal, "" for those that completed."""
    words = [[*SMALL, "--data.train", str(data), "--run.out", str(out), *options] for out, options in runs]
    folder.mkdir(exist_ok=True)
    (folder / "runs.json").write_text(json.dumps(words))
    run_on_ranks(folder, __name__, str(folder / "runs.json"), ranks=ranks)
    return json.loads((folder / "refused.json").read_text())


def losses(out: Path, steps: int = STEPS) -> list[dict[str, float]]:
    """The training records in order, the numbers that depend on the clock and the machine left out."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, steps + 1))
    return [{name: value for name, value in record.items() if name not in CLOCK} for record in records if "loss" in record]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_for_inference(out).model.state_dict()


def average(out: Path) -> dict[str, torch.Tensor]:
    """Of a run with optim.ema-decay."""
    return open_weights(out, ema=True).weights


def assert_same_run(out: Path, reference: Path) -> None:
    """Losses to 1e-5 relative and, after four AdamW steps at up to 1e-3, weights to 2e-5 absolute (float32, sums in another
    order)."""
    for record, expected in zip(losses(out), losses(reference), strict=True):
        for name in ("loss", "itc", "ic", "mim", "logit_scale"):
            assert record[name] == pytest.approx(expected[name], rel=1e-5), (record["step"], name)
    mine, theirs = weights(out), weights(reference)
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")

"""Short real runs of `sycoca_ds/train.py`, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.checkpoint.weights import load_for_inference
from tests.worlds.launching import finish, start

STEPS = 4
SMALL = [
    "--preset",
    "tiny",
    "--model.image.image-size",
    "24",
    "--model.image.patch-size",
    "6",
    "--model.image.layers",
    "2",
    "--model.text.layers",
    "2",
    "--model.text-decoder.layers",
    "1",
    "--model.image-decoder.layers",
    "1",
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
]


def with_validation(data: Path) -> list[str]:
    return ["--data.validation", str(data), "--run.validation-samples", "16", "--run.pictures", "2"]


def run(out: Path, data: Path, *options: str, ranks: int, **script: Path) -> Path:
    status, output = finish(start([*SMALL, "--data.train", str(data), "--run.out", str(out), *options], ranks, **script))
    assert status == 0, output[-4000:]
    assert json.loads((out / "run_status.json").read_text())["status"] == "completed", output[-2000:]
    return out


def losses(out: Path) -> list[dict[str, float]]:
    """The training records in order, the numbers that depend on the clock left out."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == list(range(1, STEPS + 1))
    return [
        {name: value for name, value in record.items() if name not in ("samples_per_second", "data_wait")}
        for record in records
        if "loss" in record
    ]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_for_inference(out).model.state_dict()


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

"""`python -m sycoca_ds.data inspect`: its numbers against the plan, its sheet against the batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.data.command import report
from sycoca_ds.data.inspection import LINES, TILE, largest_power, wrapped
from sycoca_ds.data.loader import TrainSet
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation
from tests.worlds.data.data_sets import write_data_set

QUICK = ["--global-batch-size", "12", "--lanes", "6", "--window", "16", "--image-size", "24", "--seconds", "0.4"]


def test_counts_order_speed_and_pictures(data_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = write_data_set(tmp_path / "other", [23, 17], seed=2)
    sheet = tmp_path / "batch.png"
    words = [
        str(data_set),
        str(other),
        *QUICK,
        "--weights",
        "2",
        "1",
        "--step",
        "30",
        "--samples-per-second",
        "1e6",
        "--out",
        str(sheet),
    ]
    assert report(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{data_set}: 5 shards, " in lines[0] and lines[0].endswith("96 samples, 0 of them left out (keep = false)")
    # 8 of 12 pairs a step: 12 steps, nothing left of 96; 4 of 12: 10 steps of 40
    assert "66.67% = 8 of every 12 pairs; an epoch of its own has 12 steps and leaves over 0 samples" in lines[1]
    assert lines[3].endswith("has 10 steps and leaves over 0 samples; before step 30: 3.00 epochs")
    assert "11 steps an epoch; the same batches on 1, 2, 3, 6 ranks" in lines[4]
    rate, processes = float(lines[6].split()[1].replace(",", "")), int(lines[6].split()[-3])
    # the rate is printed rounded: on a busy machine half a sample a second is many processes of a million
    assert rate > 10 and 1e6 / (rate + 0.5) <= processes <= 1e6 / (rate - 0.5) + 1

    sources = Sources.load([data_set, other])
    plan = Plan(sources.kept, weights=(2, 1), global_batch_size=12, lanes=6, window=16, seed=0)
    dataset = TrainSet(sources, plan, Tokenizer(data_set / "tokenizer.json"), augmentation=Augmentation(24), context_length=76)
    batch = dataset.__getitems__(list(zip(*(values.tolist() for values in plan.batch(30)), strict=True)))
    page = np.asarray(Image.open(sheet))
    assert page.shape == (2 * (TILE + 12 * LINES + 8), 8 * TILE, 3)
    for number, picture in enumerate(batch.to_device(torch.device("cpu"), 24)["image_BCHW"]):
        left, top = number % 8 * TILE + 2, number // 8 * (TILE + 12 * LINES + 8) + 2
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((TILE - 4, TILE - 4))
        assert np.array_equal(page[top : top + TILE - 4, left : left + TILE - 4], np.asarray(tile))
        assert (page[top + TILE : top + TILE + 12, left : left + TILE - 8] < 128).any(), "a caption stands below"


def test_a_small_data_set_is_shown_without_options(data_set: Path, capsys: pytest.CaptureFixture) -> None:
    """96 samples, where train.py's global batch is 2048 on 256 lanes."""
    assert report([str(data_set), "--seconds", "0.1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "100.00% = 64 of every 64 pairs; an epoch of its own has 1 steps and leaves over 32 samples" in lines[1]
    assert "order: 64 lanes, 1 samples of each a step" in lines[2]


@pytest.mark.parametrize("count, power", [(0, 1), (1, 1), (63, 32), (64, 64), (65, 64)])
def test_the_largest_power_of_two(count: int, power: int) -> None:
    assert largest_power(count) == power


def test_long_captions_are_cut() -> None:
    assert wrapped("a bb ccc", 4, len) == ["a bb", "ccc"]
    assert wrapped("aaaa bbbb cccc dddd", 4, len) == ["aaaa", "bbbb", "cccc .."]
    assert wrapped("", 4, len) == [""]


def test_what_cannot_be_is_refused_on_one_line(data_set: Path, tmp_path: Path) -> None:
    for words, message in (
        ([], "expected at least one data set folder"),
        ([str(tmp_path / "none")], "no such folder"),
        ([str(data_set), *QUICK, "--step", "-1"], "--step -1"),
        ([str(data_set), "--global-batch-size", "2048"], "expected at least one global batch"),
        ([str(data_set), *QUICK, "--tokenizer", "none.json"], "tokenizer none.json does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            report(words)
    for words, said in (
        (["--workers", "2"], "command '--workers': no such command (expected one of inspect; see python -m sycoca_ds.data --help)"),
        (["inspct", "x"], "command 'inspct': no such command; did you mean inspect? (expected one of inspect; see python -m "),
    ):
        done = subprocess.run([sys.executable, "-m", "sycoca_ds.data", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {said}") and done.stderr.count("\n") == 1

"""A checkpoint whose weights are NaN: every task says so in one line, a set becomes null, and the next one is looked at."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval import suite
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.vqa.items import Request
from sycoca_ds.evaluation.command import evaluate, evaluate_checkpoint
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.data.named_squares import draw_squares, write_squares
from tests.worlds.data.nearly_fitting import write_sugarcrepe
from tests.worlds.published.captioned import write_mscoco
from tests.worlds.published.exported import scenes, write_winogavil
from tests.worlds.published.packed import write_cifar10
from tests.worlds.trainings.eval_world import SMALL, make_run

SAID = "are not finite: the checkpoint is damaged or diverged"
ANSWERING = dataclasses.replace(SMALL, family="coca", fusion=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diverged")
    squares = draw_squares(4)
    write_squares(folder / "squares", squares)
    label = {square.url: number % 2 for number, square in enumerate(squares)}
    named = {"name": "two", "classes": ["one", "two"], "templates": ["{c}"], "labels": label}
    (folder / "labels.json").write_text(json.dumps(named))
    asked = [{"url": square.url, "kind": "x", "question": "what?", "answer": f"it {n}"} for n, square in enumerate(squares)]
    (folder / "questions.json").write_text(json.dumps({"name": "small", "questions": asked}))
    write_sugarcrepe(folder / "sugarcrepe", items=2)
    make_run(folder / "all", diverged="")
    make_run(folder / "answering", ANSWERING, diverged="")
    make_run(folder / "decoder", diverged="text_decoder.head")
    make_run(folder / "answering_decoder", ANSWERING, diverged="text_decoder.head")
    return folder


def evaluated(world: Path, run: str, task: str, out: Path, how: str = "rank") -> None:
    """By one task alone."""
    data = world / "squares" / "data"
    given = {
        "regions": world / "squares" / "test_regions.json",
        "compositions": (f"sugarcrepe={world / 'sugarcrepe'}",),
        "probe_train": data,
        "questions": Request(str(world / "questions.json"), how=how),
    }
    options = SuiteOptions(tasks=(task,), gallery=2, caption_tokens=4)
    evaluate_checkpoint(world / run, data, world / "labels.json", out, options, torch.device("cpu"), **given)


@pytest.mark.parametrize(
    ("run", "task", "how"),
    [
        *(("all", task, "rank") for task in TASKS if task not in ("vqa", "association")),  # the latter below
        *(("answering", "vqa", how) for how in ("rank", "generate")),
        ("decoder", "captioning", "rank"),
        *(("answering_decoder", "vqa", how) for how in ("rank", "generate")),
    ],
)
def test_every_task_says_so(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str, task: str, how: str) -> None:
    monkeypatch.setattr(suite, "choose_threads", lambda step: 1)  # which would be the first to tell
    with pytest.raises(UserError, match=SAID):
        evaluated(world, run, task, tmp_path, how)
    assert not (tmp_path / f"tasks/{task}.json").exists()


def test_the_set_is_null_and_the_next_one_is_looked_at(world: Path, tmp_path: Path) -> None:
    root = tmp_path / "sets"
    root.mkdir()
    write_mscoco(root)
    write_cifar10(root)
    write_winogavil(root / "winogavil", scenes(5), [("a", [0, 1, 2, 3, 4], [0])])
    sets, out = ("mscoco", "cifar10", "parquet:winogavil"), tmp_path / "out"
    config = EvaluateConfig(str(world / "all"), data_root=str(root), sets=sets, out=str(out), device="cpu", cache="off")
    assert evaluate(config) == 1
    records = json.loads((out / "sets.json").read_text())["sets"]
    assert list(records) == list(sets)
    for record in records.values():
        assert record["status"] == "failed" and SAID in record["reason"]
        assert all(value is None for numbers in record["metrics"].values() for value in numbers.values())

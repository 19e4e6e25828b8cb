"""Captions of a set by a stand-in for `java`: SPICE where its jars are given, and programs that fail without costing the rest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sycoca_ds.eval.paper.cells import content
from sycoca_ds.eval.scorers.captions import Meteor
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.captioned import write_mscoco
from tests.worlds.published.stand_in_java import stand_in_java, write_jars
from tests.worlds.trainings.eval_world import make_run


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, MSCOCO in miniature and a Java of which METEOR runs out of memory."""
    stand_in_java(tmp_path / "bin", monkeypatch)
    (tmp_path / "sets").mkdir()
    write_mscoco(tmp_path / "sets")
    make_run(tmp_path / "run")
    return tmp_path


def evaluated(world: Path, **more) -> dict:
    """{task: record}."""
    words = {"device": "cpu", "precision": "fp32", "gallery": 2, "caption_tokens": 4, "tasks": ("captioning", "retrieval")}
    config = EvaluateConfig(
        str(world / "run"), data_root=str(world / "sets"), sets=("mscoco",), out=str(world / "out"), **words, **more
    )
    assert evaluate(config) == 0
    return json.loads((world / "out/mscoco/results.json").read_text())["tasks"]


def test_spice_is_measured_by_picture_and_stands_beside_the_papers(world: Path) -> None:
    record = evaluated(world, spice_dir=str(write_jars(world / "jars")))["captioning"]
    with np.load(world / "out/mscoco/each/captioning.npz") as each:
        spice_I = each["spice"]
    assert spice_I.shape == (3,) and record["metrics"]["spice"] == pytest.approx(spice_I.mean())
    low, high = record["intervals"]["spice"]
    assert low <= record["metrics"]["spice"] <= high and "spice" not in record["null_reasons"]
    parts = [part for table in content(world / "out")["tables"] if table["table"] == "2" for part in table["parts"]]
    (row,) = [row for part in parts if part["set"] == "mscoco" for row in part["rows"] if row["label"] == "SPICE"]
    assert row["ours"] == pytest.approx(100 * spice_I.mean()) and row["reason"] is None


def test_what_failed_once_is_tried_again(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        tasks = evaluated(world)
        assert not tasks["captioning"]["reused"] and tasks["captioning"]["metrics"]["rouge_l"] is not None
        assert tasks["captioning"]["null_reasons"]["meteor"].startswith(
            "METEOR failed: METEOR stopped early: java.lang.OutOfMemory"
        )
    assert tasks["retrieval"]["reused"]
    with monkeypatch.context() as patch:
        patch.setattr(Meteor, "score", lambda self, references, hypotheses: (0.25, np.ones((len(references), 23))))
        assert evaluated(world)["captioning"]["metrics"]["meteor"] == 0.25
    assert evaluated(world)["captioning"]["reused"]


def test_a_tokenizer_that_fails_costs_captioning_alone(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("STAND_IN", "tokens")
        tasks = evaluated(world)
    assert tasks["captioning"]["status"] == "not run" and tasks["retrieval"]["metrics"]["i2t_r10"] == 100
    assert set(tasks["captioning"]["metrics"].values()) == {None}
    said = tasks["captioning"]["null_reasons"]["cider"]
    assert said.startswith("captions cannot be scored: PTB tokenizer: ") and said.endswith(
        "java.lang.OutOfMemoryError: Java heap space"
    )
    assert evaluated(world)["captioning"]["metrics"]["cider"] is not None

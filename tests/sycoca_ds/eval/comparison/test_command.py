"""`python -m sycoca_ds.eval compare`: the table, the files, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.__main__ import main
from sycoca_ds.eval.commands import CompareCommand
from sycoca_ds.eval.comparison.command import short_names
from sycoca_ds.eval.comparison.testing import holm
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.eval.suite import FORMAT
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.trainings.eval_world import make_data, make_run

pytestmark = pytest.mark.slow
TASKS = ("retrieval", "classification", "captioning", "reconstruction")


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory) -> Path:
    """a and b of two models, c of other data."""
    folder = tmp_path_factory.mktemp("compared")
    make_run(folder / "other", seed=4)
    make_data(folder / "data", images=11)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "java_command", lambda: None)
        for name, run, data in (
            ("a", world / "run", world / "data"),
            ("b", folder / "other", world / "data"),
            ("c", world / "run", folder / "data"),
        ):
            labels = str(world / "labels.json")
            config = EvaluateConfig(
                str(run), str(data), out=str(folder / name), labels=labels, tasks=TASKS, device="cpu", caption_tokens=6, cache="off"
            )
            assert evaluate(config) == 0
    return folder


def test_the_table_and_its_files(folders, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "eval",
            "compare",
            str(folders / "a"),
            str(folders / "b"),
            str(folders / "a"),
            "--out",
            str(tmp_path),
            "--permutations",
            "2000",
        ],
    )
    assert main() == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "comparison.json").read_text())
    results = [json.loads((folders / name / "results.json").read_text()) for name in "aba"]
    names = [(row["task"], row["number"]) for row in found["rows"]]
    assert ("retrieval", "t2i_r1") in names and ("captioning", "bleu4") in names and ("reconstruction", "gap") in names
    for row in found["rows"]:
        expected = [each["tasks"][row["task"]]["metrics"][row["number"]] for each in results]
        assert row["values"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        other, copy = row["against"]
        assert other["difference"] == pytest.approx(row["values"][1] - row["values"][0])
        assert (copy["difference"], copy["p"], copy["p_holm"], copy["smallest"]) == (0, 1, 1, None)
        assert f"{row['task']}.{row['number']}" in said
    flat = [against for row in found["rows"] for against in row["against"]]
    assert [each["p_holm"] for each in flat] == holm([each["p"] for each in flat]) and found["how"]["tests"] == len(flat)
    assert {each["test"] for each in flat} == {"McNemar", "permutation"}
    l1 = next(row for row in found["rows"] if row["number"] == "own_l1")["against"][0]
    assert l1["p_holm"] < 0.05 < flat[0]["p"], "other weights rebuild otherwise"
    page = (tmp_path / "comparison.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * len(found["rows"]) and len({line.count("|") for line in lines}) == 1
    assert "could show" in lines[0] and f"corrected for all {len(flat)} tests" in page


def test_numbers_can_be_chosen(folders, capsys) -> None:
    command = CompareCommand((folders / "a", folders / "b"), ("retrieval.i2t_r5", "captioning"), ("old", "new"), permutations=50)
    assert command.run() == 0
    said = capsys.readouterr().out
    numbers = re.findall(r"(retrieval|classification|captioning|reconstruction)\.(\w+)", said)
    assert numbers[0] == ("retrieval", "i2t_r5") and {task for task, _ in numbers[1:8]} == {"captioning"}
    assert "cider_shuffled" in dict(reversed(pair) for pair in numbers[1:8]), "a control that was asked for"
    assert re.search(r"number +\S +old \S +new \S +difference", said) and "50 exchanges are too few for 8 tests" in said


def test_names_are_no_markup(folders, capsys) -> None:
    names = ("run [a]", "[/b] run")
    assert CompareCommand((folders / "a", folders / "b"), ("retrieval.i2t_r1",), names, permutations=9).run() == 0
    said = capsys.readouterr().out
    assert all(name in said for name in names)


def test_other_data_is_refused_with_a_line(folders) -> None:
    with pytest.raises(UserError, match=r"c: evaluated on .*11 images.*24 images.*other data cannot be compared") as error:
        CompareCommand((folders / "a", folders / "c")).run()
    assert "\n" not in str(error.value)


def test_results_of_another_version_are_refused(folders, tmp_path) -> None:
    shutil.copytree(folders / "a", tmp_path / "a")
    path = tmp_path / "a/results.json"
    for number, said in (
        (FORMAT - 1, f"this version reads {FORMAT}; give the command"),
        (FORMAT + 1, "written by a newer version"),
    ):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))
        with pytest.raises(UserError, match=f"a/results.json: format {number}, {said}"):
            CompareCommand((folders / "b", tmp_path / "a")).run()


def test_pictures_of_another_order_are_brought_together(folders, tmp_path) -> None:
    shutil.copytree(folders / "a", tmp_path / "a")
    for path in (tmp_path / "a/each").glob("*.npz"):
        each = dict(np.load(path))
        order = np.random.default_rng(0).permutation(len(each["image_id"]))
        np.savez(path, **{name: array[order] for name, array in each.items()})
    CompareCommand((folders / "a", tmp_path / "a"), out=tmp_path / "out", permutations=20).run()
    rows = json.loads((tmp_path / "out/comparison.json").read_text())["rows"]
    assert len(rows) > 12 and {row["against"][0]["changed"] for row in rows} == {0}
    path = tmp_path / "a/each/retrieval.npz"
    each = dict(np.load(path))
    np.savez(path, **{**each, "image_id": np.char.add(each["image_id"], "x")})
    with pytest.raises(UserError, match="retrieval is of other pictures"):
        CompareCommand((folders / "a", tmp_path / "a"), permutations=20).run()


@pytest.mark.parametrize(
    ("folders_given", "options", "message"),
    [
        (["a"], {}, "expected two folders or more, got 1"),
        (["a", "nothing"], {}, "nothing: FileNotFoundError.*expected a folder that evaluate.py --out has left"),
        (["a", "b"], {"names": ("x",)}, "--names: 1 names for 2 folders"),
        (["a", "b"], {"numbers": ("retrival.i2t_r1",)}, "no such task; did you mean retrieval"),
        (["a", "b"], {"numbers": ("retrieval.i2t_r2",)}, "retrieval has no such number; did you mean i2t_r"),
        (
            ["a", "b"],
            {"numbers": ("masking",)},
            r"no number that can be compared \(.* numbers of masking \(the task was not run",
        ),
        (["a", "b"], {"permutations": 0}, "--permutations 0"),
    ],
)
def test_what_cannot_be_meant(folders, folders_given, options, message) -> None:
    with pytest.raises(UserError, match=message):
        CompareCommand(tuple(folders / name for name in folders_given), **options).run()


def test_other_settings_are_told_and_sets_compared_by_name(folders, tmp_path, capsys) -> None:
    for side, source in (("left", "a"), ("right", "b")):
        shutil.copytree(folders / source, tmp_path / side / "flickr30k")
        records = {"flickr30k": {"status": "done", "folder": "flickr30k"}, "mscoco": {"status": "not here"}}
        (tmp_path / side / "sets.json").write_text(json.dumps({"sets": records}))
    path = tmp_path / "right/flickr30k/results.json"
    results = json.loads(path.read_text())
    results["provenance"]["precision"] = "bf16"
    path.write_text(json.dumps(results))
    assert CompareCommand((tmp_path / "left", tmp_path / "right"), ("retrieval",), permutations=20).run() == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "right, flickr30k: not only the weights differ, also precision bf16 in place of fp32" in said
    with pytest.raises(UserError, match="no set in common"):
        CompareCommand((tmp_path / "left", folders / "a")).run()


def test_names_are_what_differs() -> None:
    assert short_names((Path("/runs/a/eval"), Path("/runs/b/eval"))) == ("a", "b")
    assert short_names((Path("/runs/a/eval"), Path("/runs/a/eval"))) == ("/runs/a/eval",) * 2

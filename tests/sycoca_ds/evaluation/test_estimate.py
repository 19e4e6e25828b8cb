"""`--dry-run`: measured rates times what the sets hold, and nothing evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.evaluation import Asked
from sycoca_ds.eval.datasets.registry import PAPER, SETS, SUITES
from sycoca_ds.eval.tasks.linear_probe import FITS
from sycoca_ds.evaluation import estimate
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.estimate import MEAN_ITERATIONS, Rates, parts
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.listed import write_textures
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run

RATES = Rates(image=0.01, text=0.001, caption=0.1, width=64, iteration=1e-9)


def test_of_each_task_by_hand(tmp_path: Path) -> None:
    """Official numbers where a set is not here."""
    asked = Asked.parse(str(tmp_path), (), PAPER, None)
    found = {
        (part.name, part.task): part for name in SUITES[PAPER] for part in parts(SETS[name], asked, SETS[name].tasks, RATES, 1)
    }
    assert set(found) == {(name, task) for name in SUITES[PAPER] for task in SETS[name].tasks}
    assert all(part.official for part in found.values())
    assert found["mscoco", "retrieval"].seconds == pytest.approx(5_000 * 0.01 + 25_010 * 0.001)
    assert found["imagenet1k", "classification"].seconds == pytest.approx(50_000 * 0.01 + 80_000 * 0.001)
    captions = found["nocaps", "captioning"].seconds
    assert captions == pytest.approx(4_500 * 0.1 + estimate.CAPTIONS_SECONDS + 4_500 * estimate.CAPTION_SECONDS)
    fits = (FITS + 2) * MEAN_ITERATIONS * 75_750 * 101 * 1e-9
    assert found["food101", "linear_probe"].seconds == pytest.approx(101_000 * 0.01 + fits)
    assert found["vqa_v2", "vqa"].seconds == pytest.approx(3 * 214_354 * 0.11)
    held = {"pictures": 10, "captions": None, "classes": None, "questions": 4}
    (words,) = estimate.parts_of("winogavil", ("association",), held, 0, 0, False, RATES, 1)
    assert words.counted == "10 images, 4 questions" and words.seconds == pytest.approx(10 * 0.01 + 4 * 0.001)
    without = Rates(0.01, 0.001, None, 64, 1e-9)
    assert [part.task for part in parts(SETS["mscoco"], asked, SETS["mscoco"].tasks, without, 1)] == ["retrieval"]


def test_a_set_that_is_not_as_published_is_told_and_the_others_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As the evaluation itself goes on without it."""
    write_textures(tmp_path)
    (tmp_path / "mnist").mkdir()
    for name in ("images-idx3", "labels-idx1"):
        (tmp_path / f"mnist/t10k-{name}-ubyte").write_bytes(b"cut")
    monkeypatch.setattr(estimate, "measure", lambda *_: RATES)
    loaded = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(fusion=False)))
    options = SimpleNamespace(tasks=("linear_probe",), beams=1, precision="fp32", batch_size=4)
    resources, device = SimpleNamespace(team=SimpleNamespace(size=1)), SimpleNamespace(type="cpu")
    asked = Asked.parse(str(tmp_path), ("dtd", "mnist"), None, None)
    assert estimate.dry_run(loaded, asked, tmp_path, options, device, resources) == 0
    found = json.loads((tmp_path / "estimate.json").read_text())
    assert [part["name"] for part in found["parts"]] == ["dtd"] and set(found["no_numbers"]) == {"mnist"}
    assert f"mnist          no numbers: {found['no_numbers']['mnist']}" in capsys.readouterr().out


def test_captions_for_servers_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """By the official counts of NoCaps' test split and COCO's val2014 and test2014; answers only of a model that gives some."""
    monkeypatch.setattr(estimate, "measure", lambda *_: RATES)
    options = SimpleNamespace(tasks=("captioning",), beams=2, precision="fp32", batch_size=4)
    resources, device = SimpleNamespace(team=SimpleNamespace(size=1)), SimpleNamespace(type="cpu")
    asked = Asked.parse(str(tmp_path), (), None, None, ("nocaps", "coco_captions", "vqa_v2"))
    captions = (10_600 + 40_504 + 40_775) * 0.1
    for fusion, seconds in ((False, captions), (True, captions + 447_793 * (0.01 + 0.1 / 2))):
        loaded = SimpleNamespace(config=SimpleNamespace(model=SimpleNamespace(fusion=fusion)))
        assert estimate.dry_run(loaded, asked, tmp_path, options, device, resources) == 0
        assert json.loads((tmp_path / "estimate.json").read_text())["seconds"] == pytest.approx(seconds)
    assert "10,600 images to caption, officially" in capsys.readouterr().out


@pytest.mark.slow
def test_a_dry_run_measures_and_evaluates_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = make_run(tmp_path / "run")
    write_textures(tmp_path / "sets")
    words = {"device": "cpu", "precision": "fp32", "batch_size": 4, "caption_tokens": 4, "dry_run": True}
    out = tmp_path / "out"
    assert evaluate(EvaluateConfig(str(run), data_root=str(tmp_path / "sets"), suite="paper", out=str(out), **words)) == 0
    said, found = capsys.readouterr().out, json.loads((out / "estimate.json").read_text())
    assert [path.name for path in out.iterdir()] == ["estimate.json"]
    assert found["seconds"] == pytest.approx(sum(part["seconds"] for part in found["parts"])) and found["ranks"] == 1
    assert {part["name"] for part in found["parts"]} == set(SUITES[PAPER]) - {"vqa_v2"}, "this model answers no questions"
    assert all(value > 0 for value in found["rates"].values()) and found["rates"]["width"] == 32
    (textures,) = [part for part in found["parts"] if part["name"] == "dtd"]
    assert not textures["official"] and 0 < int(textures["counted"].split()[0]) < 100
    assert f"dry run: {found['seconds'] / 3600:.2f} hours on 1 rank (cpu, fp32, batches of 4)" in said
    assert "are counted as their pages say" in said
    with pytest.raises(UserError, match="go with --data-root, not with --data"):
        evaluate(EvaluateConfig(str(run), str(tmp_path), sets=("dtd",), out=str(out), **words))
    with pytest.raises(UserError, match="--data .*: "):
        evaluate(EvaluateConfig(str(run), str(tmp_path), out=str(out), **words))


@pytest.mark.slow
def test_a_dry_run_on_a_folder_counts_what_the_evaluation_would_see(tmp_path: Path) -> None:
    run, labels = make_run(tmp_path / "run"), make_labels(tmp_path / "labels.json", images=6)
    data, train = make_data(tmp_path / "test", images=6, captions=3), make_data(tmp_path / "train", images=10)
    words = {"device": "cpu", "precision": "fp32", "batch_size": 4, "caption_tokens": 4, "captions_per_image": 2, "dry_run": True}
    given = {"labels": str(labels), "probe_train": str(train), "probe_labels": str(make_labels(tmp_path / "more.json", images=10))}
    out = tmp_path / "out"
    assert evaluate(EvaluateConfig(str(run), str(data), out=str(out), **given, **words)) == 0
    found = json.loads((out / "estimate.json").read_text())
    assert [path.name for path in out.iterdir()] == ["estimate.json"]
    label_set = json.loads(labels.read_text())
    prompts = len(label_set["classes"]) * len(label_set["templates"])
    assert {part["task"]: part["counted"] for part in found["parts"]} == {
        "retrieval": "6 images, 12 captions",
        "classification": f"6 images, {prompts} prompts",
        "captioning": "6 images",
        "linear_probe": f"16 images, {FITS + 2} fits",
        "reconstruction": "6 images",
        "masking": "6 images",
        "alignment": "6 images",
    }
    assert {part["name"] for part in found["parts"]} == {"test"} and not any(part["official"] for part in found["parts"])
    assert all(part["seconds"] > 0 for part in found["parts"])
    rates, tasks = found["rates"], {part["task"]: part["seconds"] for part in found["parts"]}
    assert tasks["retrieval"] == pytest.approx(6 * rates["image"] + 12 * rates["text"])
    assert evaluate(EvaluateConfig(str(run), str(data), out=str(out), tasks=("retrieval",), **words)) == 0
    found = json.loads((out / "estimate.json").read_text())
    assert [part["task"] for part in found["parts"]] == ["retrieval"]
    with pytest.raises(UserError, match="none of the data set's 6 urls"):
        evaluate(EvaluateConfig(str(run), str(data), out=str(out), labels=foreign_labels(tmp_path / "foreign.json"), **words))


def foreign_labels(path: Path) -> str:
    value = json.loads(make_labels(path).read_text())
    path.write_text(json.dumps(value | {"labels": {"http://elsewhere/1.jpg": 0}}))
    return str(path)

"""evaluate.py --watch: every checkpoint that a run shows, once, whatever happens to the run or to the evaluation."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint import weights
from sycoca_ds.engine.safety.status import write_status
from sycoca_ds.eval.registry import METRICS
from sycoca_ds.evaluation import watch
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run
from tests.worlds.trainings.event_files import points

pytestmark = pytest.mark.slow


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", images=9)


def config(tmp_path: Path, **more) -> EvaluateConfig:
    given = {"tasks": ("retrieval", "reconstruction"), "device": "cpu", "precision": "fp32", "gallery": 2, "watch_seconds": 0.01}
    return EvaluateConfig(watch=str(tmp_path / "run"), data=str(tmp_path / "data"), out=str(tmp_path / "out"), **{**given, **more})


def state(run: Path, status: str, step: int) -> None:
    write_status(run, {"status": status, "step": step, "steps": 30, "checkpoint": step, "why": ""})


def meanwhile(monkeypatch: pytest.MonkeyPatch, *happenings: Callable[[], object]) -> list[Callable]:
    """What happens while the watch waits, one after another; nothing may be left."""
    left = list(happenings)
    monkeypatch.setattr(watch, "sleep", lambda seconds: left.pop(0)())
    return left


def evaluated(tmp_path: Path) -> dict[int, dict]:
    found = {path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "out").glob("step_*/results.json")}
    return {results["checkpoint"]["step"]: results for _, results in sorted(found.items())}


def curve(tmp_path: Path) -> list[dict[str, str]]:
    with open(tmp_path / "out/curve.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_watched_from_before_its_begin_to_its_end(tmp_path, data, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    left = meanwhile(
        monkeypatch,
        lambda: None,  # no run yet
        lambda: (make_run(run, seed=1, step=5), make_run(run, seed=2, step=10), state(run, "running", 12)),
        lambda: state(run, "preempted", 14),
        lambda: (make_run(run, seed=3, step=20), shutil.rmtree(run / "checkpoints/step_00000005"), state(run, "completed", 20)),
    )
    assert evaluate(config(tmp_path)) == 0 and left == []
    results = evaluated(tmp_path)
    assert list(results) == [5, 10, 20]
    make_run(run, seed=4, step=25)
    watched = capsys.readouterr().out
    assert evaluate(config(tmp_path, dry_run=True)) == 0 and list(evaluated(tmp_path)) == [5, 10, 20]
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()[:4]] == [
        *(str(run), "step 10: evaluated", "step 20: evaluated", "step 25: would be evaluated"),
    ]
    shutil.rmtree(run / "checkpoints/step_00000025")
    rows = curve(tmp_path)
    for step, found in results.items():
        own = [row for row in rows if row["step"] == str(step)]
        names = [(row["task"], row["metric"]) for row in own]
        assert len(set(names)) == len(names) and ("retrieval", "i2t_r1") in names and ("retrieval", "i2t_r1_low") not in names
        for row in own:
            value = found["tasks"][row["task"]]["metrics"][row["metric"]]
            assert (row["value"] == "" and row["reason"]) if value is None else float(row["value"]) == value
        assert {name for task in ("retrieval", "reconstruction") for name in METRICS[task]} >= {name for _, name in names}
    assert [step for step, _ in points(tmp_path / "out", "eval/reconstruction/own_l1")] == [5, 10, 20]
    drawn = dict(points(tmp_path / "out", "eval/reconstruction/own_l1"))
    assert drawn[10] == pytest.approx(results[10]["tasks"]["reconstruction"]["metrics"]["own_l1"], rel=1e-6)
    assert min(Image.open(tmp_path / "out/curve.png").size) > 200
    assert watched.count("watch: waiting for a checkpoint") == 3
    assert "which has not begun" in watched and "preempted at step 14 of 30" in watched
    assert "the run is completed, 3 of its checkpoints are evaluated" in watched
    loaded = []
    monkeypatch.setattr(weights, "load_for_inference", lambda *arguments, **more: loaded.append(arguments))
    assert evaluate(config(tmp_path, batch_size=3)) == 0 and loaded == [], "all is finished"


def test_checkpoints_that_go_or_are_damaged_are_left_out(tmp_path, data, monkeypatch, capsys) -> None:
    """One is deleted between the list and its opening, one while it is read; the weights of another are damaged."""
    run = tmp_path / "run"
    for step in (5, 10, 15, 20):
        make_run(run, seed=step, step=step)
    state(run, "completed", 20)
    with open(run / "checkpoints/step_00000015/mp_rank_00_model_states.pt", "r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    place, load, read = watch.Watch.place, weights.load_for_inference, weights.master_files.read

    def vanish(self, folder):
        if folder.name.endswith("05") and folder.exists() and not (tmp_path / "out").exists():
            shutil.rmtree(folder)
        return place(self, folder)

    def vanish_while_read(path, *arguments, **more):
        if "step_00000010" in str(path):
            shutil.rmtree(run / "checkpoints/step_00000010")
        return read(path, *arguments, **more)

    monkeypatch.setattr(watch.Watch, "place", vanish)
    monkeypatch.setattr(weights.master_files, "read", vanish_while_read)
    assert load and evaluate(config(tmp_path)) == 0
    assert list(evaluated(tmp_path)) == [20]
    said = capsys.readouterr().out
    for step, why in ((5, "deleted or replaced"), (10, "deleted or replaced"), (15, "is damaged")):
        assert any(f"step {step} is left out" in line and why in line for line in said.splitlines()), said
    assert {row["step"] for row in curve(tmp_path)} == {"20"}


def test_what_is_wrong_with_anything_else_ends_the_watch(tmp_path, data) -> None:
    make_run(tmp_path / "run", step=5)
    shutil.rmtree(tmp_path / "data/manifest")
    with pytest.raises(UserError, match="--data"):
        evaluate(config(tmp_path))
    assert evaluated(tmp_path) == {}


def test_other_weights_or_options_are_evaluated_again(tmp_path, data, monkeypatch) -> None:
    run = tmp_path / "run"
    make_run(run, seed=1, step=5)
    state(run, "completed", 5)
    assert evaluate(config(tmp_path)) == 0
    first = evaluated(tmp_path)[5]["tasks"]["reconstruction"]["metrics"]
    assert evaluate(config(tmp_path, tasks=("reconstruction",), seed=1)) == 0
    assert list(evaluated(tmp_path)[5]["tasks"]) == ["reconstruction"]
    shutil.rmtree(run)
    make_run(run, seed=2, step=5)  # a run that went back
    state(run, "completed", 5)
    assert evaluate(config(tmp_path)) == 0
    assert evaluated(tmp_path)[5]["tasks"]["reconstruction"]["metrics"]["own_l1"] != first["own_l1"]
    assert len(points(tmp_path / "out", "eval/reconstruction/own_l1")) == 1, "one point a step"


def test_other_labels_at_the_same_path_are_evaluated_again(tmp_path, data) -> None:
    run, labels = make_run(tmp_path / "run", seed=1, step=5), make_labels(tmp_path / "labels.json", images=9)
    state(run, "completed", 5)
    asked = config(tmp_path, tasks=("classification",), labels=str(labels))
    assert evaluate(asked) == 0
    content = json.loads(labels.read_text())
    first, classes = evaluated(tmp_path)[5]["data"]["labels_digest"], len(content["classes"])
    assert evaluate(asked) == 0 and evaluated(tmp_path)[5]["data"]["labels_digest"] == first
    content["labels"] = {url: (label + 1) % classes for url, label in content["labels"].items()}
    labels.write_text(json.dumps(content))
    assert evaluate(asked) == 0
    assert evaluated(tmp_path)[5]["data"]["labels_digest"] != first, "numbers of the old labels were kept"


def test_every_input_has_its_stamp(tmp_path) -> None:
    """Another content of any file that an option names is another stamp of that option alone."""
    files = {
        "data": "data/manifest/manifest.json",
        "data_root": "root/coco/annotations/captions_val2017.json",
        "labels": "labels.json",
        "regions": "regions/Annotations/1.xml",
        "compositions": "aro/visual_genome_attribution.json",
        "questions": "annotations.json",
        "answers": "answers.json",
        "probe_train": "train/manifest/manifest.json",
        "probe_labels": "probe.json",
        "prompts": "prompts.json",
        "beside": "beside.csv",
    }
    for file in (*files.values(), "questions.json", "pictures/1.jpg"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("a")
    given = {name: str(tmp_path / file.split("/")[0]) for name, file in files.items()}
    given["questions"] = ",".join(str(tmp_path / name) for name in ("questions.json", "annotations.json", "pictures"))
    given |= {"compositions": (f"aro={given['compositions']}",), "answers": (given["answers"],)}
    given["beside"] = (f"{given['beside']},some row",)
    asked = EvaluateConfig(out="x", **given)
    before = watch.stamps_of(asked)
    assert before == watch.stamps_of(asked) and all(before.values()) and set(before) == set(files)
    for name, file in files.items():
        (tmp_path / file).write_text("ab")
        after = watch.stamps_of(asked)
        assert [other for other in files if after[other] != before[other]] == [name]
        before = after
    (tmp_path / "root/coco/val2017").mkdir()
    assert watch.stamps_of(asked)["data_root"] != before["data_root"]


KILLED = """
import os, signal, sys
sys.path[0] = {repository!r}
from sycoca_ds.eval.runner.bench import Bench
import sycoca_ds.evaluate as entry
left, call = [{after}], Bench.call
def counted(self, task, *arguments, **inputs):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(self, task, *arguments, **inputs)
Bench.call = counted
sys.exit(entry.main())
"""


def test_killed_it_goes_on(tmp_path, data) -> None:
    run = tmp_path / "run"
    for step in (5, 10):
        make_run(run, seed=step, step=step)
    state(run, "completed", 10)
    words = ["--watch", str(run), "--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu", "--precision", "fp32"]
    words += ["--tasks", "retrieval", "reconstruction", "--gallery", "2", "--batch-size", "3"]
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(repository=str(REPOSITORY), after=22))
    done = subprocess.run([sys.executable, str(script), *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(evaluated(tmp_path)) == [5]
    before = (tmp_path / "out/step_00000005/results.json").read_bytes()
    assert evaluate(config(tmp_path, batch_size=3)) == 0
    assert list(evaluated(tmp_path)) == [5, 10] and {row["step"] for row in curve(tmp_path)} == {"5", "10"}
    assert (tmp_path / "out/step_00000005/results.json").read_bytes() == before, "what is finished is not touched"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"checkpoint": "run"}, "expected --checkpoint RUN, or --watch RUN"),
        ({"watch": None}, "expected --checkpoint RUN, or --watch RUN"),
        ({"require": ("retrieval.mTR>=1",)}, "--require goes with --checkpoint"),
        ({"watch_seconds": 0.0}, "--watch-seconds 0"),
    ],
)
def test_what_cannot_be_meant(tmp_path, more, message) -> None:
    given = {"watch": str(tmp_path), "data": str(tmp_path), "out": str(tmp_path / "out"), "device": "cpu", **more}
    with pytest.raises(UserError, match=message):
        evaluate(EvaluateConfig(**given))

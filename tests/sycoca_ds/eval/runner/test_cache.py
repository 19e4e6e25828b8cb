"""What is kept on disk: found again as it was, missed when anything it depends on is another, and never believed when damaged."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from sycoca_ds.eval import suite
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.runner import cache as caching
from sycoca_ds.eval.runner.bench import Bench, Resources
from sycoca_ds.eval.runner.cache import Cache, packed, unpacked
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.evaluation.command import evaluate, evaluate_checkpoint
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import make_data, make_run

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
TASKS = ("retrieval", "captioning", "reconstruction", "masking")


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch):
    monkeypatch.setattr(captioning, "java_command", lambda: None)


@pytest.fixture
def asked(monkeypatch):
    """Names of the model's tasks, one for each batch it is asked."""
    names, call = [], Bench.call

    def counted(self, task, *arguments, **inputs):
        names.append(task)
        return call(self, task, *arguments, **inputs)

    monkeypatch.setattr(Bench, "call", counted)
    monkeypatch.setattr(suite, "choose_threads", lambda step: 1)  # which asks, too
    return names


def run(checkpoint, data, out, cache, tasks=("retrieval",), **options):
    resources = Resources(cache=Cache(cache))
    options = SuiteOptions(tasks=tasks, batch_size=8, gallery=2, caption_tokens=6, **options)
    found = evaluate_checkpoint(checkpoint, data, None, out, options, CPU, resources=resources)[0]["tasks"]
    return {task: record["metrics"] for task, record in found.items()}


def test_the_same_question_is_not_asked_twice(world, tmp_path, asked):
    """In another folder, with another batch size, from another path; with the same numbers as without a cache."""
    plain = run(world / "run", world / "data", tmp_path / "plain", None, TASKS)
    batches = sorted(asked)
    asked.clear()
    first = run(world / "run", world / "data", tmp_path / "first", tmp_path / "cache", TASKS)
    assert sorted(asked) == batches and {"image_features", "text_features", "generate", "reconstruct"} < set(batches)
    asked.clear()
    shutil.copytree(world / "run", tmp_path / "moved")
    again = run(tmp_path / "moved", world / "data", tmp_path / "again", tmp_path / "cache", TASKS)
    assert asked == [] and plain == first == again


def test_what_is_another_question_misses(world, tmp_path, asked):
    place = shutil.copytree(world / "run", tmp_path / "run")
    data = make_data(tmp_path / "data", images=9)

    def batches(**options):
        asked.clear()
        numbers = run(place, data, tmp_path / f"out{len(list(tmp_path.iterdir()))}", tmp_path / "cache", **options)
        return len(asked), numbers["retrieval"]

    count, first = batches()
    assert count == 4 and batches() == (0, first)
    assert batches(precision="bf16")[0] == 4
    shutil.rmtree(place)
    make_run(place, seed=4)
    count, changed = batches()
    assert count == 4 and changed != first, "other weights at the same path"
    data.rename(tmp_path / "before")
    make_data(data, images=10)
    assert batches()[0] == 4, "other data at the same path"
    shutil.rmtree(place)
    shutil.copytree(world / "run", place)
    shutil.rmtree(data)
    (tmp_path / "before").rename(data)
    assert batches() == (0, first), "all as it was at first"


@pytest.mark.parametrize("how", ["a bit", "cut", "empty", "other arrays"])
def test_a_damaged_part_is_told_and_computed_again(world, tmp_path, asked, capsys, how):
    first = run(world / "run", world / "data", tmp_path / "first", tmp_path / "cache")
    parts = sorted((tmp_path / "cache").glob("*/*.part"))
    assert len(parts) == 2
    for part in parts:
        data = bytearray(part.read_bytes())
        if how == "a bit":
            data[len(data) // 2] ^= 1
        elif how == "other arrays":
            data = packed({"something": np.zeros(3)})
        part.write_bytes(b"" if how == "empty" else data[:-7] if how == "cut" else bytes(data))
    asked.clear(), capsys.readouterr()
    assert run(world / "run", world / "data", tmp_path / "again", tmp_path / "cache") == first
    assert sorted(asked) == ["image_features"] * 3 + ["text_features"] * 6
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cache: ")]
    assert len(told) == 2 and all(f"{part} is damaged (" in "".join(told) for part in parts)
    asked.clear()
    run(world / "run", world / "data", tmp_path / "third", tmp_path / "cache")
    assert asked == []


def test_bytes_come_back_as_they_were():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(["", "Straße\n"])}
    found = unpacked(packed(arrays))
    assert all((found[name] == arrays[name]).all() and found[name].dtype == arrays[name].dtype for name in arrays)


KILLED = """
import os, signal, sys
sys.path[0] = {repository!r}
from sycoca_ds.eval.runner import cache
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.scorers import captions
import sycoca_ds.evaluate as entry
cache.SECONDS, captions.java_command = 0.0, lambda: None
left, call = [{after}], Bench.call
def counted(self, task, *arguments, **inputs):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return call(self, task, *arguments, **inputs)
Bench.call = counted
sys.exit(entry.main())
"""


def test_a_killed_evaluation_goes_on_from_the_batches_that_are_finished(world, tmp_path, asked, monkeypatch):
    """kill -9 after 4, then 18 further batches, until it ends by itself: as many batches in all as without it."""
    monkeypatch.setattr(caching, "SECONDS", 0.0)
    words = ["--checkpoint", str(world / "run"), "--data", str(world / "data"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    words += ["--batch-size", "3", "--caption-tokens", "6", "--gallery", "2", "--tasks", *TASKS, "--precision", "fp32"]
    starts = 0
    for after in (4, 18, 200):
        script = tmp_path / "killed.py"
        script.write_text(KILLED.format(repository=str(REPOSITORY), after=after))
        done = subprocess.run([sys.executable, str(script), *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        starts += 1
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "out/results.json").exists()
    assert starts == 3 and done.returncode == 0
    asked.clear()
    options = {"tasks": TASKS, "batch_size": 3, "caption_tokens": 6, "gallery": 2, "device": "cpu", "precision": "fp32"}
    config = EvaluateConfig(str(world / "run"), str(world / "data"), out=str(tmp_path / "plain"), cache="off", **options)
    assert evaluate(config) == 0
    resumed, plain = (json.loads((tmp_path / name / "results.json").read_text())["tasks"] for name in ("out", "plain"))
    assert {task: record["metrics"] for task, record in resumed.items()} == {t: record["metrics"] for t, record in plain.items()}
    kept = (tmp_path / "out/samples/captions.json").read_bytes()
    assert kept == (tmp_path / "plain/samples/captions.json").read_bytes()
    assert not (tmp_path / "plain/cache").exists() and not list(tmp_path.glob("out/cache/*/.*.tmp*"))


def test_the_folder_is_bounded(tmp_path, capsys):
    """What was not used for longest goes; what this evaluation uses stays, and is told."""
    rows, arrays = np.arange(1000), {"x": np.zeros((1000, 25), np.float32)}
    for name in ("old", "older", "present"):
        entry = Cache(tmp_path).entry({"what": name})
        entry.add(rows, arrays)
        entry.flush()
    places = {json.loads(path.read_text())["what"]: path for path in tmp_path.glob("*/key.json")}
    for name, when in (("older", 100), ("old", 200), ("present", 50)):
        os.utime(places[name], (when, when))
    assert Cache(tmp_path, 10**6).trim() > 300_000 and len(list(tmp_path.iterdir())) == 3
    cache = Cache(tmp_path, 250_000)
    cache.entry({"what": "present"})
    assert cache.trim() < 250_000 and {path.parent.name for path in tmp_path.glob("*/key.json")} == {
        places["old"].parent.name,
        places["present"].parent.name,
    }
    assert "1 entries not used for longest" in capsys.readouterr().out
    cache.most_bytes = 1000
    assert cache.trim() > 1000 and "all of it of this evaluation" in capsys.readouterr().out
    assert len(cache.entry({"what": "present"}).load()) == 1


def test_another_evaluation_that_makes_room_costs_what_it_deletes_alone(tmp_path):
    rows, arrays = np.arange(1000), {"x": np.zeros((1000, 25), np.float32)}
    (tmp_path / "readme.txt").write_text("of the user")
    entry = Cache(tmp_path).entry({"what": "being filled"})
    assert Cache(tmp_path, 0).trim() == 0 and not list(tmp_path.glob("*/"))
    entry.add(rows, arrays)
    entry.flush()
    assert Cache(tmp_path).trim() > 100_000, "it is known again, and counts"
    assert len(Cache(tmp_path).entry({"what": "being filled"}).load()) == 1


def test_a_folder_that_cannot_be_written_costs_the_cache_not_the_evaluation(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run(world / "run", world / "data", tmp_path / "out", tmp_path / "file")["retrieval"]["i2t_r10"] >= 0
    assert "cannot be written" in capsys.readouterr().out


def test_a_sample_that_had_no_answer_is_asked_again(world, tmp_path):
    """A picture that could not be read may be mended by the next start."""
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.eval.collection import Collection

    loaded = load_for_inference(world / "run")
    bench = Bench(loaded.model, loaded.config, loaded.tokenizer, Collection(world / "data", 48), CPU)
    bench = dataclasses.replace(bench, resources=Resources(cache=Cache(tmp_path)), weights="w")

    def answers(broken):
        def work(bench, numbers):
            asked.extend(numbers)
            return {"x": np.array(numbers), "problem": np.array([broken.get(number, "") for number in numbers], dtype=str)}

        asked = []
        found = bench.map(work, 9, "count", "numbers", {"what": "numbers"})
        assert found["x"].tolist() == list(range(9))
        return asked, found["problem"].tolist()

    assert answers({4: "gone"}) == (list(range(9)), ["", "", "", "", "gone", "", "", "", ""])
    assert answers({}) == ([4], [""] * 9)
    assert answers({}) == ([], [""] * 9)

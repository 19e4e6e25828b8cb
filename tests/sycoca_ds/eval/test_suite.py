"""The whole evaluation on a real small data set folder and a real (untrained) checkpoint: numbers, reuse, errors."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval import suite
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.labels import load_labels
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.registry import METRICS, TASKS
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.eval.suite import check_options
from sycoca_ds.eval.tasks.captioning import DOMAIN_NUMBERS
from sycoca_ds.evaluation.command import evaluate, evaluate_checkpoint
from sycoca_ds.evaluation.options import EvaluateConfig, choose_device, choose_precision
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
ALL = tuple(task for task in TASKS if task != "association")
"""Those that any data is asked for: one is WinoGAViL's alone."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only lose time in thread pools, the more the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch):
    """METEOR costs seconds of JVM start; tests/sycoca_ds/eval/test_captioning.py holds it against the package."""
    monkeypatch.setattr(captioning, "java_command", lambda: None)


def run(world, out, **options):
    labels = world / "labels.json"
    return evaluate_checkpoint(world / "run", world / "data", labels, out, SuiteOptions(gallery=4, **options), CPU)[0]


def test_every_number_is_there_or_has_a_reason(done, world):
    status, results = done
    assert status == 1  # CIDEr 9 is out of reach of an untrained model
    assert [(r["requirement"], r["passed"]) for r in results["requirements"]] == [
        ("retrieval.t2i_r10 >= 0", True),
        ("captioning.cider >= 9", False),
    ]
    assert SuiteOptions().tasks == EvaluateConfig("", out="").tasks == ALL
    for task, names in ((task, METRICS[task]) for task in ALL):
        record = results["tasks"][task]
        assert tuple(record["metrics"]) == names
        assert set(record["null_reasons"]) == {name for name, value in record["metrics"].items() if value is None}
    reasons = results["tasks"]["captioning"]["null_reasons"]
    assert {name for name in reasons if "domain" not in name} == {"meteor", "spice"}
    assert {reasons[name] for name in DOMAIN_NUMBERS} == {"the pictures of this data are in no domains, as NoCaps' are"}
    assert "domain" not in (world / "out" / "report.html").read_text(), "what only NoCaps has is not missed elsewhere"
    assert results["data"] | {"folder": ""} == {
        "folder": "",
        "manifest_digest": Collection(results["data"]["folder"], 48).digest,
        "images": 24,
        "captions": 48,
        "labels": results["data"]["labels"],
        "labels_digest": load_labels(results["data"]["labels"]).digest,
        "regions": None,
        "regions_digest": None,
        "segments_digest": None,
        "compositions": [],
        "questions": None,
        "images_in_training": None,
        "images_in_training_reason": "the checkpoint does not name its training data",
    }
    assert results["checkpoint"]["step"] == 7 and results["checkpoint"]["samples"] == 7 * 256
    assert results["provenance"]["device"] == "cpu" and results["provenance"]["versions"]["torch"] == torch.__version__


def test_numbers_equal_direct_calls_of_the_model(done, world):
    """Retrieval and reconstruction again, one image at a time, with plain code."""
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.model.pixels import normalise

    loaded, data = load_for_inference(world / "run"), Collection(world / "data", 48)
    results = done[1]["tasks"]

    def text(caption):
        return torch.as_tensor(loaded.tokenizer.encode([caption], 40))

    with torch.inference_mode():
        image = [normalise(data.image(i)[None]) for i in range(24)]
        image_IE = torch.cat([loaded.model("image_features", image_BCHW=x) for x in image])
        text_TE = torch.cat([loaded.model("text_features", text_BL=text(caption)) for caption in data.captions])
        own = [
            loaded.model("reconstruct", image_BCHW=image[i], text_BL=text(data.captions_of_image[i][0]))["l1_B"].item()
            for i in range(24)
        ]
    similarity = (image_IE @ text_TE.T).numpy()
    first = [data.image_of_text_T[t] for t in np.argmax(similarity, axis=1)]
    assert results["retrieval"]["metrics"]["i2t_r1"] == pytest.approx(100 * np.mean(np.array(first) == np.arange(24)))
    assert results["reconstruction"]["metrics"]["own_l1"] == pytest.approx(np.mean(own), rel=1e-4)
    written = json.loads((world / "out" / "samples" / "captions.json").read_text())
    assert [row["image_id"] for row in written] == [picture.image_id for picture in data.pictures]
    with torch.inference_mode():
        ids = loaded.model("generate", image_BCHW=image[5], steps=30)
    assert written[5]["caption"] == loaded.tokenizer.decode(ids[0].tolist())


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batch_size_changes_nothing(done, world, tmp_path, batch_size):
    results = run(world, tmp_path, batch_size=batch_size, tasks=("retrieval", "classification", "reconstruction"))
    for task, record in results["tasks"].items():
        expected = done[1]["tasks"][task]["metrics"]
        there = [name for name, value in expected.items() if value is not None]
        assert len(there) > 3 and {name for name, value in record["metrics"].items() if value is not None} == set(there)
        assert [record["metrics"][name] for name in there] == pytest.approx([expected[name] for name in there], rel=1e-4, abs=1e-3)


def test_finished_tasks_are_reused_until_something_changes(world, tmp_path, monkeypatch):
    tasks = ("retrieval", "classification")
    options = SuiteOptions(tasks=tasks, gallery=4)
    first = run(world, tmp_path, tasks=tasks)
    again = run(world, tmp_path, tasks=tasks, batch_size=5)
    assert [first["tasks"][t]["reused"] for t in tasks] == [False, False]
    assert [again["tasks"][t]["reused"] for t in tasks] == [True, True]
    assert [again["tasks"][t]["metrics"] for t in tasks] == [first["tasks"][t]["metrics"] for t in tasks]
    other = make_run(tmp_path / "other", seed=4)
    moved = tmp_path / "moved"
    shutil.copytree(world / "run", moved)
    same = evaluate_checkpoint(moved, world / "data", world / "labels.json", tmp_path, options, CPU)[0]
    assert [same["tasks"][t]["reused"] for t in tasks] == [True, True]  # the weights count, not the path
    shutil.rmtree(moved)
    shutil.copytree(other, moved)
    new = evaluate_checkpoint(moved, world / "data", world / "labels.json", tmp_path, options, CPU)[0]
    assert [new["tasks"][t]["reused"] for t in tasks] == [False, False]
    labels = json.loads((world / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({**labels, "templates": ["a {c}"]}))
    new = evaluate_checkpoint(moved, world / "data", tmp_path / "labels.json", tmp_path, SuiteOptions(tasks=tasks, gallery=4), CPU)[
        0
    ]
    assert [new["tasks"][t]["reused"] for t in tasks] == [True, False]
    (tmp_path / "tasks" / "retrieval.json").write_text("{")
    new = evaluate_checkpoint(moved, world / "data", tmp_path / "labels.json", tmp_path, SuiteOptions(tasks=tasks, gallery=4), CPU)[
        0
    ]
    assert [new["tasks"][t]["reused"] for t in tasks] == [False, True]


def test_the_moving_average_is_evaluated_in_place_of_the_weights(world, tmp_path, capsys):
    """Its numbers are those of a run whose weights it is, and no result of one is taken for one of the other."""
    averaged, out = make_run(tmp_path / "averaged", average_of=4), tmp_path / "out"

    def evaluated(checkpoint, ema):
        words = {"device": "cpu", "precision": "fp32", "tasks": ("retrieval",), "gallery": 2, "ema": ema}
        assert evaluate(EvaluateConfig(str(checkpoint), str(world / "data"), out=str(out), **words)) == 0
        results = json.loads((out / "results.json").read_text())
        record = results["tasks"]["retrieval"]
        said = [text in capsys.readouterr().out for text in ("at step 7, average of its weights",)]
        said.append("decay of the average" in (out / "report.html").read_text())
        return results["checkpoint"]["ema_decay"], record["metrics"], record["reused"], said

    found = [evaluated(averaged, ema) for ema in (True, False, True, True)]
    assert [decay for decay, _, _, _ in found] == [0.99, None, 0.99, 0.99]
    assert [reused for _, _, reused, _ in found] == [False, False, False, True]
    assert [said for _, _, _, said in found] == [[ema, ema] for ema in (True, False, True, True)]
    assert evaluated(make_run(tmp_path / "other", seed=4), False)[1] == found[0][1] != found[1][1]
    assert evaluated(world / "run", False)[1] == found[1][1]


def test_captions_by_beam_search_are_another_result(done, world, tmp_path):
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.model.generation import Decoding
    from sycoca_ds.model.pixels import normalise

    def captioned(**options):
        record = run(world, tmp_path, tasks=("captioning",), **options)["tasks"]["captioning"]
        return record, [row["caption"] for row in json.loads((tmp_path / "samples" / "captions.json").read_text())]

    beamed, captions = captioned(beams=3)
    assert beamed["details"]["decoding"] == "beam search, 3 beams" and not beamed["reused"]
    loaded, data = load_for_inference(world / "run"), Collection(world / "data", 48)
    for number in (5, 20):
        with torch.inference_mode():
            decoding = Decoding(beams=3, length_penalty=1.0)
            ids = loaded.model("generate", image_BCHW=normalise(data.image(number)[None]), steps=30, decoding=decoding)
        assert captions[number] == loaded.tokenizer.decode(ids[0].tolist()).strip()
    assert captioned(beams=3, batch_size=5)[0]["reused"]
    greedy, others = captioned()
    assert greedy["details"]["decoding"] == "greedy" and not greedy["reused"] and others != captions
    assert greedy["metrics"] == done[1]["tasks"]["captioning"]["metrics"]
    assert not captioned(beams=2)[0]["reused"]


def test_a_crash_keeps_the_finished_tasks(world, tmp_path, monkeypatch):
    def broken(bench):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setitem(suite.TASKS, "classification", dataclasses.replace(suite.TASKS["classification"], run=broken))
        with pytest.raises(RuntimeError, match="power cut"):
            run(world, tmp_path, tasks=("retrieval", "classification"))
    assert not (tmp_path / "results.json").exists()
    results = run(world, tmp_path, tasks=("retrieval", "classification"))
    assert [record["reused"] for record in results["tasks"].values()] == [True, False]


def test_what_the_model_lacks_is_null_with_the_reason(world, tmp_path):
    make_run(tmp_path / "clip", dataclasses.replace(SMALL, family="clip"))
    out = tmp_path / "out"
    status = evaluate(EvaluateConfig(str(tmp_path / "clip"), str(world / "data"), out=str(out), device="cpu", gallery=2))
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert status == 0
    assert [tasks[t]["status"] for t in ALL] == ["done", *["not run"] * 3, "done", "done", *["not run"] * 3]
    assert tasks["classification"]["null_reasons"]["top1"] == "no --labels FILE was given"
    assert tasks["linear_probe"]["null_reasons"]["top1"] == "no --probe-train FOLDER was given"
    assert "'clip' model has no text decoder" in tasks["captioning"]["null_reasons"]["cider"]
    assert "no image decoder" in tasks["reconstruction"]["null_reasons"]["gap"]
    page = (out / "report.html").read_text()
    assert "<title>CLIP report: clip</title>" in page and "<h1>CLIP: what the checkpoint can do</h1>" in page
    assert ">required</th>" not in page and 'class="req"' not in page, "a column where nothing is required"
    assert ">chance</th>" in page
    assert "Not run: no --labels FILE was given" in page and "No captions: the task was not run" in page


def test_images_seen_in_training_are_counted(world, tmp_path):
    data = Collection(world / "data", 48)
    make_data(tmp_path / "train", images=9)
    make_data(tmp_path / "more", images=12)
    for folders, shared in ((["train"], 9), (["more", "train"], 12)):
        assert suite.shared_images(data, [str(tmp_path / folder) for folder in folders]) == {"images_in_training": shared}
    missing = suite.shared_images(data, [str(tmp_path / "train"), str(tmp_path / "gone")])
    assert missing["images_in_training"] is None and "not here" in missing["images_in_training_reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SuiteOptions(tasks=("retrival",)), "--tasks retrival: no such task; there are retrieval"),
        (SuiteOptions(tasks=("retrieval", "retrieval")), "name each task once"),
        (SuiteOptions(tasks=()), "at least one"),
        (SuiteOptions(batch_size=0), "--batch-size 0: expected at least 1"),
        (SuiteOptions(beams=0), "--beams 0: expected at least 1"),
        (SuiteOptions(beams=101), "--beams 101: expected at most 100"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError) as error:
        check_options(options)
    assert message in str(error.value)


def test_the_faster_thread_count_is_kept(one_thread):
    def steps(slow):
        return lambda: time.sleep(0.02 if torch.get_num_threads() == slow else 0.0)

    try:
        for slow, kept in ((1, 2), (2, 1)):
            torch.set_num_threads(2)
            assert suite.choose_threads(steps(slow)) == kept == torch.get_num_threads()
    finally:
        torch.set_num_threads(1)


def test_device_and_precision():
    assert choose_precision("auto", CPU) == "fp32" and choose_precision("bf16", CPU) == "bf16"
    with pytest.raises(UserError, match="--precision fp64"):
        choose_precision("fp64", CPU)
    with pytest.raises(UserError, match="--device quantum"):
        choose_device("quantum")
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(UserError, match="offers 0 CUDA devices"):
            choose_device("cuda")


@pytest.mark.parametrize("launch", [["sycoca_ds/evaluate.py"], pytest.param(["-m", "sycoca_ds.evaluate"], marks=pytest.mark.full)])
def test_launched_by_path_and_as_a_module_errors_are_one_line(tmp_path, launch):
    command = [
        sys.executable,
        *launch,
        "--checkpoint",
        str(tmp_path / "none"),
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "o"),
    ]
    ended = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""}
    )
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2 and len(lines) == 1, ended.stderr
    assert "no finished checkpoint in" in lines[0]

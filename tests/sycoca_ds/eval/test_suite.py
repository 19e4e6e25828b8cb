"""The whole evaluation on a real small data set folder and a real (untrained) checkpoint: numbers, reuse, report,
errors."""

import base64
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.eval import captioning, suite
from sycoca_ds.eval.charts import read_metrics, smooth
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.report import funnels, run_folder
from sycoca_ds.eval.suite import SuiteOptions, check_options, evaluate_checkpoint
from sycoca_ds.eval.tasks import METRICS
from sycoca_ds.eval.wording import show
from sycoca_ds.evaluate import EvaluateConfig, choose_device, choose_precision, evaluate
from tests.worlds.eval_world import SMALL, make_data, make_labels, make_run

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
REQUIRE = ("retrieval.t2i_r10>=0", "captioning.cider>=9")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small only lose time in thread pools, the more the busier the machine is."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_data(folder / "data", images=24, captions=2)
    make_labels(folder / "labels.json")
    make_run(folder / "run")
    return folder


@pytest.fixture(autouse=True)
def no_meteor(monkeypatch):
    """METEOR costs seconds of JVM start; tests/sycoca_ds/eval/test_captioning.py holds it against the package."""
    monkeypatch.setattr(captioning, "java_command", lambda: None)


@pytest.fixture(scope="module")
def done(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "java_command", lambda: None)
        status = evaluate(
            EvaluateConfig(
                str(world / "run"),
                str(world / "data"),
                str(world / "out"),
                str(world / "labels.json"),
                require=REQUIRE,
                device="cpu",
                precision="fp32",
                gallery=4,
            )
        )
    return status, json.loads((world / "out" / "results.json").read_text())


def run(world, out, **options):
    labels = world / "labels.json"
    return evaluate_checkpoint(world / "run", world / "data", labels, out, SuiteOptions(gallery=4, **options), CPU)[0]


def test_every_number_is_there_or_has_a_reason(done):
    status, results = done
    assert status == 1  # CIDEr 9 is out of reach of an untrained model
    assert [(r["requirement"], r["passed"]) for r in results["requirements"]] == [
        ("retrieval.t2i_r10 >= 0", True),
        ("captioning.cider >= 9", False),
    ]
    for task, names in METRICS.items():
        record = results["tasks"][task]
        assert tuple(record["metrics"]) == names
        assert set(record["null_reasons"]) == {name for name, value in record["metrics"].items() if value is None}
    assert set(results["tasks"]["captioning"]["null_reasons"]) == {"meteor", "spice"}
    assert results["data"] | {"folder": ""} == {
        "folder": "",
        "manifest_digest": Collection(results["data"]["folder"], 48).digest,
        "images": 24,
        "captions": 48,
        "labels": results["data"]["labels"],
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
        assert record["metrics"] == pytest.approx(done[1]["tasks"][task]["metrics"], rel=1e-4, abs=1e-3)


def test_finished_tasks_are_reused_until_something_changes(world, tmp_path, monkeypatch):
    tasks = ("retrieval", "classification")
    first = run(world, tmp_path, tasks=tasks)
    again = run(world, tmp_path, tasks=tasks, batch_size=5)
    assert [first["tasks"][t]["reused"] for t in tasks] == [False, False]
    assert [again["tasks"][t]["reused"] for t in tasks] == [True, True]
    assert [again["tasks"][t]["metrics"] for t in tasks] == [first["tasks"][t]["metrics"] for t in tasks]
    other = make_run(tmp_path / "other", seed=4)
    moved = tmp_path / "moved"
    shutil.copytree(world / "run", moved)
    same = evaluate_checkpoint(moved, world / "data", world / "labels.json", tmp_path, SuiteOptions(tasks, gallery=4), CPU)[0]
    assert [same["tasks"][t]["reused"] for t in tasks] == [True, True]  # the weights count, not the path
    shutil.rmtree(moved)
    shutil.copytree(other, moved)
    new = evaluate_checkpoint(moved, world / "data", world / "labels.json", tmp_path, SuiteOptions(tasks, gallery=4), CPU)[0]
    assert [new["tasks"][t]["reused"] for t in tasks] == [False, False]
    labels = json.loads((world / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({**labels, "templates": ["a {c}"]}))
    new = evaluate_checkpoint(moved, world / "data", tmp_path / "labels.json", tmp_path, SuiteOptions(tasks, gallery=4), CPU)[0]
    assert [new["tasks"][t]["reused"] for t in tasks] == [True, False]
    (tmp_path / "tasks" / "retrieval.json").write_text("{")
    new = evaluate_checkpoint(moved, world / "data", tmp_path / "labels.json", tmp_path, SuiteOptions(tasks, gallery=4), CPU)[0]
    assert [new["tasks"][t]["reused"] for t in tasks] == [False, True]


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
    def broken(bench, labels):
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setitem(suite.TASKS, "classification", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            run(world, tmp_path, tasks=("retrieval", "classification"))
    assert not (tmp_path / "results.json").exists()
    results = run(world, tmp_path, tasks=("retrieval", "classification"))
    assert [record["reused"] for record in results["tasks"].values()] == [True, False]


def test_what_the_model_lacks_is_null_with_the_reason(world, tmp_path):
    make_run(tmp_path / "clip", dataclasses.replace(SMALL, family="clip"))
    out = tmp_path / "out"
    status = evaluate(EvaluateConfig(str(tmp_path / "clip"), str(world / "data"), str(out), device="cpu", gallery=2))
    tasks = json.loads((out / "results.json").read_text())["tasks"]
    assert status == 0
    assert [tasks[t]["status"] for t in METRICS] == ["done", "not run", "not run", "not run"]
    assert tasks["classification"]["null_reasons"]["top1"] == "no --labels FILE was given"
    assert "'clip' model has no text decoder" in tasks["captioning"]["null_reasons"]["cider"]
    assert "no image decoder" in tasks["reconstruction"]["null_reasons"]["gap"]
    page = (out / "report.html").read_text()
    assert "<title>CLIP report: clip</title>" in page and "<h1>CLIP: what the checkpoint can do</h1>" in page
    assert ">required</th>" not in page and 'class="req"' not in page, "a column where nothing is required"
    assert ">chance</th>" in page
    assert "Not run: no --labels FILE was given" in page and "No captions: the task was not run" in page


class Page(HTMLParser):
    """Text, pictures and links of a page; remembers tags left open."""

    def __init__(self, text):
        super().__init__()
        self.pictures, self.links, self.words, self.open, self.text = [], [], [], [], text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.pictures.append(attrs)
        self.links += [value for name, value in attrs.items() if name in ("href", "src") and not value.startswith("data:")]
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def decoded(uri):
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


def test_report_holds_the_pictures_and_nothing_from_outside(done, world):
    page = Page((world / "out" / "report.html").read_text())
    assert page.open == [] and page.links == []
    named = {picture["alt"]: decoded(picture["src"]) for picture in page.pictures}
    assert all(value.shape == (48, 48, 3) for name, value in named.items() if name.startswith(("rebuilt", "what", "score")))
    data = Collection(world / "data", 48)
    originals = [decoded(picture["src"]) for picture in page.pictures if picture["alt"] == "original"]
    assert len(originals) == 4
    assert all(np.array_equal(picture, data.picture(n)) for picture, n in zip(originals, (0, 8, 15, 23), strict=True))
    curves = [decoded(picture["src"]) for picture in page.pictures if picture["alt"].startswith("Contrast (ITC)")]
    assert len(curves) == 1 and curves[0].shape == (380, 720, 3) and (curves[0] != 255).any()
    assert sum(picture["alt"].startswith("result ") for picture in page.pictures) == 4 * 5
    text = " ".join(" ".join(page.words).split())
    assert "1 of 2 requirements are not met: captioning.cider >= 9" in text
    numbers = done[1]["tasks"]["retrieval"]["metrics"]
    assert f"{numbers['i2t_r5']:.1f} %" in text
    for name in ("i2t_r1", "i2t_r10", "t2i_r1", "t2i_r5"):
        assert numbers[f"{name}_low"] <= numbers[name] <= numbers[f"{name}_high"]
        assert f"{numbers[name]:.1f} % {numbers[f'{name}_low']:.1f} to {numbers[f'{name}_high']:.1f} %" in text
    assert "R@1, lower bound" not in text and "Gap, upper bound" not in text, "a range stands under its number"
    assert "SyCoCa: what the checkpoint can do" in text
    heads = [
        table.split("</thead>")[0].count("<th") - 1 for table in page.text.split('<table class="numbers"')[1:] if "<thead>" in table
    ]
    # name, value, meaning; retrieval: chance, requirement; classification: chance; captioning: requirement; reconstruction: chance
    assert heads == [5, 4, 4, 4]
    assert "no funnel.json in" in text


def test_strangers_captions_are_escaped(world, tmp_path):
    from sycoca_ds.eval.report import write_report

    results, collection, _ = evaluate_checkpoint(
        world / "run", world / "data", None, tmp_path, SuiteOptions(("retrieval",), gallery=2), CPU
    )
    results["tasks"]["retrieval"]["details"]["examples"][0]["caption"] = "<script>alert(1)</script>"
    write_report(tmp_path / "page.html", results, [], collection, tmp_path, world / "run")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_images_seen_in_training_are_counted(world, tmp_path):
    data = Collection(world / "data", 48)
    make_data(tmp_path / "train", images=9)
    make_data(tmp_path / "more", images=12)
    for folders, shared in ((["train"], 9), (["more", "train"], 12)):
        assert suite.shared_images(data, [str(tmp_path / folder) for folder in folders]) == {"images_in_training": shared}
    missing = suite.shared_images(data, [str(tmp_path / "train"), str(tmp_path / "gone")])
    assert missing["images_in_training"] is None and "not here" in missing["images_in_training_reason"]


def test_collection_groups_captions(world):
    data = Collection(world / "data", 48)
    assert len(data) == 24 and len(data.captions) == 48
    assert data.image_of_text_T.tolist() == [i for i in range(24) for _ in range(2)]
    assert data.captions_of_image[3][1] == f"picture number 1: {data.captions_of_image[3][0]}"
    shapes = [(numbers, tuple(image.shape), image.dtype) for numbers, image in data.batches(16)]
    assert shapes == [
        (list(range(16)), (16, 3, 48, 48), torch.uint8),
        (list(range(16, 24)), (8, 3, 48, 48), torch.uint8),
    ]


def test_unreadable_image_is_named_never_skipped(world, tmp_path):
    shutil.copytree(world / "data", tmp_path / "data")
    data = Collection(tmp_path / "data", 48)
    picture = data.pictures[20]
    with open(picture.shard, "r+b") as file:
        file.seek(picture.offset)
        file.write(b"\0" * picture.size)
    with pytest.raises(UserError, match=f"sample {picture.key}: the image cannot be read"):
        data.image(20)


def test_metrics_of_a_resumed_and_torn_log(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "loss": 5}\n{"step": 2, "loss": 4}\n{"step": 2, "loss": 3.5, "lr": 1}\n{"step": 3, "loss": NaN}\n{"st'
    )
    series = read_metrics(path)
    assert series["loss"][0].tolist() == [1, 2] and series["loss"][1].tolist() == [5.0, 3.5]
    assert series["lr"][0].tolist() == [2]
    assert smooth(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist() == [1.5, 3.0, 4.0, 4.5]


def test_run_folder_is_found_from_any_checkpoint_path(world):
    run = world / "run"
    for path in (run, run / "checkpoints", run / "checkpoints" / "step_00000007"):
        assert run_folder(path) == run
    assert run_folder(world / "data" / "shards") is None


def test_funnel_is_told_stage_by_stage(world, tmp_path):
    from data_pipeline.report.funnel import make_funnel

    curated = {"source": "laion2b", "rows_in": 40, "dropped": {"nsfw": 2, "duplicate": 3}}
    downloaded = {"requested": 35, "failed": {"http 404": 4}, "downloaded": 31, "shards": {"00000": [0, 0, 31]}}
    verified = {"damaged": [], "samples": 31, "rejected": {"empty caption": 1}, "kept": 30}
    (tmp_path / "funnel.json").write_text(json.dumps(make_funnel(curated, downloaded, verified)))
    stages = funnels([("A", tmp_path)])[0]["stages"]
    assert [stage["rows"] for stage in stages] == [40, 35, 31, 31, 30]
    assert [stage["lost"] for stage in stages] == [
        [],
        [("duplicate", 3), ("nsfw", 2)],
        [("gone (404, 410)", 4)],
        [],
        [("empty caption", 1)],
    ]
    assert stages[-1]["percent"] == 75.0


def test_funnel_that_is_missing_or_strange_is_told(tmp_path):
    (tmp_path / "funnel.json").write_text("[]")
    found = funnels([("A", tmp_path), ("B", tmp_path / "no")])
    assert [(f["title"], f["stages"]) for f in found] == [("A", []), ("B", [])]
    assert "could not be read" in found[0]["reason"] and "no funnel.json" in found[1]["reason"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SuiteOptions(tasks=("retrival",)), "--tasks retrival: no such task; there are retrieval"),
        (SuiteOptions(tasks=("retrieval", "retrieval")), "name each task once"),
        (SuiteOptions(tasks=()), "at least one"),
        (SuiteOptions(batch_size=0), "--batch-size 0: expected at least 1"),
        (SuiteOptions(beams=0), "--beams 0: expected at least 1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError) as error:
        check_options(options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "%", "-"),
        (43.25, "%", "43.2 %"),
        (-0.04, "%", "0.0 %"),
        (-0.06, "%", "-0.1 %"),
        (0.58312, "", "0.583"),
        (12.5, "", "12.5"),
    ],
)
def test_numbers_for_people(value, unit, text):
    assert show(value, unit) == text


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


@pytest.mark.parametrize("launch", [["sycoca_ds/evaluate.py"], ["-m", "sycoca_ds.evaluate"]])
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
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": ""})
    lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.returncode == 2 and len(lines) == 1, ended.stderr
    assert "no finished checkpoint in" in lines[0]

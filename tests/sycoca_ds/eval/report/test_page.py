"""The report: its pictures, curves and funnel, and that strangers' words stay words."""

import base64
import io
import json
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.report.charts import read_metrics, smooth
from sycoca_ds.eval.report.page import funnels, run_folder
from sycoca_ds.eval.report.wording import show
from sycoca_ds.evaluation.command import evaluate_checkpoint

CPU = torch.device("cpu")


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
    shown = (0, 8, 15, 23)  # of what is rebuilt, and of what is hidden
    assert all(np.array_equal(picture, data.picture(n)) for picture, n in zip(originals, shown * 2, strict=True))
    curves = [decoded(picture["src"]) for picture in page.pictures if picture["alt"].startswith("Contrast (ITC)")]
    assert len(curves) == 1 and curves[0].shape == (380, 720, 3) and (curves[0] != 255).any()
    assert sum(picture["alt"].startswith("result ") for picture in page.pictures) == (4 + 3 + 3) * 5
    text = " ".join(" ".join(page.words).split())
    assert text.count("Ordinary ones") == text.count("Best ones") == text.count("Worst ones") == 2, "captions, retrievals"
    classes = [row for row in done[1]["tasks"]["classification"]["details"]["each_class"] if row["images"]]
    lowest, highest = (f"{end(row['right'] for row in classes):.1f} % (" for end in (min, max))
    assert f"Classes, zero-shot: {len(classes)}, from {lowest}" in text and f" to {highest}" in text
    assert "1 of 2 requirements are not met: captioning.cider >= 9" in text
    numbers = done[1]["tasks"]["retrieval"]["metrics"]
    assert f"{numbers['i2t_r5']:.1f} %" in text
    for name in ("i2t_r1", "i2t_r10", "t2i_r1", "t2i_r5"):
        assert numbers[f"{name}_low"] <= numbers[name] <= numbers[f"{name}_high"]
        assert f"{numbers[name]:.1f} % {numbers[f'{name}_low']:.1f} to {numbers[f'{name}_high']:.1f} %" in text
    assert "R@1, lower bound" not in text and "Gap, upper bound" not in text, "a range stands under its number"
    assert "SyCoCa: what the checkpoint can do" in text
    tables = [text.split("</table>")[0] for text in page.text.split('<table class="numbers"')[1:]]
    heads = [table.split("</thead>")[0].count("<th") - 1 for table in tables if "<thead>" in table]
    # name, value, meaning; retrieval: chance, requirement; classification: chance; captioning: requirement; the others: chance
    assert heads == [5, 4, 4, 4, 4]
    assert "no funnel.json in" in text


def test_strangers_captions_are_escaped(world, tmp_path):
    from sycoca_ds.eval.report.page import write_report

    results, collection, _ = evaluate_checkpoint(
        world / "run", world / "data", None, tmp_path, SuiteOptions(tasks=("retrieval",), gallery=2), CPU
    )
    results["tasks"]["retrieval"]["details"]["examples"][0]["caption"] = "<script>alert(1)</script>"
    write_report(tmp_path / "page.html", results, [], collection, tmp_path, world / "run")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


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
    assert stages[-1]["percent"] == 75.0 and stages[0]["name"] == "rows in the catalogue"
    several_captions = curated | {"rows_in": 100, "joined": 60}
    (tmp_path / "funnel.json").write_text(json.dumps(make_funnel(several_captions, downloaded, verified)))
    stages = funnels([("A", tmp_path)])[0]["stages"]
    assert [stage["rows"] for stage in stages] == [40, 35, 31, 31, 30] and stages[-1]["percent"] == 75.0
    assert stages[0]["name"] == "rows in the catalogue, those of a picture as one"


def test_funnel_that_is_missing_or_strange_is_told(tmp_path):
    (tmp_path / "funnel.json").write_text("[]")
    found = funnels([("A", tmp_path), ("B", tmp_path / "no")])
    assert [(f["title"], f["stages"]) for f in found] == [("A", []), ("B", [])]
    assert "could not be read" in found[0]["reason"] and "no funnel.json" in found[1]["reason"]


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

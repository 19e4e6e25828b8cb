"""evaluate.py --suite paper on small sets: numbers in their cells, reasons where there is none, nothing from outside."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.__main__ import main
from sycoca_ds.eval.paper import page as writing
from sycoca_ds.eval.paper.cells import best_and_worst
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.captioned import write_flickr, write_mscoco
from tests.worlds.published.classed import write_caltech
from tests.worlds.published.listed import write_textures
from tests.worlds.published.packed import write_cifar10
from tests.worlds.trainings.eval_world import make_run

pytestmark = pytest.mark.slow
DONE = ("flickr30k", "mscoco", "cifar10", "caltech101", "dtd")


def evaluated(world, out, **options):
    words = {"data_root": str(world / "sets"), "out": str(out), "device": "cpu", "precision": "fp32", "gallery": 2}
    return evaluate(EvaluateConfig(str(world / "run"), caption_tokens=4, **words, **options))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Five small sets, a run, what the suite leaves, and the sets that each page on the way knew."""
    folder = tmp_path_factory.mktemp("paper")
    root = folder / "sets"
    root.mkdir()
    make_run(folder / "run")
    for write in (write_flickr, write_mscoco, write_cifar10, write_caltech, write_textures):
        write(root)
    known, threads = [], torch.get_num_threads()
    made = writing.render
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioning, "java_command", lambda: None)
        patch.setitem(sys.modules, "open_clip", None)
        patch.setattr(writing, "render", lambda *a, **k: known.append(k["paper"]["sets_looked_at"]) or made(*a, **k))
        torch.set_num_threads(1)
        status = evaluated(folder, folder / "out", suite="paper")
        torch.set_num_threads(threads)
    (folder / "known.json").write_text(json.dumps({"status": status, "sets": known}))
    return folder


@pytest.fixture(scope="module")
def paper(world):
    return json.loads((world / "out/paper.json").read_text())


def cells(paper):
    """(table, set, number, row, part)."""
    return [(t["table"], p["set"], row["label"], row, p) for t in paper["tables"] for p in t["parts"] for row in p["rows"]]


def test_numbers_are_those_of_results_json(world, paper):
    found = 0
    for table, name, label, row, part in cells(paper):
        if name not in DONE:
            assert row["ours"] is None and row["low"] is None and row["difference"] is None
            continue
        task = json.loads((world / "out" / name / "results.json").read_text())["tasks"][part["task"]]
        value = task["metrics"][row["metric"]]
        assert row["ours"] == (None if value is None else value * row["scale"]), (table, name, label)
        assert value is not None or row["reason"] == task["null_reasons"][row["metric"]]
        if row["low"] is not None:
            assert row["low"] == task["intervals"][row["metric"]][0] * row["scale"] <= row["ours"] + 1e-9
            assert row["ours"] - 1e-9 <= row["high"]
        found += value is not None
    assert found == paper["measured"] >= 20
    assert json.loads((world / "known.json").read_text()) == {"status": 0, "sets": list(range(1, 20))}, "after every set"


def test_cells_are_the_right_ones(world, paper):
    rows = {(table, name, label): row for table, name, label, row, _ in cells(paper)}
    results = {name: json.loads((world / "out" / name / "results.json").read_text())["tasks"] for name in DONE}
    row = rows["1", "mscoco", "text to image, R@5"]
    assert row["ours"] == results["mscoco"]["retrieval"]["metrics"]["t2i_r5"] and row["paper"] == {"CoCa": 35.8, "SyCoCa": 39.7}
    assert row["difference"] == row["ours"] - 39.7, "of a SyCoCa, to the paper's SyCoCa"
    row = rows["2", "mscoco", "CIDEr"]
    assert row["ours"] == 100 * results["mscoco"]["captioning"]["metrics"]["cider"] and row["paper"]["SyCoCa"] == 75.6
    row = rows["3", "caltech101", "accuracy (mean per class)"]
    assert row["ours"] == results["caltech101"]["classification"]["metrics"]["mean_per_class"] and row["paper"] == {}
    assert rows["4", "dtd", "accuracy"]["ours"] == results["dtd"]["linear_probe"]["metrics"]["top1"]
    row = rows["5", "caltech101", "top-1"]
    assert row["ours"] == results["caltech101"]["classification"]["metrics"]["top1"]
    assert row["paper"] == {"ITC": 36.7, "CoCa": 37.8, "SyCoCa": 39.5}


def test_what_is_missing_has_its_reason(world, paper):
    recorded = json.loads((world / "out/sets.json").read_text())["sets"]
    for _, name, label, row, part in cells(paper):
        if name == "vqa" and label != "val":
            assert "kept back" in row["reason"]
        elif name == "vqa":
            assert "evaluate.py --questions, or --sets vqa_v2, writes them there" in row["reason"] and part["page"] is None
        elif name not in DONE:
            assert row["reason"] == recorded[name]["reason"] and "expected" in row["reason"] and part["page"] is None
        else:
            assert (world / "out" / part["page"]).is_file()
            assert any("officially" in note for note in part["notes"]), "miniatures are not the paper's sets"
    averages = {table["table"]: table["average"] for table in paper["tables"] if table["average"]}
    assert all(average["ours"] is None for average in averages.values())
    assert averages["5"]["reason"] == "6 of 8 columns have a number" and averages["5"]["paper"]["SyCoCa"] == 35.9


class Page(HTMLParser):
    """What a browser would fetch, links, heads of tables, and the texts of rows."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.links, self.open, self.rows = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.fetched += [tag] if tag in ("script", "link", "iframe", "img", "object", "embed", "video") else []
        self.fetched += [attrs[name] for name in ("src", "srcset", "style", "poster", "background") if name in attrs]
        self.links += [attrs["href"]] if "href" in attrs else []
        if tag == "th":
            assert attrs["scope"] in ("col", "row", "rowgroup")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "tr" in self.open:
            self.rows[-1][-1] += data


def test_the_page_is_one_file_and_says_the_numbers(world, paper):
    text = (world / "out/paper.html").read_text()
    page = Page(text)
    assert page.open == [] and page.fetched == [] and not re.search(r"@import|url\(|@font-face", text)
    outside = [link for link in page.links if "://" in link]
    assert outside == ["https://arxiv.org/abs/2401.02137"], "a link to follow, nothing to fetch"
    assert {link for link in page.links if link not in outside} == {f"{name}/report.html" for name in DONE}
    rows = [[" ".join(cell.split()) for cell in row] for row in page.rows]
    shown = next(row for row in cells(paper) if row[:3] == ("1", "flickr30k", "text to image, R@1"))[3]
    expected = f"{shown['ours']:.1f} {shown['low']:.1f} to {shown['high']:.1f}".replace(" ", "")
    told = next(row for row in rows if row[0].startswith("text to image, R@1"))
    assert [told[1].replace(" ", ""), *told[2:]] == [expected, "31.3", "35.9", f"{shown['difference']:+.1f}"]
    missing = next(row for row in rows if row[0].startswith("ImageNet-1K"))
    assert "Not measured: imagenet1k, split val: not in" in missing[0] and missing[1] == "-not known"
    vqa = next(row[0] for row in rows if row[0].startswith("VQA"))
    assert "Not measured: no numbers in" in vqa and "test-dev not measured: its answers are kept back" in vqa
    assert "best classes:" in text


def test_markdown_says_the_same(world, paper):
    text = (world / "out/paper.md").read_text()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    bodies = [line for line in lines if line[0] != "set" and not line[0].startswith("---")]
    told = [line for line in bodies if line[1] != "mean of the columns"]
    for (_, _, label, row, part), line in zip(cells(paper), told, strict=True):
        assert line[:2] == [part["title"], label] and line[2] == ("-" if row["ours"] is None else f"{row['ours']:.1f}")
        assert line[4 : 4 + len(row["paper"])] == [f"{number:.1f}" for number in row["paper"].values()]
    assert "- NoCaps: not measured: nocaps, split val: not in" in text


def test_other_folders_and_the_command(world, tmp_path, monkeypatch, capsys):
    """Captions of a fine-tuned checkpoint and answers to questions, evaluated on their own, stand in Table 2 after `paper`."""
    out = tmp_path / "out"
    shutil.copytree(world / "out", out)
    shutil.copytree(world / "out/mscoco", out / "caption/mscoco")
    (out / "caption/sets.json").write_text(
        json.dumps({"checkpoint": "runs/tuned", "sets": {"mscoco": json.loads((out / "sets.json").read_text())["sets"]["mscoco"]}})
    )
    tuned = json.loads((out / "caption/mscoco/results.json").read_text())
    tuned["checkpoint"]["path"], tuned["data"]["page"] = "runs/tuned", "https://huggingface.co/clip-benchmark"
    tuned["tasks"]["captioning"]["metrics"]["bleu4"] = 0.25
    (out / "caption/mscoco/results.json").write_text(json.dumps(tuned))
    answers = {
        "metrics": {"accuracy": 44.5, "accuracy_yes_no": 60.0},
        "intervals": {"accuracy": [44.0, 45.0]},
        "chance": {"accuracy": 31.0},
    }
    answers |= {"status": "done", "null_reasons": {}, "details": {"questions": 214_354}}
    (out / "vqa").mkdir()
    (out / "vqa/results.json").write_text(json.dumps({**tuned, "tasks": {"vqa": answers}}))
    monkeypatch.setattr(sys, "argv", ["sycoca_ds.eval", "paper", "--out", str(out)])
    assert main() == 0 and "paper.html" in capsys.readouterr().out
    rows = {(t, name, label): (row, part) for t, name, label, row, part in cells(json.loads((out / "paper.json").read_text()))}
    row, part = rows["2", "mscoco", "BLEU@4"]
    assert row["ours"] == 25.0 and part["page"] == "caption/mscoco/report.html"
    assert part["notes"][0] == "of the checkpoint runs/tuned, fine-tuned" and part["notes"][1].startswith("from an export")
    row, part = rows["2", "vqa", "val"]
    assert (row["ours"], row["low"], row["high"], row["chance"]) == (44.5, 44.0, 45.0, 31.0)
    assert row["difference"] == pytest.approx(44.5 - 46.9) and part["notes"] == ["checkpoint runs/tuned"], (
        "of the questions' own checkpoint"
    )
    assert rows["2", "vqa", "test-dev"][0]["ours"] is None
    answers["metrics"]["accuracy_yes_no"] = None
    (out / "vqa/results.json").write_text(json.dumps({**tuned, "tasks": {"vqa": answers}}))
    rows = {label: row for _, name, label, row, _ in cells(writing.write_paper(out)) if name == "vqa"}
    assert rows["val"]["ours"] is None and "its questions are not VQA's" in rows["val"]["reason"], "a drawn world's"
    with pytest.raises(UserError, match="no sets.json; expected a folder that evaluate.py"):
        writing.write_paper(tmp_path)


def answered(out, accuracy, digest, yes_no=60.0):
    """results.json of questions in OUT, of VQA's or, without yes_no, of a drawn world's."""
    made = {"metrics": {"accuracy": accuracy, "accuracy_yes_no": yes_no}, "intervals": {}, "chance": {}, "null_reasons": {}}
    made |= {"status": "done", "details": {"questions": 214_354}}
    data = {"images": 40_504, "folder": "x", "page": "y"}
    out.mkdir(parents=True, exist_ok=True)
    results = {"tasks": {"vqa": made}, "checkpoint": {"path": f"runs/{digest}", "digest": digest}, "data": data}
    (out / "results.json").write_text(json.dumps(results))


def test_answers_are_those_that_this_run_has_given(world, tmp_path):
    """Not an older results.json beside a record that says `not run`, nor that of another checkpoint; and answers to a drawn world's
    questions hide no others."""
    out = tmp_path / "out"
    shutil.copytree(world / "out", out)

    def val():
        return next(
            (row["ours"], row["reason"], part["notes"][:1])
            for _, name, label, row, part in cells(writing.write_paper(out))
            if (name, label) == ("vqa", "val")
        )

    answered(out / "vqa_v2", 61.0, "older")
    assert val()[0] is None and "no numbers in" in val()[1], "sets.json says that vqa_v2 was not run"
    path = out / "sets.json"
    listed = json.loads(path.read_text())
    listed["sets"]["vqa_v2"] |= {"status": "done", "folder": "vqa_v2"}
    path.write_text(json.dumps(listed))
    assert val()[0] is None, "of another checkpoint than sets.json's"
    answered(out / "vqa_v2", 52.0, listed["made"]["digest"])
    assert val()[0] == 52.0
    answered(out / "vqa", 99.0, "drawn", yes_no=None)
    assert val()[0] == 52.0, "a drawn world's questions are not VQA's"
    answered(out / "vqa/vqa_v2", 55.0, "tuned")
    assert val()[0] == 52.0, "no sets.json says that this is done"
    record = {"status": "done", "folder": "vqa_v2"}
    (out / "vqa/sets.json").write_text(json.dumps({"made": {"digest": "tuned"}, "sets": {"vqa_v2": record}}))
    assert val()[0] == 55.0 and val()[2] == ["checkpoint runs/tuned"]
    answered(out / "vqa", 57.0, "asked")
    assert val()[0] == 57.0


def test_strangers_words_are_escaped(world, tmp_path):
    shutil.copytree(world / "out", tmp_path / "out")
    path = tmp_path / "out/sets.json"
    listed = json.loads(path.read_text())
    listed["sets"]["nocaps"]["reason"] = "<script>alert(1)</script> | a"
    path.write_text(json.dumps(listed))
    writing.write_paper(tmp_path / "out")
    text = (tmp_path / "out/paper.html").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text


@pytest.mark.parametrize(
    ("family", "to_1", "to_5", "name"),
    [("coca", "CoCa", "CoCa", "CoCa"), ("clip", "SyCoCa", "ITC", "ITC"), ("sycoca", *["SyCoCa"] * 3)],
)
def test_the_difference_is_to_the_own_family(world, tmp_path, family, to_1, to_5, name):
    shutil.copytree(world / "out", tmp_path / "out")
    for path in (tmp_path / "out").glob("*/results.json"):
        results = json.loads(path.read_text())
        results["checkpoint"]["family"] = family
        path.write_text(json.dumps(results))
    made = writing.write_paper(tmp_path / "out")
    compared = {table["table"]: table["compared"] for table in made["tables"]}
    assert compared == {"1": to_1, "2": to_1, "3": None, "4": None, "5": to_5} and made["family"] == name
    for table, _, _, row, _ in cells(made):
        if row["difference"] is not None:
            assert row["difference"] == row["ours"] - row["paper"][compared[table]]


def test_how_numbers_were_made_stands_beside_them(world, paper):
    notes = {(table, part["set"]): part["notes"] for table, _, _, _, part in cells(paper)}
    assert "10 class names in 18 templates" in notes["3", "cifar10"] and "5 class names in 34 templates" in notes["3", "caltech101"]
    assert any(line.startswith("greedy, at most 4 tokens; words split by") for line in notes["2", "mscoco"])
    assert any(line.startswith("linear probe: C = ") for line in notes["4", "dtd"])


def test_best_and_worst_classes():
    rows = [{"class": name, "right": right} for name, right in zip("abcdef", (50.0, 0.0, 100.0, None, 20.0, 0.0), strict=True)]
    found = best_and_worst({"details": {"each_class": rows}})
    assert [row["class"] for row in found["best"]] == ["c", "a"] and [row["class"] for row in found["worst"]] == ["f", "b"]
    assert best_and_worst({"details": {"each_class": rows[:3]}}) is None and best_and_worst(None) is None

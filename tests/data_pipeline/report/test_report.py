"""The report: hosts, times and projections against slow counts of hand-written shards; several folders; the page."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.__main__ import parse
from data_pipeline.build import AdoptCommand
from data_pipeline.errors import UserError
from data_pipeline.report.charts import ticks
from data_pipeline.report.contents import histogram
from data_pipeline.report.funnel import make_funnel
from data_pipeline.report.page import hosts_of, render, visible
from data_pipeline.report.projection import PUBLISHED_ROWS, project, share_interval
from data_pipeline.report.total import add_up, report_total
from data_pipeline.report.writing import report
from data_pipeline.shards.mark import NEAR_DUPLICATE, mark
from data_pipeline.shards.verify import verify
from tests.worlds.data.data_sets import write_mirror
from tests.worlds.data.written_shards import ODD, rows_of, slow_counts, write_folder

pytestmark = pytest.mark.timeout(60)


def funnel_of(source: str, rows_in: int, kept: int, rps: float | None = 10.0, adopted: bool = False) -> dict:
    failed = {"http 404": rows_in // 10, "timeout": 1} if not adopted else {}
    requested = kept + sum(failed.values())
    funnel = make_funnel(
        {"source": source, "rows_in": rows_in, "dropped": {"nsfw": rows_in - requested}},
        {"requested": requested, "downloaded": kept, "failed": failed, "shards": {}},
        {"samples": kept, "kept": kept, "rejected": {}, "damaged": []},
    )
    extra = {"rows_per_second": rps, "bytes": 1000 * kept, "shards": 2, "hosts": None, "sidecars": None if adopted else {}}
    return funnel | extra


def test_projection_arithmetic() -> None:
    funnel = funnel_of("cc12m", 10_000, 6_000)
    found = project(funnel, 1_000_000)
    assert (found["to_rows"], found["kept"], found["bytes"], found["share"]) == (1_000_000, 600_000, 600_000_000, 0.6)
    assert found["job_hours"] == pytest.approx(7001 / 10_000 * 1_000_000 / 10 / 3600)
    assert found["kept_low"] == round(1_000_000 * found["share_low"]) < 600_000 < found["kept_high"]
    assert project(funnel, 0) is None and project(funnel, None)["to_rows"] == PUBLISHED_ROWS["cc12m"] == 12_423_374
    assert project(funnel | {"rows_per_second": None}, None)["job_hours"] is None
    assert project(funnel_of("generic", 10_000, 6_000), None) is None
    assert project(funnel_of("cc3m", 1_659_166, 1_000_000), None) and project(funnel_of("cc3m", 1_659_167, 1_000_000), None) is None
    drawn = {"hosts": {"rows": 7000, "private": {"hosts": 1, "rows": 3501}}}
    assert project(funnel | drawn, None) is None and project(funnel | drawn, 20_000)["kept"] == 12_000
    for wrong in (-1, 9_999):
        with pytest.raises(UserError, match=f"--project-to {wrong}: expected 0, or at least the 10000 rows"):
            project(funnel, wrong)
    assert project(funnel, 10_000)["kept"] == 6_000


def test_the_interval_is_wilsons() -> None:
    # Wilson's interval is the set of shares p that differ from k / n by at most z standard errors of p.
    for successes, rows in ((8, 10), (0, 20), (20, 20), (541, 1310)):
        inside = [p for p in np.linspace(0, 1, 100_001) if abs(successes / rows - p) <= 1.959964 * np.sqrt(p * (1 - p) / rows)]
        assert share_interval(successes, rows) == pytest.approx((min(inside), max(inside)), abs=2e-5)
    assert share_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_several_folders_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [rows_of(230, 1), rows_of(150, 2), rows_of(90, 3)]
    names = [("a", "cc3m"), ("b", "coyo700m"), ("c", "cc3m")]
    for (name, source), own in zip(names, rows, strict=True):
        verify(write_folder(Path(name), [own], source=source), processes=1)
    mirror = write_mirror(tmp_path / "tars")
    AdoptCommand(tars=str(mirror), out=Path("d"), processes=1).run()
    assert parse(["report", "a", "b", "--data", "c", "d", "--out", "all/total.html"]).run() == 0
    total = json.loads(Path("all/total.json").read_text())
    funnels = {name: json.loads(Path(name, "funnel.json").read_text()) for name in "abcd"}
    for name in ("rows_in", "requested", "downloaded", "verified", "kept", "bytes", "shards"):
        assert total[name] == sum(funnel[name] for funnel in funnels.values()), name
        assert total["per_source"]["cc3m"][name] == funnels["a"][name] + funnels["c"][name]
        assert [entry[name] for entry in total["folders"]] == [funnel[name] for funnel in funnels.values()]
    for name in ("dropped", "failed", "rejected", "statuses", "duplicates"):
        assert Counter(total[name]) == sum((Counter(funnel[name]) for funnel in funnels.values()), Counter()), name
    assert total["rows_in"] == sum(total["dropped"].values()) + sum(total["failed"].values()) + total["kept"] + 1
    assert total["rejected"] == {"no caption": 1} and total["source"] == "cc3m + coyo700m + wds"
    assert {(e["host"], o): n for e in total["hosts"]["worst"] for o, n in e["outcomes"].items()}.items() <= slow_counts(
        sum(rows, [])
    ).items()
    assert total["hosts"]["rows"] == 470 and total["without_hosts"] == [], "nothing was downloaded into d"
    assert total["hours"]["job"] == pytest.approx(30 / 3600) and total["rows_per_second"] == pytest.approx(470 / 30)
    cc3m, coyo = (total["per_source"][source]["projection"] for source in ("cc3m", "coyo700m"))
    expected = (funnels["a"]["kept"] + funnels["c"]["kept"]) / (funnels["a"]["rows_in"] + funnels["c"]["rows_in"])
    assert cc3m["kept"] == round(3_318_333 * expected) and coyo["to_rows"] == 747_000_000
    assert total["per_source"]["wds"]["projection"] is None
    assert total["projection"]["kept"] == cc3m["kept"] + coyo["kept"] + 7
    assert total["projection"]["to_rows"] == 3_318_333 + 747_000_000 + 8
    assert total["projection"]["job_hours"] == pytest.approx(cc3m["job_hours"] + coyo["job_hours"])
    page = Path("all/total.html").read_text()
    for words in ("By source", "By folder", "The funnel in total", "4 folders together", "a (cc3m)", "wds (as it is)"):
        assert words in page, words
    assert "a/funnel.html: " in capsys.readouterr().err
    assert parse(["report", "b", "d"]).run() == 0 and Path("funnel-total.html").exists()


def test_a_total_that_does_not_add_up_is_an_error() -> None:
    good = funnel_of("cc3m", 1000, 500)
    assert add_up([good, good])["kept"] == 1000
    with pytest.raises(UserError, match="does not add up"):
        add_up([good, good | {"kept": 499}])


def test_what_report_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for words, message in (
        ([], "expected at least one data set folder"),
        (["data", "--data", "../" + folder.parent.name + "/data"], "given twice"),
        (["data", "other", "--project-to", "5"], "expected one folder"),
        (["data", "--out", "total.pdf"], "--out total.pdf: expected a name that ends with .html"),
        (["data", "--project-to", "5"], "--project-to 5: expected 0, or at least the 392 rows"),
        (["other"], "curate.json: not there"),
        (["--data"], "--data"),
    ):
        with pytest.raises(UserError, match=re.escape(message)):
            parse(["report", *words]).run()


def test_projection_by_the_command(folder: Path) -> None:
    assert parse(["report", "--data", str(folder), "--project-to", "3920"]).run() == 0
    funnel = json.loads((folder / "funnel.json").read_text())
    assert funnel["projection"]["kept"] == 10 * funnel["kept"] and funnel["rows_in"] == 392
    assert "If the full catalogue went like this" in (folder / "funnel.html").read_text()
    assert report(folder)["projection"] is None


def test_duplicates_and_evaluation_data(tmp_path: Path) -> None:
    dropped = {"nsfw": 1, "duplicate url and caption": 4, "caption too frequent": 2, "duplicate picture hash": 5}
    root = write_folder(tmp_path / "data", [rows_of(60, 1)], dropped=dropped)
    verify(root, processes=1)
    copy = write_folder(tmp_path / "copy", [rows_of(60, 1) + rows_of(50, 4)[len(ODD) :]])
    verify(copy, processes=1)
    mark([root, copy], duplicate_bits=0)
    assert report(root)["duplicates"] == {name: count for name, count in dropped.items() if name != "nsfw"}
    found = report(copy)
    assert found["duplicates"][NEAR_DUPLICATE] == found["rejected"][NEAR_DUPLICATE] > 10 and found["decontaminated"] == {}


def test_evaluation_data_is_counted_by_reason() -> None:
    rejected = {"picture of an evaluation set": 2, "caption of an evaluation set": 3, "near-duplicate": 4, "empty caption": 1}
    funnel = make_funnel(
        {"source": "cc3m", "rows_in": 30, "dropped": {"duplicate url": 10}},
        {"requested": 20, "downloaded": 20, "failed": {}, "shards": {}},
        {"samples": 20, "kept": 10, "rejected": rejected, "damaged": []},
    )
    assert funnel["decontaminated"] == {"picture of an evaluation set": 2, "caption of an evaluation set": 3}
    assert funnel["duplicates"] == {"duplicate url": 10, "near-duplicate": 4}


def test_sizes_and_captions(folder: Path) -> None:
    funnel = report(folder)
    size, kept = funnel["image_size"], funnel["kept"]
    assert size["pictures"] == kept == sum(size["short_side"]["counts"]) == sum(size["aspect"]["counts"])
    assert sum(funnel["caption_chars"]["counts"]) == kept and funnel["short_side"] == {"least": 30, "median": 30, "most": 30}
    assert size["original_pictures"] == kept and size["original_short_side"]["median"] == 300
    assert size["aspect"]["median"] == pytest.approx(4 / 3, abs=1e-3)
    assert funnel["bytes_per_sample"] == pytest.approx(funnel["bytes"] / funnel["verified"])


@pytest.mark.parametrize(("least", "most"), [(5, 9), (0, 23), (0, 24), (3, 900), (7, 7)])
def test_histograms_lose_nothing(least: int, most: int) -> None:
    values = np.concatenate([np.random.default_rng(0).integers(least, most + 1, 1000), [least, most]])
    found = histogram(values, high=values.max())
    edges = found["edges"]
    assert len(found["counts"]) == len(edges) - 1 <= 24 and edges[0] == least and edges[-1] > most
    width = edges[1] - edges[0]
    assert width == int(width) and all(high - low == width for low, high in zip(edges, edges[1:], strict=False))
    assert found["counts"] == [int(((values >= low) & (values < high)).sum()) for low, high in zip(edges, edges[1:], strict=False)]
    assert (found["least"], found["most"], found["median"]) == (least, most, np.median(values))


def test_outer_bars_hold_what_lies_beyond() -> None:
    values = np.array([1.0] * 98 + [0.01, 50.0])
    found = histogram(values, 1 / 4, 4.0, log=True)
    assert found["counts"][0] == found["counts"][-1] == 1 and sum(found["counts"]) == 100 and len(found["counts"]) == 24
    tail = histogram(np.array([*range(100)] * 10 + [5000]))
    assert tail["edges"][-1] < 130 and sum(tail["counts"]) == 1001 and tail["most"] == 5000


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 0.037), (9, 736), (84, 291), (0, 2.5e6), (0, 60_000)])
def test_ticks_are_round_and_reach_the_top(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low and high <= found[-1] * (1 + 1e-9) and 3 <= len(found) <= 7
    assert all(f"{tick:.6g}" == f"{float(f'{tick:.3g}'):.6g}" for tick in found)


class Reader(HTMLParser):
    """Tags, attributes that load or run something, and what a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.loads, self.text = Counter(), [], []

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.tags[tag] += 1
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_has_its_sections_and_loads_nothing(folder: Path) -> None:
    report(folder)
    reader = Reader()
    reader.feed((folder / "funnel.html").read_text())
    text = " ".join(reader.text)
    for words in (
        "The funnel",
        "Why pictures did not arrive",
        "name not found",
        "Hosts",
        "most frequent failure",
        "Over time",
        "Success rate",
        "rows a second",
        "seconds since the first shard began",
        "Pictures and captions",
        "Short side as stored",
        "Duplicates and evaluation data",
        "caption too frequent",
        "Some kept samples",
    ):
        assert words in text, words
    assert "If the full catalogue" not in text, "of a generic source nothing is published"
    assert all(value.startswith("data:image/jpeg;base64,") for value in reader.loads)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(reader.tags) and reader.tags["svg"] >= 2
    assert "<i>caption</i>" in text, "a caption is text, not markup"


def test_strangers_names_are_escaped(folder: Path, tmp_path: Path) -> None:
    hostile = ('<img src=x onerror=alert(1)>.example"', "\u202egnp.elpmaxe", "x" * 300 + ".example", "it's&amp;.example")
    reason = "</td><script>alert(2)</script>"
    rows = [(f"http://{host}/{n}.jpg", reason) for host in hostile for n in range(9)] + [("http://good.example/1.jpg", "success")]
    root = write_folder(tmp_path / "hostile", [rows])
    verify(root, processes=1)
    worst = {entry["host"]: entry for entry in report(root)["hosts"]["worst"]}
    assert len(worst) == 4 and worst["\u202egnp.elpmaxe"]["rows"] == 9 and worst["x" * 300 + ".example"]["success"] == 0
    page = (root / "funnel.html").read_text()
    reader = Reader()
    reader.feed(page)
    assert "<script" not in page and "<img src=x" not in page and "\u202e" not in page
    assert all(value.startswith("data:image/jpeg;base64,") for value in reader.loads)
    text = " ".join(reader.text)
    assert '<img src=x onerror=alert(1)>.example"' in text and reason in text and "\\u202egnp.elpmaxe" in text
    assert "it's&amp;.example" in text and "x" * 101 not in text
    funnel = report(folder)
    hostile_name = render("<b>name</b>", funnel, [{"key": "<u>", "picture": "", "caption": "</figure><script>", "size": ""}])
    assert "<h1>&lt;b&gt;name&lt;/b&gt;</h1>" in hostile_name and "<script" not in hostile_name and "<u>" not in hostile_name


def test_bars_of_hosts_are_whole() -> None:
    worst = [
        {"host": "", "rows": 10, "success": 3, "outcomes": {"http 404": 4, "http 410": 2, "timeout": 1}},
        {"host": "b", "rows": 6, "success": 0, "outcomes": {f"reason {n}": 1 for n in range(6)}},
    ]
    found = hosts_of({"distinct": 1, "rows": 16, "silent": {"hosts": 1, "rows": 6, "share": 0.375}, "worst": worst})
    assert "1 host, by" in found["said"] and "1 of them, with 37.5 % of the rows" in found["said"]
    assert [sum(part["width"] for part in line["parts"]) for line in found["lines"]] == pytest.approx([100, 100], abs=0.1)
    assert found["lines"][0]["parts"][1]["title"] == "gone (404, 410): 6" and found["lines"][0]["reason"] == "http 404 (4)"
    assert [label for _, label in found["legend"]][-1] == "other reasons" and len(found["legend"]) == 7
    assert visible("a\u200bb\n") == "a\\u200bb\\u000a"


def test_adopted_tars_have_a_report_without_a_download(tmp_path: Path) -> None:
    AdoptCommand(tars=str(write_mirror(tmp_path / "tars")), out=tmp_path / "data", processes=1).run()
    funnel = json.loads((tmp_path / "data/funnel.json").read_text())
    assert [funnel[name] for name in ("hosts", "sidecars", "over_time", "hours", "rows_per_second", "projection")] == [None] * 6
    page = (tmp_path / "data/funnel.html").read_text()
    assert "the tars were adopted as they are" in page and "<h2>Hosts</h2>" not in page and "Over time" not in page
    found = report(tmp_path / "data", project_to=80)["projection"]
    assert (found["kept"], found["job_hours"]) == (70, None) and "unknown" in (tmp_path / "data/funnel.html").read_text()


def test_a_folder_that_moved_keeps_its_outcomes(folder: Path, tmp_path: Path) -> None:
    first = report(folder)
    shutil.copytree(folder, tmp_path / "moved")
    for sidecar in (tmp_path / "moved/shards").glob("*.parquet"):
        sidecar.unlink()
    assert report(tmp_path / "moved")["hosts"] == first["hosts"]


# In a frame, since the browser's own window is never narrower than 500 pixels.
MEASURE = """<iframe style="width: {width}px; border: 0" srcdoc="{page}"></iframe><script>window.onload = () => {
  const page = document.querySelector('iframe').contentDocument, lines = [];
  const walk = page.createTreeWalker(page.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode, part = page.createRange();
    part.selectNodeContents(node);
    const tops = [...part.getClientRects()].map(box => Math.round(box.top));
    if (node.parentElement.closest('th, td')) lines.push([node.data.trim(), new Set(tops).size]);
  }
  document.body.textContent = JSON.stringify({page: page.documentElement.scrollWidth, lines});
};</script>"""


@pytest.mark.parametrize("width", [390, *(pytest.param(width, marks=pytest.mark.full) for width in (760, 1080))])
def test_no_table_of_the_page_breaks_letter_by_letter(tmp_path: Path, width: int) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium")
    host = "a-very-long-name-of-a-machine.images.example.org"
    rows = [(f"https://{host}/{number}.jpg", "http 404" if number % 3 else "success") for number in range(30)]
    folders = [write_folder(tmp_path / source, [rows_of(60, 1) + rows], source=source) for source in ("cc12m", "coyo700m")]
    for folder in folders:
        verify(folder, processes=1)
    report_total(folders, [report(folder, 10**6) for folder in folders], tmp_path / "total.html")
    for page in (folders[0] / "funnel.html", tmp_path / "total.html"):
        measured = tmp_path / "measured.html"
        text = html.escape(page.read_text())
        measured.write_text("<!doctype html><meta charset=utf-8>" + MEASURE.replace("{width}", str(width)).replace("{page}", text))
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        words = [f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom", measured.as_uri()]
        done = subprocess.run([browser, *flags, *words], capture_output=True, text=True, timeout=60)
        found = json.loads(html.unescape(re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)[1]))
        assert found["page"] <= width and any(text == host for text, _ in found["lines"])
        assert not [(text, lines) for text, lines in found["lines"] if lines > 1 + len(text) / 8]

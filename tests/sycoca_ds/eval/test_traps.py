"""Data that is legal and easily got wrong, through the whole evaluation: every number is there or has its reason, and none moves
with the batch."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sycoca_ds.eval.registry import METRICS
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds import REPOSITORY
from tests.worlds.published.exported import Shown, write_wds
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run

pytestmark = pytest.mark.slow
LONG = " ".join(f"word{number}" for number in range(200))
CAPTIONS = (
    ("a red circle",),
    ("",),
    ("a line\u2028separator", "a caf\u00e9 \u732b \U0001f9ff"),
    (LONG, "1,5 + 1.5"),
    ("a red circle",),  # as the first
)
CLASSES = ("red circle", "circle", "circle", "nowhere")
"""Two of one name, one that no picture has."""


def encoded(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format=kind)
    return stream.getvalue()


def odd_pictures() -> list[tuple[bytes, str]]:
    """Grey, CMYK, one pixel high, one pixel wide, transparent."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 50, 4), dtype=np.uint8)
    colours = Image.fromarray(noise[..., :3])
    return [
        (encoded(colours.convert("L"), "JPEG"), "jpg"),
        (encoded(colours.convert("CMYK"), "JPEG"), "jpg"),
        (encoded(colours.crop((0, 0, 50, 1)), "PNG"), "png"),
        (encoded(colours.crop((0, 0, 1, 40)), "PNG"), "png"),
        (encoded(Image.fromarray(noise), "PNG"), "png"),
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with odd pictures: one set of captions, one of classes, and a run."""
    folder, pictures = tmp_path_factory.mktemp("traps"), odd_pictures()
    images = folder / "sets/flickr30k/flickr30k-images"
    images.mkdir(parents=True)
    entries = []
    for number, ((data, kind), captions) in enumerate(zip(pictures, CAPTIONS, strict=True)):
        (images / f"{number}.{kind}").write_bytes(data)
        entries.append({"filename": f"{number}.{kind}", "split": "test", "sentences": [{"raw": caption} for caption in captions]})
    (images.parent / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))
    labelled = [Shown(data, number % 3, (), extension=kind) for number, (data, kind) in enumerate(pictures)]
    write_wds(folder / "sets/wds_odd_classes", labelled, CLASSES, ("a {c}", "{c}"))
    make_run(folder / "run")
    return folder


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(captioning, "java_command", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def everything_is_there(tasks: dict) -> None:
    for task, record in tasks.items():
        assert tuple(record["metrics"]) == METRICS[task]
        for name, value in record["metrics"].items():
            assert (value is None) == (name in record["null_reasons"]) and (value is None or math.isfinite(value)), (task, name)


def evaluated(root: Path, out: Path, **more) -> dict:
    """{set: its record's tasks}."""
    words = {"device": "cpu", "precision": "fp32", "gallery": 2, "caption_tokens": 4, "cache": "off", **more}
    sets = ("flickr30k", "wds:odd_classes")
    assert evaluate(EvaluateConfig(str(root / "run"), out=str(out), data_root=str(root / "sets"), sets=sets, **words)) == 0
    return {path.parent.name: json.loads(path.read_text())["tasks"] for path in out.glob("*/results.json")}


def test_odd_captions_pictures_and_classes(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = evaluated(root, tmp_path / "one")
    for tasks in found.values():
        everything_is_there(tasks)
    captions, classes = found["flickr30k"], found["wds_odd_classes"]
    results = json.loads((tmp_path / "one/flickr30k/results.json").read_text())
    assert results["data"]["images"] == 5 and results["data"]["captions"] == 7, "an empty caption is one"
    # fewer candidates than k: everything is among the first ten, and five pictures are the first five
    assert captions["retrieval"]["metrics"]["i2t_r10"] == captions["retrieval"]["metrics"]["t2i_r5"] == 100
    assert captions["retrieval"]["chance"]["t2i_r5"] == captions["retrieval"]["chance"]["i2t_r10"] == 100
    written = json.loads((tmp_path / "one/flickr30k/samples/captions.json").read_text())
    assert len(written) == 5 and len({row["image_id"] for row in written}) == 5
    details = classes["classification"]["details"]
    assert details["classes"] == 4 and details["classes_without_image"] == 1
    rows = {place: row for place, row in enumerate(details["each_class"])}
    assert [rows[place]["class"] for place in rows] == list(CLASSES) and rows[3]["right"] is None
    right = [row["right"] for row in rows.values() if row["right"] is not None]
    assert classes["classification"]["metrics"]["mean_per_class"] == pytest.approx(np.mean(right)), "of those that have a picture"
    assert rows[2]["right"] == 0, "of two classes of one name the first wins a tie"
    assert "two classes share the name circle" in capsys.readouterr().out
    for name in found:
        assert "\u2028" not in (tmp_path / f"one/{name}/results.csv").read_text()
        assert (tmp_path / f"one/{name}/report.html").stat().st_size > 1000
    again = evaluated(root, tmp_path / "two", batch_size=2)
    for name, tasks in found.items():
        for task, record in tasks.items():
            for number, value in record["metrics"].items():
                assert again[name][task]["metrics"][number] == (
                    value if value is None else pytest.approx(value, rel=1e-4, abs=1e-3)
                )


@pytest.mark.parametrize("images", [1, 2, 3])
def test_hardly_any_pictures(root: Path, tmp_path: Path, images: int) -> None:
    """What needs two pictures says so; nothing else is lost."""
    make_data(tmp_path / "data", images=images, captions=2, shards=1)
    make_labels(tmp_path / "labels.json", images=images)
    words = {"device": "cpu", "precision": "fp32", "gallery": 2, "caption_tokens": 4, "cache": "off"}
    config = EvaluateConfig(str(root / "run"), str(tmp_path / "data"), out=str(tmp_path / "out"), **words)
    more = {"labels": str(tmp_path / "labels.json"), "probe_train": str(tmp_path / "data")}
    assert evaluate(EvaluateConfig(**{**config.__dict__, **more})) == 0
    tasks = json.loads((tmp_path / "out/results.json").read_text())["tasks"]
    everything_is_there(tasks)
    assert tasks["retrieval"]["metrics"]["t2i_r1"] is not None and tasks["classification"]["metrics"]["top1"] is not None
    if images == 1:
        assert tasks["retrieval"]["metrics"]["i2t_r1"] == tasks["retrieval"]["metrics"]["t2i_r1"] == 100
        for task in ("masking", "reconstruction"):
            assert tasks[task]["status"] == "not run" and "at least 2 images" in tasks[task]["null_reasons"][METRICS[task][0]]


def test_a_locale_with_decimal_commas(root: Path, tmp_path: Path) -> None:
    """Numbers and files are as elsewhere: nothing goes through the locale, and Java is told its own."""
    words = ["--checkpoint", str(root / "run"), "--data-root", str(root / "sets"), "--sets", "flickr30k", "--device", "cpu"]
    words += ["--tasks", "retrieval", "captioning", "--caption-tokens", "4", "--cache", "off", "--precision", "fp32"]
    script = tmp_path / "script.py"
    script.write_text(
        f"import locale, sys\nsys.path[0] = {str(REPOSITORY)!r}\n"
        # no locale with commas need be installed: who asks for the separator is told this one
        "locale._override_localeconv.update(decimal_point=',', thousands_sep='.')\n"
        "from sycoca_ds.evaluate import main\nsys.exit(main())\n"
    )
    found = []
    for name, java in (("plain", "-Duser.language=en -Duser.country=US"), ("commas", "-Duser.language=de -Duser.country=DE")):
        environment = {**os.environ, "LC_ALL": "de_DE.UTF-8" if name == "commas" else "C.UTF-8", "JAVA_TOOL_OPTIONS": java}
        command = [sys.executable, str(script), *words, "--out", str(tmp_path / name)]
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        tasks = json.loads((tmp_path / name / "flickr30k/results.json").read_text())["tasks"]
        found.append({task: record["metrics"] for task, record in tasks.items()})
        rows = (tmp_path / name / "flickr30k/results.csv").read_text().splitlines()
        assert len({row.count(",") for row in rows if '"' not in row}) == 1
    assert found[0] == found[1]

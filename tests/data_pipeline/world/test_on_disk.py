"""Drawn worlds on disk: splits disjoint, labels and regions those of the scenes, the same seed gives the same world; the server."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_file
from data_pipeline.world.command import ScenesCommand
from data_pipeline.world.drawn.worlds import WORLDS
from data_pipeline.world.on_disk import ROW_TROUBLES, SLOW_ROWS, SPLITS, build_world, deal, trouble_count
from data_pipeline.world.server import PictureServer

SIZES = {"train": 120, "val": 24, "test": 40}


@pytest.fixture(scope="module", params=["demo", "hard"])
def world(request, tmp_path_factory) -> Path:
    """A drawn world's folder, once of either kind."""
    folder = tmp_path_factory.mktemp("world") / "w"
    build_world(folder, SIZES, 0, 8755, request.param)
    return folder


def record_of(folder: Path) -> dict:
    return json.loads((folder / "world.json").read_text())


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_no_description_occurs_twice_and_captions_hardly(name):
    splits = deal({"train": 1000, "val": 256, "test": 500}, 0, WORLDS[name])
    everything = [scene for good, spare in splits.values() for scene in (*good, *spare)]
    assert len({scene.identity for scene in everything}) == len(everything)
    captions = {scene.caption for scene in splits["test"][0]}
    assert len(captions) == 500 if name == "demo" else len(captions) >= 485


@pytest.mark.parametrize("name", sorted(WORLDS))
def test_a_larger_training_split_leaves_val_and_test_alone(name):
    small, large = (deal(sizes, 5, WORLDS[name]) for sizes in (SIZES, {**SIZES, "train": 300}))
    assert small["test"] == large["test"] and small["val"] == large["val"]
    assert small["train"][0] == large["train"][0][: SIZES["train"]]


def test_the_demo_world_is_the_one_that_was_always_drawn(tmp_path):
    """Digests of what 8913387 drew, before there was another world, masks and spans."""
    record = build_world(tmp_path / "w", SIZES, 0, 8755)
    assert record["pictures_sha256"] == "91b23ad269a9bacc6651f0be89b3aa12b2d331eb553fec349738d708b2cc9bc9"
    assert record["rows_sha256"] == "7f3e2ec069f6ddb96de09454356252043e3372d4f82aba4192ae3f7ff79f7914"
    for name, digest in {
        "test_labels": "6e5c74d741be1ffdfb6a6eae200aca12144d5f2d441e06c28683dfe7c1f91f1a",
        "test_questions": "ab3e08deed661cdb3c1982cd72dc5cdad3fcb1858a99ff21fddec1c773a5b90d",
    }.items():
        assert sha256_file(tmp_path / "w" / f"{name}.json") == digest
    first = "a large brown triangle in the south, a small red triangle in the north and a small brown square in the east"
    assert WORLDS["demo"].sample_scenes(1, 0)[0].caption == f"{first} on a cyan background"


def test_catalogue_and_labels(world):
    record = record_of(world)
    kind = WORLDS[record["world"]]
    splits, templates = deal(SIZES, 0, kind), kind.class_templates()
    for split, good in SIZES.items():
        table = pq.read_table(world / "catalogue" / f"{split}.parquet")
        assert table.column_names == ["SAMPLE_ID", "URL", "TEXT", "HEIGHT", "WIDTH", "LICENSE", "NSFW", "similarity"]
        assert table.num_rows == good + trouble_count(good) + SLOW_ROWS == record["counts"][split]["rows"]
        rows = table.to_pylist()
        prefix = f"http://127.0.0.1:8755/images/{split}/"
        clean = [row for row in rows if row["URL"].startswith(prefix)]
        assert len({row["URL"] for row in clean}) == good
        assert len(clean) == good + sum(kind == "duplicate" for kind in trouble_kinds(good))
        labels = json.loads((world / f"{split}_labels.json").read_text())
        assert labels["classes"] == list(kind.classes) and labels["templates"] == templates
        assert all(template.count("{c}") == 1 for template in labels["templates"]) and len(labels["templates"]) == 80
        assert set(labels["labels"]) == {row["URL"] for row in clean}
        texts = {row["URL"]: row["TEXT"] for row in clean}
        asked = json.loads((world / f"{split}_questions.json").read_text())["questions"]
        for number, scene in enumerate(splits[split][0]):
            url = f"{prefix}{number:06d}.jpg"
            assert texts[url] == scene.caption and labels["labels"][url] == scene.label
            entries = [{key: entry[key] for key in ("kind", "question", "answer")} for entry in asked if entry["url"] == url]
            assert entries == kind.questions(scene, 0)
        assert cv2.imread(str(world / "images" / split / "000000.jpg")).shape == (64, 64, 3)


def test_regions_say_which_pixels_show_what_and_which_words_name_it(world):
    kind = WORLDS[record_of(world)["world"]]
    for place, split in enumerate(SPLITS):
        regions = json.loads((world / f"{split}_regions.json").read_text())
        assert regions["format"] == 1
        scenes = deal(SIZES, 0, kind)[split][0]
        urls = [f"http://127.0.0.1:8755/images/{split}/{number:06d}.jpg" for number in range(SIZES[split])]
        assert list(regions["pictures"]) == urls
        for number, (url, scene) in enumerate(zip(urls, scenes, strict=True)):
            entry = regions["pictures"][url]
            assert set(entry) == {"mask", "caption", "objects", "background"} and entry["caption"] == scene.caption
            with Image.open(world / entry["mask"]) as mask:
                assert mask.mode == "L" and mask.size == (64, 64)
                seen = np.array(mask)
            picture, drawn = kind.paint(scene, (0, 4, place, number))
            assert np.array_equal(seen, drawn)
            stored = cv2.imread(str(world / "images" / split / f"{number:06d}.jpg"))[:, :, ::-1]
            assert np.abs(stored.astype(int) - picture).mean() < 12, "the mask's picture"
            labels = [entry["label"] for entry in entry["objects"]]
            assert labels == list(range(1, len(scene.names) + 1)) == sorted(set(np.unique(seen)) - {0})
            for words in (*entry["objects"], entry["background"]):
                assert words["named"] == (words["span"] is not None)
                if words["named"]:
                    start, end = words["span"]
                    assert words["name"] in entry["caption"][start:end]
                    assert not re.search(r"\w\w", entry["caption"][max(start - 1, 0) : start + 1]), "begins a word"
                    assert not re.search(r"\w\w", entry["caption"][end - 1 : end + 1]), "ends one"


def test_captions_that_nearly_fit_stand_in_sugarcrepes_layout(world):
    kind = WORLDS[record_of(world)["world"]]
    assert not (world / "train_sugarcrepe").exists()
    if kind.negatives is None:
        assert not (world / "test_sugarcrepe").exists()
        return
    scenes, found = deal(SIZES, 0, kind)["test"][0], 0
    for path in (world / "test_sugarcrepe").iterdir():
        for number, item in json.loads(path.read_text()).items():
            scene = scenes[int(number)]
            assert (world / "images/test" / item["filename"]).is_file() and item["filename"] == f"{int(number):06d}.jpg"
            assert item["caption"] == scene.caption and item["negative_caption"] == kind.negatives(scene, 0)[path.stem]
            found += 1
    assert found == sum(len(kind.negatives(scene, 0)) for scene in scenes) > len(scenes)


def trouble_kinds(good: int) -> list[str]:
    return [ROW_TROUBLES[number % len(ROW_TROUBLES)] for number in range(trouble_count(good))]


def test_same_seed_same_world_other_seed_other_world(world, tmp_path):
    name = record_of(world)["world"]
    again = build_world(tmp_path / "again", SIZES, 0, 8755, name)
    assert again == record_of(world)
    files = {path.relative_to(world): path for path in world.rglob("*") if path.is_file()}
    nearly_fitting = 2 * 6 if name == "hard" else 0
    assert len(files) == 2 * sum(SIZES.values()) + 3 * 4 + 1 + nearly_fitting
    for relative, path in files.items():
        assert (tmp_path / "again" / relative).read_bytes() == path.read_bytes(), relative
    other = build_world(tmp_path / "other", SIZES, 1, 8755, name)
    for digest in ("pictures_sha256", "masks_sha256", "rows_sha256"):
        assert other[digest] != again[digest]


def test_a_drawn_world_is_kept_and_another_one_refused(tmp_path):
    folder, sizes = tmp_path / "w", {"train": 3, "val": 2, "test": 2}
    first = build_world(folder, sizes, 0, 8755)
    stamp = (folder / "images/train/000000.jpg").stat().st_mtime_ns
    assert build_world(folder, sizes, 0, 8755) == first
    moved = build_world(folder, sizes, 0, 8756)
    assert (folder / "images/train/000000.jpg").stat().st_mtime_ns == stamp
    assert {key for key in first if first[key] != moved[key]} == {"port", "rows_sha256"}
    assert all(":8755/" not in url for url in pq.read_table(folder / "catalogue/val.parquet")["URL"].to_pylist())
    assert all(":8756/" in url for url in json.loads((folder / "val_regions.json").read_text())["pictures"])
    with pytest.raises(UserError, match="holds a demo world drawn with .* choose another --out"):
        build_world(folder, sizes, 1, 8755)
    command = ScenesCommand(out=folder, world="hard", train=3, val=2, test=2, port=8756, serve=False)
    with pytest.raises(UserError, match="holds a demo world .* asked for a hard world .* choose another --out") as refused:
        command.run()
    assert "\n" not in str(refused.value)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UserError, match="no finished world"):
        build_world(tmp_path / "foreign", sizes, 0, 8755)
    assert (tmp_path / "foreign" / "thesis.txt").exists()


def test_a_world_drawn_before_there_were_masks_gets_them(tmp_path):
    folder, sizes = tmp_path / "w", {"train": 3, "val": 2, "test": 2}
    first = build_world(folder, sizes, 0, 8755)
    whole = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    old = {key: value for key, value in first.items() if key not in ("world", "masks_sha256")}
    (folder / "world.json").write_text(json.dumps(old))
    shutil.rmtree(folder / "regions")
    for path in folder.glob("*_regions.json"):
        path.unlink()
    picture = folder / "images/train/000000.jpg"
    stamp = picture.stat().st_mtime_ns
    assert build_world(folder, sizes, 0, 8755) == first
    assert picture.stat().st_mtime_ns == stamp, "pictures are not drawn again"
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == whole


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_server_serves_pictures_of_its_root_and_nothing_else(world, tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "a b.jpg").write_bytes(b"picture")
    (root / "notes.txt").write_text("no picture")
    (root / "link.jpg").symlink_to(secret)
    with PictureServer(root, 0) as server:
        base = f"http://127.0.0.1:{server.port}"
        assert status(f"{base}/images/a%20b.jpg") == 200
        for path in (
            "notes.txt",
            "link.jpg",
            "../secret.jpg",
            "..%2fsecret.jpg",
            "%2e%2e/secret.jpg",
            str(secret),
            "",
            "none.jpg",
        ):
            assert status(f"{base}/images/{path}") == 404, path
        assert status(f"{base}/a%20b.jpg") == 404
        assert status(f"{base}/dead/x.jpg") == 404 and status(f"{base}/page/x.jpg") == 404, "troubles are off"
        with pytest.raises(UserError, match=f"--port {server.port}: cannot listen"):
            PictureServer(root, server.port)


@pytest.mark.timeout(60)
def test_scenes_command_serves_until_sigterm(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "data_pipeline",
        "scenes",
        "--out",
        str(tmp_path / "w"),
        "--train",
        "4",
        "--val",
        "2",
        "--test",
        "2",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()})
    try:
        deadline = time.monotonic() + 40
        while not (tmp_path / "w" / "world.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.3)
        assert status(f"http://127.0.0.1:{port}/images/test/000001.jpg") == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert "serving" in process.stderr.read()

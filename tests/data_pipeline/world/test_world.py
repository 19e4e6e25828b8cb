"""The drawn world: splits disjoint, captions tell everything, labels and answers are right, the same seed gives the
same world."""

import json
import os
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

from data_pipeline.errors import UserError
from data_pipeline.world.drawing import BACKGROUND_RGB, CELL, COLOR_RGB, OVERSAMPLE, draw
from data_pipeline.world.on_disk import ROW_TROUBLES, SLOW_ROWS, build_world, deal, trouble_count
from data_pipeline.world.scenes import BACKGROUNDS, CLASSES, COLORS, PLACES, SHAPES, questions, sample_scenes
from data_pipeline.world.server import PictureServer

SIZES = {"train": 120, "val": 24, "test": 40}


def parse(caption: str) -> tuple:
    """A caption back into (background, [(size, color, shape, place)]): it must tell everything."""
    words = caption.replace(",", "").replace(" and ", " ").split()
    place = next(i for i in range(len(words)) if words[i] == "background")
    background = words[place - 1]
    rest = " ".join(words[: place - 3] + words[place + 1 :])
    things = []
    for part in rest.split("a ")[1:] if not rest.startswith("a ") else rest[2:].split(" a "):
        size, color, shape, *where = part.split()
        things.append((size, color, shape, " ".join(where)))
    return background, things


def test_captions_tell_the_whole_scene():
    for scene in sample_scenes(400, seed=3):
        background, things = parse(scene.caption)
        assert background == BACKGROUNDS[scene.background]
        expected = [
            ("large" if thing is scene.main else "small", COLORS[thing.color], SHAPES[thing.shape], PLACES[thing.cell])
            for thing in (scene.main, *scene.others)
        ]
        assert things == expected
        assert 11 <= len(scene.caption.split()) <= 26
        assert CLASSES[scene.label] == f"{COLORS[scene.main.color]} {SHAPES[scene.main.shape]}"


def test_no_description_occurs_twice_and_captions_are_unique():
    splits = deal({"train": 3000, "val": 256, "test": 500}, seed=0)
    everything = [scene for good, spare in splits.values() for scene in (*good, *spare)]
    assert len({scene.identity for scene in everything}) == len(everything)
    assert len({scene.caption for scene in splits["test"][0]}) == 500


def test_a_larger_training_split_leaves_val_and_test_alone():
    small, large = deal(SIZES, 5), deal({**SIZES, "train": 500}, 5)
    assert small["test"] == large["test"] and small["val"] == large["val"]


def test_all_three_counts_and_all_classes_occur():
    scenes = sample_scenes(2000, seed=1)
    counts = np.bincount([1 + len(scene.others) for scene in scenes], minlength=4) / len(scenes)
    assert counts[0] == 0 and 0.05 < counts[1] < 0.15 and 0.38 < counts[2] < 0.52 and 0.38 < counts[3] < 0.52
    assert {scene.label for scene in scenes} == set(range(len(CLASSES)))


def test_pixels_show_what_the_description_says():
    """In the middle of its cell an object has its colour (a ring shows the background there)."""
    cell = CELL / OVERSAMPLE
    for number, scene in enumerate(sample_scenes(60, seed=2)):
        picture = draw(scene, (number,)).astype(float)
        for thing in (scene.main, *scene.others):
            row, column = divmod(thing.cell, 3)
            y, x = int((row + 0.5) * cell), int((column + 0.5) * cell)
            seen = picture[y - 1 : y + 2, x - 1 : x + 2].mean(axis=(0, 1))
            hole = SHAPES[thing.shape] == "ring"
            expected = BACKGROUND_RGB[BACKGROUNDS[scene.background]] if hole else COLOR_RGB[COLORS[thing.color]]
            assert np.abs(seen - expected).max() < 25, scene.caption


def test_two_pictures_of_one_description_differ_and_one_seed_repeats():
    scene = sample_scenes(1, seed=0)[0]
    assert np.array_equal(draw(scene, (1, 2)), draw(scene, (1, 2)))
    assert not np.array_equal(draw(scene, (1, 2)), draw(scene, (1, 3)))


def test_answers_follow_from_the_caption():
    for scene in sample_scenes(200, seed=4):
        background, things = parse(scene.caption)
        pairs = {f"{color} {shape}" for _, color, shape, _ in things}
        asked = questions(scene, 0)
        answers = {(entry["kind"], entry["question"]): entry["answer"] for entry in asked}
        assert answers["color", "what color is the large object?"] == things[0][1]
        assert answers["shape", "what shape is the large object?"] == things[0][2]
        assert answers["background", "what color is the background?"] == background
        assert answers["count", "how many objects are there?"] == ("one", "two", "three")[len(things) - 1]
        assert things[0][3].endswith(answers["place", f"where is the large {things[0][2]}?"])
        exists = [entry for entry in asked if entry["kind"] == "exists"]
        assert [entry["answer"] for entry in exists] == ["yes", "no"]
        for entry in exists:
            assert (entry["question"][len("is there a ") : -1] in pairs) == (entry["answer"] == "yes")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "w"
    build_world(folder, SIZES, seed=0, port=8755)
    return folder


def test_catalogue_and_labels(world):
    record = json.loads((world / "world.json").read_text())
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
        assert set(labels["labels"]) == {row["URL"] for row in clean}
        for row in clean:
            assert f"large {labels['classes'][labels['labels'][row['URL']]]} " in row["TEXT"]
        assert all("{c}" in template for template in labels["templates"])
        assert cv2.imread(str(world / "images" / split / "000000.jpg")).shape == (64, 64, 3)


def trouble_kinds(good: int) -> list[str]:
    return [ROW_TROUBLES[number % len(ROW_TROUBLES)] for number in range(trouble_count(good))]


def test_same_seed_same_world_other_seed_other_world(world, tmp_path):
    again = build_world(tmp_path / "again", SIZES, seed=0, port=8755)
    assert again == json.loads((world / "world.json").read_text())
    other = build_world(tmp_path / "other", SIZES, seed=1, port=8755)
    assert other["pictures_sha256"] != again["pictures_sha256"] and other["rows_sha256"] != again["rows_sha256"]


def test_a_drawn_world_is_kept_and_another_one_refused(tmp_path):
    folder, sizes = tmp_path / "w", {"train": 3, "val": 2, "test": 2}
    first = build_world(folder, sizes, 0, 8755)
    stamp = (folder / "images/train/000000.jpg").stat().st_mtime_ns
    assert build_world(folder, sizes, 0, 8755) == first
    moved = build_world(folder, sizes, 0, 8756)
    assert (folder / "images/train/000000.jpg").stat().st_mtime_ns == stamp
    assert moved["pictures_sha256"] == first["pictures_sha256"]
    assert all(":8755/" not in url for url in pq.read_table(folder / "catalogue/val.parquet")["URL"].to_pylist())
    with pytest.raises(UserError, match="holds a world drawn with .* choose another --out"):
        build_world(folder, sizes, 1, 8755)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UserError, match="no finished world"):
        build_world(tmp_path / "foreign", sizes, 0, 8755)
    assert (tmp_path / "foreign" / "thesis.txt").exists()


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

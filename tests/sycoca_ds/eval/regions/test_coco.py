"""COCO's instances: a small example written by hand from its description, with masks of all three kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as runs

from data_pipeline.errors import UserError
from sycoca_ds.eval.regions.coco import Coco
from sycoca_ds.eval.regions.reading import open_layout
from tests.worlds.data.one_picture import one_picture


def run_lengths(mask_HW: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: column by column, beginning with zeros."""
    counts, last, length = [], False, 0
    for pixel in mask_HW.T.reshape(-1):
        if pixel == last:
            length += 1
        else:
            counts.append(length)
            last, length = pixel, 1
    return [*counts, length]


BLOB = np.zeros((10, 20), bool)
BLOB[2:7, 11:16] = True
BLOB[4:9, 14:19] = True


@pytest.fixture
def coco_file(tmp_path: Path) -> Path:
    compressed = runs.encode(np.asfortranarray(BLOB.astype(np.uint8)))
    content = {
        "images": [
            {"id": 391895, "file_name": "COCO_val2014_000000391895.jpg", "height": 10, "width": 20},
            {"id": 5, "file_name": "000000000005.jpg", "height": 10, "width": 20},
        ],
        "categories": [
            {"id": 1, "name": "person"},
            {"id": 18, "name": "dog"},
            {"id": 58, "name": "hot dog"},
            {"id": 44, "name": "bottle"},
        ],
        "annotations": [
            {"image_id": 391895, "category_id": 1, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 9, 1, 9]]},
            {"image_id": 391895, "category_id": 1, "iscrowd": 1, "segmentation": {"size": [10, 20], "counts": run_lengths(BLOB)}},
            {
                "image_id": 391895,
                "category_id": 18,
                "iscrowd": 0,
                "segmentation": {"size": [10, 20], "counts": compressed["counts"].decode()},
            },
            {
                "image_id": 391895,
                "category_id": 44,
                "iscrowd": 0,
                "segmentation": [[6, 0, 8, 0, 8, 3, 6, 3], [6, 5, 8, 5, 8, 8, 6, 8]],
            },
        ],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations/instances_val2014.json"
    path.write_text(json.dumps(content))
    return path


def test_coco_masks_of_polygons_and_run_lengths(coco_file: Path) -> None:
    layout = open_layout(coco_file)
    assert isinstance(layout, Coco) and isinstance(open_layout(coco_file.parents[1]), Coco)
    annotated = layout.load(391895, "A man and two dogs with a hot dog")
    masks = {thing.name: thing.mask_HW for thing in annotated.things}
    body = np.zeros((10, 20), bool)
    body[1:9, 1:5] = True
    assert np.array_equal(masks["person"], body | BLOB), "a crowd is of its category; instances are one thing"
    assert np.array_equal(masks["dog"], BLOB)
    bottle = np.zeros((10, 20), bool)
    bottle[0:3, 6:8] = bottle[5:8, 6:8] = True
    assert np.array_equal(masks["bottle"], bottle), "an object of two polygons"
    assert np.array_equal(annotated.background_HW, ~(body | BLOB | bottle))
    assert {thing.name for thing in annotated.things if thing.named} == {"person", "dog"}
    said = [[annotated.sentence[start:end] for start, end in phrase.spans] for phrase in annotated.phrases]
    assert said == [["man"], ["dogs"]], "there is no dog in a hot dog"
    assert layout.load(5, "an empty street").things == ()


def test_coco_pictures_go_by_name_in_either_release_or_by_id(coco_file: Path) -> None:
    layout = open_layout(coco_file)
    urls = (
        "http://images.cocodataset.org/val2014/COCO_val2014_000000391895.jpg",
        "http://x/train2017/000000391895.jpg",
        "wds:a/391895",
    )
    assert [layout.find(one_picture(url)) for url in urls] == [391895] * 3
    assert layout.find(one_picture("http://x/000000000005.jpg")) == 5
    assert layout.find(one_picture("http://x/y.jpg", "000000005")) is None, "a running number of our own shards"


def test_coco_synonyms_beside_the_annotations(coco_file: Path) -> None:
    (coco_file.parent / "synonyms.txt").write_text("person, baker, Police Officer\ndog, puppy\n\n")
    layout = open_layout(coco_file)
    found = layout.load(391895, "police-officers with a puppy")
    assert {thing.name for thing in found.things if thing.named} == {"person", "dog"}


def test_coco_damage_is_named(coco_file: Path) -> None:
    content = json.loads(coco_file.read_text())
    content["annotations"][0]["segmentation"] = {"size": [4, 4], "counts": [16]}
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="an annotation of image 391895 is not as COCO's"):
        open_layout(coco_file).load(391895, "x")
    del content["images"][0]["height"]
    coco_file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"instances_val2014.json: not as COCO's instances \(KeyError\('height'\)\)"):
        open_layout(coco_file)

"""Classes of pixels, of every layout that has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.regions.reading import open_layout
from sycoca_ds.eval.regions.segments import middle, read_segments
from tests.worlds.data.named_squares import draw_squares, write_squares


def test_a_drawn_world_has_a_class_a_name(tmp_path: Path) -> None:
    squares = draw_squares(3)
    write_squares(tmp_path, squares)
    found = read_segments(tmp_path / "test_regions.json", Collection(tmp_path / "data", 48))
    assert found.there == [0, 1, 2] and set(found.classes) == {f"{colour} square" for s in squares for colour in s.colours}
    for number, square in enumerate(squares):
        names = np.array(["background", *found.classes])[found.labels(number)]
        expected = np.array(["background", *(f"{colour} square" for colour in square.colours)])[square.labels]
        np.testing.assert_array_equal(names, expected)
    content = json.loads((tmp_path / "test_regions.json").read_text())
    content["pictures"].pop(squares[1].url)
    (tmp_path / "test_regions.json").write_text(json.dumps(content))
    fewer = read_segments(tmp_path / "test_regions.json", Collection(tmp_path / "data", 48))
    assert fewer.there == [0, 2] and fewer.digest != found.digest


@pytest.mark.parametrize("shape", [(7, 11), (12, 5), (9, 9), (8, 13)])
def test_the_square_is_the_one_that_the_model_is_shown(shape: tuple[int, int]) -> None:
    """A picture whose pixels say where they are, at its own size."""
    place_HW3 = np.stack([*np.indices(shape), np.zeros(shape, int)], axis=2).astype(np.uint8)
    shown = eval_image(place_HW3, min(shape)).numpy()
    square = middle(np.arange(shape[0] * shape[1], dtype=np.int16).reshape(shape))
    np.testing.assert_array_equal(square, shown[0].astype(int) * shape[1] + shown[1])


def test_voc_borders_are_unsaid_and_its_classes_are_told(tmp_path: Path) -> None:
    (tmp_path / "SegmentationClass").mkdir()
    Image.fromarray(np.array([[0, 15, 255], [20, 1, 0]], np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    layout = open_layout(tmp_path)
    assert layout.labels("a").tolist() == [[0, 15, -1], [20, 1, 0]]
    assert len(layout.classes) == 20 and layout.classes[14] == "person"
    Image.fromarray(np.array([[21]], np.uint8)).save(tmp_path / "SegmentationClass/a.png")
    with pytest.raises(UserError, match="class 21, but there are 20"):
        layout.labels("a")


def test_of_coco_s_instances_the_smaller_lies_in_front(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")

    def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
        return [[left, top, right, top, right, bottom, left, bottom]]

    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}, {"id": 9, "name": "cup"}],
        "annotations": [
            {"image_id": 7, "category_id": 1, "segmentation": box(1, 1, 3, 4), "iscrowd": 0},
            {"image_id": 7, "category_id": 3, "segmentation": box(0, 0, 6, 5), "iscrowd": 0},
        ],
    }
    (tmp_path / "instances_val.json").write_text(json.dumps(content))
    layout = open_layout(tmp_path)
    assert layout.classes == ("person", "car", "cup"), "in the order of their ids"
    expected = np.zeros((6, 8), int)
    expected[:5, :6], expected[1:4, 1:3] = 2, 1
    np.testing.assert_array_equal(layout.labels(7), expected)

"""PASCAL VOC's layout: a small example written by hand from its description."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.eval.regions.reading import open_layout
from sycoca_ds.eval.regions.voc import Voc
from tests.worlds.data.one_picture import one_picture


def voc_folder(folder: Path, labels: np.ndarray) -> Path:
    (folder / "SegmentationClass").mkdir()
    image = Image.fromarray(labels, mode="P")
    image.putpalette([value for number in range(256) for value in (number, 255 - number, 7)])
    image.save(folder / "SegmentationClass" / "2007_000032.png")
    return folder


def test_voc_labels_are_classes_and_borders_are_nothing(tmp_path: Path) -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[:, :5], labels[:, 5], labels[:3, 8:12] = 15, 255, 1  # person, a border, aeroplane
    layout = open_layout(voc_folder(tmp_path, labels))
    assert isinstance(layout, Voc) and layout.find(one_picture("http://x/JPEGImages/2007_000032.jpg")) == "2007_000032"
    annotated = layout.load("2007_000032", "Two women look at an airplane and a woman in a car")
    assert {thing.name: (thing.named, int(thing.mask_HW.sum())) for thing in annotated.things} == {
        "aeroplane": (True, 12),
        "person": (True, 50),
    }
    assert annotated.background_HW.sum() == 200 - 50 - 12 - 10, "a border is neither object nor background"
    said = {
        tuple(annotated.things[n].name for n in phrase.things): [annotated.sentence[start:end] for start, end in phrase.spans]
        for phrase in annotated.phrases
    }
    assert said == {("aeroplane",): ["airplane"], ("person",): ["women", "woman"]}


def test_voc_classes_of_a_file_as_labelme_writes_it(tmp_path: Path) -> None:
    labels = np.zeros((10, 20), np.uint8)
    labels[:, :5], labels[:, 10:] = 1, 2
    folder = voc_folder(tmp_path, labels)
    (folder / "class_names.txt").write_text("__ignore__\n_background_\nred pipe\nvalve\n")
    annotated = open_layout(folder).load("2007_000032", "valves on a wall")
    assert [(thing.name, thing.named) for thing in annotated.things] == [("red pipe", False), ("valve", True)]
    (folder / "class_names.txt").write_text("_background_\nred pipe\n")
    with pytest.raises(UserError, match="class 2, but there are 1; list them in class_names.txt"):
        open_layout(folder).load("2007_000032", "valves on a wall")
    Image.new("RGB", (20, 10)).save(folder / "SegmentationClass" / "2007_000032.png")
    with pytest.raises(UserError, match="a picture of mode RGB, expected one number a pixel"):
        open_layout(folder).load("2007_000032", "valves on a wall")

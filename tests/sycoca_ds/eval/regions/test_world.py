"""The drawn world's regions: a small example written by hand from its description; test_patches.py has whole data sets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from sycoca_ds.eval.regions.reading import open_layout
from sycoca_ds.eval.regions.world import World
from tests.worlds.data.one_picture import one_picture


def test_world_objects_that_one_phrase_names_are_one_phrase(tmp_path: Path) -> None:
    objects = [
        {"label": 1, "name": "red star", "named": True, "span": [4, 13]},
        {"label": 2, "name": "red star", "named": True, "span": [4, 13]},
        {"label": 3, "name": "blue ring", "named": False, "span": None},
    ]
    background = {"name": "striped cyan", "named": True, "span": [17, 29]}
    record = {
        "mask": "regions/test/00000.png",
        "caption": "two red stars on striped cyan",
        "objects": objects,
        "background": background,
    }
    (tmp_path / "regions/test").mkdir(parents=True)
    labels = np.repeat(np.arange(4, dtype=np.uint8), 5)[None].repeat(10, 0)
    Image.fromarray(labels).save(tmp_path / "regions/test/00000.png")
    url = "http://127.0.0.1:8731/test/000000.jpg"
    for split, pictures in (("test", {url: record}), ("val", {})):
        (tmp_path / f"{split}_regions.json").write_text(json.dumps({"format": 1, "pictures": pictures}))
    layout = open_layout(tmp_path)
    assert isinstance(layout, World) and layout.find(one_picture("http://elsewhere/000000.jpg")) is None
    annotated = layout.load(layout.find(one_picture(url)), "Two red stars on striped cyan.")
    assert [(thing.name, thing.named, int(thing.mask_HW.sum())) for thing in annotated.things] == [
        ("red star", True, 50),
        ("red star", True, 50),
        ("blue ring", False, 50),
    ]
    assert [(phrase.spans, phrase.things) for phrase in annotated.phrases] == [(((4, 13),), (0, 1))]
    assert annotated.background_named and annotated.background_HW.sum() == 50
    (tmp_path / "test_regions.json").write_text(json.dumps({"format": 2, "pictures": {}}))
    with pytest.raises(UserError, match="format 2, expected 1; draw the world again"):
        open_layout(tmp_path / "test_regions.json")

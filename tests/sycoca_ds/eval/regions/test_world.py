"""The drawn world's regions: a small example written by hand from its description; test_patches.py has whole data sets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.shards.verify import verify
from data_pipeline.world.drawn.canvas import encode_jpeg, encode_mask
from data_pipeline.world.drawn.worlds import WORLDS
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.regions.patches import BACKGROUND, NAMED, NAMED_BACKGROUND, UNNAMED, read_regions
from sycoca_ds.eval.regions.reading import open_layout
from sycoca_ds.eval.regions.world import World
from tests.worlds.data.data_sets import parts, write_tar
from tests.worlds.data.one_picture import one_picture
from tests.worlds.trainings.eval_world import make_tokenizer


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


@pytest.mark.parametrize("name", WORLDS)
def test_regions_of_the_worlds_as_they_are_drawn(name: str, tmp_path: Path) -> None:
    """Their own records and masks: tokens read as the words, patches of a kind are mostly of its labels."""
    world, members, pictures, labels = WORLDS[name], [], {}, []
    scenes = world.sample_scenes(20, 3)
    (tmp_path / "regions").mkdir()
    for number, scene in enumerate(scenes):
        url, (picture, mask) = f"http://127.0.0.1/{number}.jpg", world.paint(scene, (3, number))
        record = pictures[url] = scene.regions(f"regions/{number}.png")
        (tmp_path / record["mask"]).write_bytes(encode_mask(mask))
        labels.append(mask)
        facts = {"uid": hashlib.sha256(url.encode()).hexdigest()[:16], "url": url, "width": mask.shape[1], "height": mask.shape[0]}
        members += parts(f"{number:09d}", jpg=encode_jpeg(picture), txt=scene.caption.encode(), json=json.dumps(facts).encode())
    write_tar(tmp_path / "data/shards/00000.tar", members)
    verify(tmp_path / "data", 1)
    (tmp_path / "test_regions.json").write_text(json.dumps({"format": 1, "pictures": pictures}))
    tokenizer = Tokenizer(make_tokenizer(tmp_path / "tokenizer.json"))
    found = read_regions(tmp_path / "test_regions.json", Collection(tmp_path / "data", 64), tokenizer, 8, 200)
    assert found.counts["annotated"] == 20
    named_phrases = 0
    for record, picture, label_HW in zip(pictures.values(), found.pictures, labels, strict=True):
        (ids,) = tokenizer.encode([record["caption"]], 200)
        said = {tokenizer.decode(ids[list(phrase.places)]) for phrase in picture.phrases}
        spans = {record["caption"][slice(*thing["span"])] for thing in record["objects"] if thing["named"]}
        assert said <= spans
        named_phrases += len(spans)
        patches = label_HW.reshape(8, 8, 8, 8).swapaxes(1, 2).reshape(64, 64)  # as stored: 64 pixels, no resizing
        named = [thing["label"] for thing in record["objects"] if thing["named"]]
        unnamed = [thing["label"] for thing in record["objects"] if not thing["named"]]
        ground = NAMED_BACKGROUND if record["background"]["named"] else BACKGROUND
        for kind, of in ((NAMED, named), (UNNAMED, unnamed), (ground, [0])):
            assert (np.isin(patches[picture.has(kind)], of).mean(1) >= 0.5).all(), kind
        assert not picture.has({NAMED_BACKGROUND: BACKGROUND, BACKGROUND: NAMED_BACKGROUND}[ground]).any()
    assert found.counts["phrases"] > 0.8 * named_phrases

"""Sets of pictures and captions as they are published, made into data set folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.__main__ import parse
from data_pipeline.errors import UserError
from data_pipeline.local.captions import read_captions
from data_pipeline.shards.manifest import Manifest
from sycoca_ds.eval.collection import Collection
from tests.worlds.published.captioned import MSCOCO, write_flickr, write_mscoco


def samples(out: Path) -> dict[str, list[str]]:
    """{path of the picture: captions}."""
    data = Collection(out, 32)
    pairs = zip(data.pictures, data.captions_of_image, strict=True)
    return {picture.url.removeprefix("folder:").split("#")[0]: sorted(captions) for picture, captions in pairs}


@pytest.mark.slow
def test_published_sets_become_data_set_folders(tmp_path: Path) -> None:
    """By Karpathy's list; COCO's pictures lie in two folders and share names."""
    flickr, coco = write_flickr(tmp_path), write_mscoco(tmp_path)
    places = {
        "flickr": (flickr / "flickr30k-images", flickr / "dataset_flickr30k.json", "test", 2),
        "train": (coco, coco / "dataset_coco.json", "train restval", 2),
        "all": (coco, coco / "dataset_coco.json", "", len(MSCOCO)),
    }
    for name, (pictures, captions, split, count) in places.items():
        line = f"build --source folder --pictures {pictures} --captions {captions} --out {tmp_path / name} --image-size 32"
        line += " --min-image-size 1"
        assert parse([*line.split(), *(["--captions-split", *split.split()] if split else [])]).run() == 0
        assert Manifest.load(tmp_path / name).kept == count
    images = {image["filename"]: image for image in json.loads((flickr / "dataset_flickr30k.json").read_text())["images"]}
    expected = {name: sorted(" ".join(said["raw"].split()) for said in image["sentences"]) for name, image in images.items()}
    found = {name: sorted(captions) for name, captions in samples(tmp_path / "flickr").items()}
    assert found == {name: expected[name] for name, image in images.items() if image["split"] == "test"}
    assert set(samples(tmp_path / "train")) == {"train2014/same.jpg", "val2014/b.jpg"}
    for words, said in (
        ("--captions-split testing", "--captions-split testing: no picture of .* is in it; there are test, train, val$"),
        ("--captions-split test --url-col file", "--url-col: names a column, and captions here are no table"),
    ):
        line = f"build --source folder --pictures {flickr} --captions {flickr}/dataset_flickr30k.json --out {tmp_path / 'no'}"
        with pytest.raises(UserError, match=said):
            parse(f"{line} {words}".split()).run()
    with pytest.raises(UserError, match="--captions-split: goes with --captions FILE.json"):
        parse(f"build --source folder --pictures {flickr} --captions-split test --out {tmp_path / 'no'}".split()).run()
    (tmp_path / "list.json").write_text('{"images": [{"file_name": "1.jpg"}]}')
    with pytest.raises(UserError, match=r"list.json: KeyError: 'filename'; expected a list as Karpathy's, \{\"images\""):
        list(read_captions(flickr, str(tmp_path / "list.json"), None, None)[1])

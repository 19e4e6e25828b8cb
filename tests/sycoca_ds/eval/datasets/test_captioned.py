"""Karpathy's json, COCO's own, NoCaps: pictures, captions and ids, by hand from the json."""

import functools
import json
import operator

import pytest

from sycoca_ds.eval.datasets.reading import Damaged
from sycoca_ds.eval.datasets.registry import SETS
from tests.worlds.published.captioned import MSCOCO, write_coco_captions, write_flickr, write_mscoco, write_nocaps
from tests.worlds.published.pictures import colour


def colours(read):
    return [tuple(read.pictures.pixels(number)[0, 0].tolist()) for number in range(len(read))]


def test_flickr(tmp_path):
    write_flickr(tmp_path)
    root, read = SETS["flickr30k"].open(tmp_path, "test")
    assert root == tmp_path / "Flickr30K"
    assert list(read.pictures.names) == ["1000.jpg", "998.jpg"] and read.ids == ()
    assert colours(read) == [colour(0), colour(2)] and read.pictures.missing() == []
    assert read.captions == tuple(tuple(f"Caption {k}, of picture {n}." for k in range(5)) for n in (0, 2))
    assert [list(SETS["flickr30k"].open(tmp_path, split)[1].pictures.names) for split in ("train", "val")] == [
        ["999.jpg"],
        ["997.jpg"],
    ]


@pytest.mark.parametrize("split", ["train", "restval", "val", "test"])
def test_mscoco_keeps_all_captions_and_tells_folders_apart(tmp_path, split):
    write_mscoco(tmp_path)
    _, read = SETS["mscoco"].open(tmp_path, split)
    mine = [(number, *row) for number, row in enumerate(MSCOCO) if row[3] == split]
    assert list(read.pictures.names) == [f"{filepath}/{name}" for _, filepath, name, *_ in mine]
    assert read.ids == tuple(str(cocoid) for _, _, _, cocoid, *_ in mine)
    assert colours(read) == [colour(10 + number) for number, *_ in mine]
    assert read.captions == tuple(
        tuple(f"A {name[0]} number {k} of {cocoid}" for k in range(count)) for _, _, name, cocoid, _, count in mine
    )


def test_mscoco_below_images(tmp_path):
    folder = write_mscoco(tmp_path)
    (folder / "images").mkdir()
    for name in ("val2014", "train2014"):
        (folder / name).rename(folder / "images" / name)
    assert colours(SETS["mscoco"].open(tmp_path, "test")[1]) == [colour(10), colour(13), colour(15)]


def test_damaged_karpathy(tmp_path):
    path = write_mscoco(tmp_path) / "dataset_coco.json"
    good = json.loads(path.read_text())

    def broken(message, change):
        content = json.loads(json.dumps(good))
        change(content["images"])
        path.write_text(json.dumps(content))
        with pytest.raises(Damaged, match=message):
            SETS["mscoco"].open(tmp_path, "test")

    broken("sentences other than its sentids", lambda images: images[0]["sentids"].pop())
    broken("'raw'", lambda images: images[0]["sentences"][0].pop("raw"))
    broken("picture val2014/same.jpg stands more than once", lambda images: images[3].update(filename="same.jpg"))
    broken("id 391895 stands more than once", lambda images: images[3].update(cocoid=391895))
    broken("no path within the set's folder", lambda images: images[3].update(filename="../../../secret.jpg"))
    broken("no image of split test", lambda images: [image.update(split="train") for image in images])
    path.write_text('{"images": [')
    with pytest.raises(Damaged, match="not readable as JSON"):
        SETS["mscoco"].open(tmp_path, "test")


def test_coco_captions_by_image(tmp_path):
    folder = write_coco_captions(tmp_path)
    _, read = SETS["coco_captions"].open(tmp_path, "val2017")
    assert list(read.pictures.names) == [f"val2017/{number:012d}.jpg" for number in (42, 7, 99)]
    assert read.ids == ("42", "7", "99") and colours(read) == [colour(20), colour(21), colour(22)]
    assert read.captions == (("forty-two", "again forty-two"), ("seven, first", "seven, second"), ("ninety-nine",))
    path = folder / "annotations/captions_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"].append({"image_id": 1, "caption": "of no picture"})
    path.write_text(json.dumps(content))
    with pytest.raises(Damaged, match="captions of 1 images that it does not list, the first 1"):
        SETS["coco_captions"].open(tmp_path, "val2017")


def test_nocaps_has_domains_and_keeps_the_captions_of_test_back(tmp_path):
    write_nocaps(tmp_path)
    _, read = SETS["nocaps"].open(tmp_path, "val")
    assert read.group_N == ("in-domain", "out-domain", "near-domain", "out-domain") and read.ids == ("0", "1", "2", "3")
    assert read.captions[2] == tuple(f"thing 2 said {n}" for n in range(10))
    assert read.no_groups == "" and read.notes == ()
    _, hidden = SETS["nocaps"].open(tmp_path, "test")
    assert hidden.no_groups == "" and hidden.notes == ()
    assert hidden.captions is None and hidden.group_N is None and hidden.ids == ("4500", "4501")
    assert colours(hidden) == [colour(35), colour(36)]


def test_nocaps_with_pictures_of_no_domain_has_none_and_says_so(tmp_path):
    path = write_nocaps(tmp_path) / "nocaps_val_4500_captions.json"
    content = json.loads(path.read_text())
    del content["images"][2]["domain"]
    path.write_text(json.dumps(content))
    _, read = SETS["nocaps"].open(tmp_path, "val")
    assert read.group_N is None
    assert read.notes == ("nocaps_val_4500_captions.json gives no domain for 1 of its 4 pictures",) == (read.no_groups,)


@pytest.mark.parametrize("caption", [None, 7, ["a", "b"]])
def test_what_is_no_text_is_no_caption(tmp_path, caption):
    """str() would make the word None of a null."""
    write_coco_captions(tmp_path)
    write_flickr(tmp_path)
    for name, split, path, (*steps, last), whose in (
        ("flickr30k", "test", "Flickr30K/dataset_flickr30k.json", ("images", 2, "sentences", 1, "raw"), "998.jpg"),
        ("coco_captions", "val2017", "coco/annotations/captions_val2017.json", ("annotations", 3, "caption"), "image 99"),
    ):
        content = json.loads((tmp_path / path).read_text())
        functools.reduce(operator.getitem, steps, content)[last] = caption
        (tmp_path / path).write_text(json.dumps(content))
        with pytest.raises(Damaged, match=f"{whose} has .* in place of a caption, expected a text"):
            SETS[name].open(tmp_path, split)

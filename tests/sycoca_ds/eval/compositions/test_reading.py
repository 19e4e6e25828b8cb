"""The published layouts, and what is said of those that are not there or not as published."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.world.on_disk import build_world
from sycoca_ds.eval.compositions.aro import SYMMETRIC
from sycoca_ds.eval.compositions.items import Item, View
from sycoca_ds.eval.compositions.reading import read_compositions
from tests.worlds.data.nearly_fitting import SUBSETS, change, write_aro, write_sugarcrepe, write_winoground


def refused(text: str, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        read_compositions([text])
    said = str(error.value)
    assert "\n" not in said and all(part in said for part in parts), said


def test_sugarcrepe(tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path, items=2)
    change(tmp_path / "swap_att.json", "1", caption="a cat\u2028 and a dog", negative_caption="")
    (found,) = read_compositions([f"sugarcrepe={tmp_path}"])
    assert [item.group for item in found.items] == [subset for subset in SUBSETS for _ in range(2)]
    view = View(tmp_path / "val2017/000000000001.png")
    assert Item("swap_att/1", "swap_att", (view,), ("a cat\u2028 and a dog", "")) in found.items
    assert found.counted == SUBSETS and found.missing == {}
    assert found.told() == f"compositions (SugarCrepe): 14 items on 2 pictures of {tmp_path}"


def test_sugarcrepe_in_its_repository_with_coco_elsewhere_and_without_a_subset(tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path / "sugar-crepe/data", items=2, subsets=SUBSETS[:-1])
    (tmp_path / "sugar-crepe/data/val2017").rename(tmp_path / "coco")
    (found,) = read_compositions([f"sugarcrepe={tmp_path / 'sugar-crepe'},{tmp_path / 'coco'}"])
    assert found.missing == {"swap_obj": f"{tmp_path / 'sugar-crepe/data/swap_obj.json'} is not there"}
    assert found.items[0].views == (View(tmp_path / "coco/000000000000.png"),)


def test_the_drawn_worlds_own(tmp_path: Path) -> None:
    build_world(tmp_path / "w", {"train": 1, "val": 1, "test": 12}, 0, 8755, "hard")
    (found,) = read_compositions([f"sugarcrepe={tmp_path / 'w/test_sugarcrepe'},{tmp_path / 'w/images/test'}"])
    assert set(found.missing) == {"add_att"} and len(found.items) > 36
    assert found.items[0].views[0].load(48).shape == (3, 48, 48)


def test_winoground(tmp_path: Path) -> None:
    write_winoground(tmp_path / "data", items=3)
    (tmp_path / "data/images/ex_2_img_1.png").rename(tmp_path / "data/images/ex_2_img_1.jpg")
    (found,) = read_compositions([f"winoground={tmp_path}"])
    images = tmp_path / "data/images"
    assert [item.name for item in found.items] == ["0", "1", "2"]
    assert found.items[2].views == (View(images / "ex_2_img_0.png"), View(images / "ex_2_img_1.jpg"))
    assert found.items[0].captions == ("a red square", "a green square")


def test_aro_and_which_of_its_groups_count(tmp_path: Path) -> None:
    pairs = [("white", "black")] * 25 + [("old", "round")] * 24
    write_aro(tmp_path, ["to the left of", "next to", "on", "to the left of"], pairs)
    change(tmp_path / "visual_genome_relation.json", 1, bbox_x=3, bbox_y=4, bbox_w=10, bbox_h=6)
    relation, attribution = read_compositions([f"aro={tmp_path}"])
    assert relation.counted == ("on", "to the left of") and attribution.counted == ("white_black",)
    assert relation.items[1].views == (View(tmp_path / "images/relation1.png", (3, 4, 13, 10)),)
    assert relation.items[0].captions == ("a red square", "a green square"), "the true caption stands first"
    assert len(SYMMETRIC) > 150 and {"next to", "attached to", "around", "flying through"} <= SYMMETRIC
    assert not SYMMETRIC & {"on", "under", "to the left of", "to the right of", ""}


def test_one_of_aros_files_is_enough(tmp_path: Path) -> None:
    write_aro(tmp_path, ["on"], [])
    assert [found.name for found in read_compositions([f"aro={tmp_path}"])] == ["vg_relation"]


def test_the_digest_changes_with_what_numbers_depend_on(tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path, items=2)

    def digest() -> str:
        return read_compositions([f"sugarcrepe={tmp_path}"])[0].digest

    first = digest()
    assert digest() == first
    change(tmp_path / "add_obj.json", "0", caption="another caption")
    second = digest()
    picture = tmp_path / "val2017/000000000001.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert len({first, second, digest()}) == 3


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sugarcrepe", ("add_att.json", "swap_obj.json", "github.com/RAIVNLab/sugar-crepe")),
        ("winoground", ("examples.jsonl", "images.zip", "huggingface.co/datasets/facebook/winoground")),
        ("aro", ("visual_genome_relation.json", "visual_genome_attribution.json", "github.com/mertyg")),
    ],
)
def test_an_empty_folder_is_told_what_belongs_there_and_whence(tmp_path: Path, name: str, parts: tuple[str, ...]) -> None:
    refused(f"{name}={tmp_path}", str(tmp_path), *parts)


def test_missing_pictures_are_counted_and_told_whence(tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path / "s", items=3)
    for number in (1, 2):
        (tmp_path / f"s/val2017/{number:012d}.png").unlink()
    refused(f"sugarcrepe={tmp_path / 's'}", "2 of 3 pictures are not there", "000000000001.png", "val2017.zip", "cocodataset.org")
    write_winoground(tmp_path / "w", items=2)
    (tmp_path / "w/images/ex_1_img_1.png").unlink()
    refused(f"winoground={tmp_path / 'w'}", "1 of 4 pictures", "ex_1_img_1.png", "images.zip", "huggingface.co")
    write_aro(tmp_path / "a", ["on"], [])
    (tmp_path / "a/images/relation0.png").unlink()
    refused(f"aro={tmp_path / 'a'}", "1 of 1 pictures", "relation0.png", "vgr_vga_images.zip")


def test_damaged_files(tmp_path: Path) -> None:
    write_sugarcrepe(tmp_path / "s", items=2)
    change(tmp_path / "s/add_att.json", "1", negative_caption=None)
    refused(f"sugarcrepe={tmp_path / 's'}", "add_att.json, 1: expected", "negative_caption is none")
    (tmp_path / "s/add_att.json").write_text("[1]")
    refused(f"sugarcrepe={tmp_path / 's'}", "add_att.json", "list")
    (tmp_path / "s/add_att.json").write_text('{"0": ')
    refused(f"sugarcrepe={tmp_path / 's'}", "add_att.json", "not readable as JSON")
    write_winoground(tmp_path / "w", items=1)
    (tmp_path / "w/examples.jsonl").write_text(json.dumps({"id": 0, "image_0": "ex_0_img_0"}))
    refused(f"winoground={tmp_path / 'w'}", "line 1", "image_1 is none")
    (tmp_path / "w/examples.jsonl").write_text("\n{")
    refused(f"winoground={tmp_path / 'w'}", "line 2, is no JSON")
    (tmp_path / "w/examples.jsonl").write_text("\n")
    refused(f"winoground={tmp_path / 'w'}", "has no items")
    write_aro(tmp_path / "a", ["on"], [("white", "black")])
    change(tmp_path / "a/visual_genome_relation.json", 0, bbox_w="20")
    refused(f"aro={tmp_path / 'a'}", "visual_genome_relation.json, item 0", "whole pixels")
    change(tmp_path / "a/visual_genome_relation.json", 0, bbox_w=20)
    change(tmp_path / "a/visual_genome_attribution.json", 0, attributes=["white"])
    refused(f"aro={tmp_path / 'a'}", "visual_genome_attribution.json, item 0", "attributes, a list of two texts")
    (tmp_path / "a/visual_genome_attribution.json").write_text("[]")
    refused(f"aro={tmp_path / 'a'}", "expected a list of items")


def test_how_they_are_given(tmp_path: Path) -> None:
    refused("sugarcrape=/x", "NAME=FOLDER,PICTURES", "sugarcrepe, winoground, aro", "did you mean sugarcrepe?")
    refused("sugarcrepe", "expected sugarcrepe=FOLDER")
    refused("sugarcrepe=/nowhere", "/nowhere is no folder")
    refused(f"winoground={tmp_path},/nowhere", "/nowhere is no folder")
    write_winoground(tmp_path, items=1)
    with pytest.raises(UserError, match="winoground is given twice"):
        read_compositions([f"winoground={tmp_path}"] * 2)
    assert read_compositions([]) == ()

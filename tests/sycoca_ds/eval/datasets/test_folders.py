"""ImageNet and its relatives, Caltech-101: which class has which number."""

import numpy as np
import pytest
from PIL import Image

from sycoca_ds.eval.datasets.reading import Absent, Damaged
from sycoca_ds.eval.datasets.registry import SETS
from tests.worlds.published.classed import (
    WNIDS,
    write_caltech,
    write_imagenet_folders,
    write_imagenet_kit,
    write_imagenet_v2,
)
from tests.worlds.published.pictures import colour, write_picture


def test_imagenet_by_folders(tmp_path):
    root = write_imagenet_folders(tmp_path)
    found, read = SETS["imagenet1k"].open(tmp_path, "val")
    assert found == root and read.keys == tuple(sorted(WNIDS[:3] + WNIDS[4:]))
    assert read.classes == ("tench", "goldfish", "great white shark", "crane")
    assert list(read.pictures.names) == [
        "val/n01440764/ILSVRC2012_val_00000005.JPEG",
        "val/n01443537/ILSVRC2012_val_00000002.JPEG",
        "val/n01443537/ILSVRC2012_val_00000009.JPEG",
        "val/n03126707/ILSVRC2012_val_00000001.JPEG",
    ]
    assert read.label_N.tolist() == [0, 1, 1, 3], "the class without pictures keeps its number"
    assert read.notes == ("1 files that are no pictures left out: val/n01443537/Thumbs.db",)
    assert read.pictures.pixels(0)[0, 0].tolist() == list(colour(42))
    for number in (1, 2):  # CMYK and grey, against Pillow
        with Image.open(root / read.pictures.names[number]) as picture:
            assert picture.mode == ("CMYK", "L")[number - 1]
            expected = np.asarray(picture.convert("RGB")).astype(int)
        assert read.pictures.pixels(number).shape == (16, 12, 3)
        assert np.abs(read.pictures.pixels(number) - expected).max() <= 3


def test_loose_pictures_beside_class_folders_are_said(tmp_path):
    root = write_imagenet_folders(tmp_path)
    write_picture(root / "val/ILSVRC2012_val_00000077.JPEG", 1)
    _, read = SETS["imagenet1k"].open(tmp_path, "val")
    assert len(read) == 4 and "1 pictures in val/ itself" in read.notes[1] and "00000077" in read.notes[1]


def test_imagenet_by_the_development_kit(tmp_path):
    """Its ids are not in the order of WordNet's: 1 is the fourth of the sorted ids, 5 the first. By hand from meta.mat."""
    folder = write_imagenet_kit(tmp_path)
    _, read = SETS["imagenet1k"].open(tmp_path, "val")
    assert read.keys == WNIDS and read.classes == ("tench", "goldfish", "great white shark", "crane", "crane")
    assert read.label_N.tolist() == [4, 0, 1, 3, 0, 2]  # truth 3, 5, 2, 1, 5, 4
    assert read.pictures.pixels(3)[0, 0].tolist() == list(colour(54))
    (folder / "val/ILSVRC2012_val_00000002.JPEG").unlink()  # shifts no label
    _, read = SETS["imagenet1k"].open(tmp_path, "val")
    assert read.label_N.tolist() == [4, 1, 3, 0, 2]


@pytest.mark.parametrize("truth", [(3, 5, 2), (3, 5, 2, 1, 5, 6), (3, 5, 2, 1, 5, "x")])
def test_lists_of_the_development_kit_that_do_not_fit(tmp_path, truth):
    folder = write_imagenet_kit(tmp_path)
    path = folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    path.write_text("".join(f"{number}\n" for number in truth))
    with pytest.raises(Damaged, match="does not say the class of every picture"):
        SETS["imagenet1k"].open(tmp_path, "val")


def test_published_pictures_need_the_development_kit(tmp_path):
    folder = write_imagenet_kit(tmp_path)
    (folder / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no matlab")
    with pytest.raises(Damaged, match="expected, a MATLAB file with synsets"):
        SETS["imagenet1k"].open(tmp_path, "val")
    (folder / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()
    with pytest.raises(Damaged, match="no ILSVRC2012_devkit_t12/data/meta.mat"):
        SETS["imagenet1k"].open(tmp_path, "val")


def test_imagenet_v2_counts_and_does_not_spell(tmp_path):
    """As texts its folders are sorted 0, 1, 10, 100, 2: label 2 would be folder 10's."""
    write_imagenet_v2(tmp_path)
    _, read = SETS["imagenet_v2"].open(tmp_path, "test")
    assert read.label_N.tolist() == [0, 0, 1, 1, 2, 2, 10, 10, 100, 100, 999, 999]
    assert list(read.pictures.names)[4:8] == ["2/a.jpeg", "2/b.jpeg", "10/a.jpeg", "10/b.jpeg"]
    assert len(read.classes) == 1000 and read.keys[10] == "10"
    assert read.pictures.pixels(7)[0, 0].tolist() == list(colour(11))


@pytest.mark.parametrize("name", ["1000", "n01440764", "007", "²"])
def test_imagenet_v2_refuses_other_folders(tmp_path, name):
    (write_imagenet_v2(tmp_path) / name).mkdir()
    with pytest.raises(Damaged, match=f"folder {name}; expected the numbers of classes, 0 to 999"):
        SETS["imagenet_v2"].open(tmp_path, "test")


def test_imagenet_a_within_a_folder_of_its_name(tmp_path):
    root = write_imagenet_folders(tmp_path, "imagenet_a/imagenet-a", listed=None)
    (root / "imagenet-a/README.txt").write_text("ImageNet-A\n\nn01443537 goldfish\nn01440764 tench\n")
    found, read = SETS["imagenet_a"].open(tmp_path, "test")
    assert found == root / "imagenet-a" and read.classes == ("tench", "goldfish", "n01484850", "n03126707")
    assert read.pictures.names[0] == "n01440764/ILSVRC2012_val_00000005.JPEG" and read.label_N.tolist() == [0, 1, 1, 3]


def test_a_folder_without_classes(tmp_path):
    """It may hold the set as parquet: of the official files there is nothing."""
    (tmp_path / "imagenet-r/data").mkdir(parents=True)
    with pytest.raises(Absent, match=r"no n\[0-9\]\?+/ in .*imagenet-r; expected imagenet-r/ with"):
        SETS["imagenet_r"].open(tmp_path, "test")
    (tmp_path / "imagenet/val").mkdir(parents=True)
    with pytest.raises(Absent, match="or val/ILSVRC2012_val_"):
        SETS["imagenet1k"].open(tmp_path, "val")


def test_caltech_without_and_with_its_background(tmp_path):
    write_caltech(tmp_path)
    _, read = SETS["caltech101"].open(tmp_path, "all")
    assert read.classes == ("Faces", "Faces_easy", "Leopards", "accordion", "yin_yang")
    assert read.label_N.tolist() == [0, 1, 2, 3, 3, 4]
    assert read.pictures.names[1] == "Faces_easy/image_0001.jpg"
    assert read.pictures.pixels(1)[0, 0].tolist() == list(colour(63))
    grey = read.pictures.pixels(3)
    assert grey.shape[2] == 3 and (grey[..., 0] == grey[..., 2]).all()
    _, read = SETS["caltech101"].open(tmp_path, "background")
    assert read.classes[:2] == ("BACKGROUND_Google", "Faces") and read.label_N.tolist() == [0, 0, 0, 1, 2, 3, 4, 4, 5]

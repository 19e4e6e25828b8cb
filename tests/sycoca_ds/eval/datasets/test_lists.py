"""Sets with lists beside a folder of pictures: order, labels from 0, names of classes, by hand from the lists."""

import numpy as np
import pytest

from sycoca_ds.eval.datasets.reading import Damaged
from sycoca_ds.eval.datasets.registry import SETS
from tests.worlds.published.listed import write_cub, write_dogs, write_dtd, write_flowers, write_food, write_pets
from tests.worlds.published.pictures import colour

WORLD = {  # name: writer, split, names of pictures, labels, classes, numbers of colours
    "dtd": (
        write_dtd,
        "test",
        ["images/zigzagged/z_1.jpg", "images/dotted/d_3.jpg"],
        [2, 1],
        ("banded", "dotted", "zigzagged"),
        [81, 83],
    ),
    "pets": (
        write_pets,
        "test",
        ["images/Bengal_1.jpg", "images/Abyssinian_2.jpg", "images/american_bulldog_7.jpg"],
        [2, 0, 1],
        ("Abyssinian", "american_bulldog", "Bengal"),
        [93, 92, 91],
    ),
    "dogs": (
        write_dogs,
        "test",
        ["Images/n02113978-Mexican_hairless/n02113978_5.jpg", "Images/n02085620-Chihuahua/n02085620_0.jpg"],
        [2, 0],
        ("Chihuahua", "Japanese_spaniel", "Mexican_hairless"),
        [100, 101],
    ),
    "cub200": (
        write_cub,
        "test",
        ["images/001.Black_footed_Albatross/a_0046.jpg", "images/010.Red_winged_Blackbird/d.jpg"],
        [0, 2],
        ("Black_footed_Albatross", "Laysan_Albatross", "Red_winged_Blackbird"),
        [111, 120],
    ),
    "flowers102": (
        write_flowers,
        "test",
        [f"jpg/image_{number:05d}.jpg" for number in (6, 1, 3, 4)],
        [0, 76, 101, 76],
        tuple(str(number) for number in range(1, 103)),
        [136, 131, 133, 134],
    ),
    "food101": (
        write_food,
        "test",
        ["images/waffles/7.jpg", "images/apple_pie/1005649.jpg"],
        [2, 0],
        ("apple_pie", "baby_back_ribs", "waffles"),
        [141, 140],
    ),
}
OTHER = {
    "dtd": {"train": [1], "val": [0]},
    "pets": {"trainval": [0, 1]},
    "dogs": {"train": [1, 0]},
    "cub200": {"train": [1, 0]},
    "flowers102": {"train": [0], "val": [2]},
    "food101": {"train": [0]},
}
"""Labels of the other splits."""


@pytest.mark.parametrize("name", WORLD)
def test_lists(tmp_path, name):
    writer, split, names, labels, classes, numbers = WORLD[name]
    writer(tmp_path)
    _, read = SETS[name].open(tmp_path, split)
    assert list(read.pictures.names) == names and read.label_N.tolist() == labels and read.classes == classes
    assert [tuple(read.pictures.pixels(k)[0, 0].tolist()) for k in range(len(read))] == [colour(number) for number in numbers]
    assert read.label_N.dtype == np.int64 and read.pictures.missing() == []
    found = {other: SETS[name].open(tmp_path, other)[1].label_N.tolist() for other in SETS[name].counts if other != split}
    assert found == OTHER[name]


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("dtd", "labels/test1.txt", "spotted/s.jpg\n", "a picture of class 'spotted', of which there is no folder"),
        ("food101", "meta/test.txt", "pizza/1\n", "class 'pizza', of which there is no meta/classes.txt"),
        ("pets", "annotations/test.txt", "Bengal_1 x 1 2\n", "'Bengal_1 x 1 2' is no line of picture"),
        ("pets", "annotations/test.txt", "Bengal_1 3 1 2\nBirman_1 3 1 2\n", "class 3 is Bengal and Birman"),
        ("pets", "annotations/test.txt", "# nothing\n", "lists no picture"),
        ("cub200", "image_class_labels.txt", "1 1\n2 2\n", "are of other pictures"),
        ("cub200", "image_class_labels.txt", "1 1 1\n", "'1 1 1' is no line of int int"),
        ("cub200", "image_class_labels.txt", "1 7\n2 2\n3 1\n10 10\n", "a_0046.jpg has class -1"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, name, file, text, message):
    folder = WORLD[name][0](tmp_path)
    (folder / file).write_text(text)
    with pytest.raises(Damaged, match=message):
        SETS[name].open(tmp_path, "test")


def test_matlab_lists_that_do_not_fit(tmp_path):
    from scipy.io import savemat

    folder = write_dogs(tmp_path)
    (folder / "Images/n02085700-Another").mkdir()  # shifts the numbers behind it
    with pytest.raises(Damaged, match="Mexican_hairless/n02113978_5.jpg has class 3, which is not the place"):
        SETS["dogs"].open(tmp_path, "test")
    folder = write_flowers(tmp_path)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2]], np.uint8)})
    with pytest.raises(Damaged, match="pictures 1 to 6, labels for 2"):
        SETS["flowers102"].open(tmp_path, "test")
    savemat(folder / "setid.mat", {"trnid": np.array([[1]])})
    with pytest.raises(Damaged, match="a MATLAB file with tstid"):
        SETS["flowers102"].open(tmp_path, "test")

"""DTD, Oxford-IIIT Pet, Stanford Dogs, CUB-200-2011, Flowers102, Food-101: lists beside a folder of pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from tests.worlds.published.pictures import write_picture


def write_lists(folder: Path, lists: dict[str, str]) -> None:
    for name, text in lists.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write_dtd(root: Path) -> Path:
    folder = root / "dtd"
    names = ("banded/banded_0002.jpg", "zigzagged/z_1.jpg", "dotted/d_7.jpg", "dotted/d_3.jpg")
    for number, name in enumerate(names):
        write_picture(folder / "images" / name, 80 + number)
    lists = {"test1": (names[1], names[3]), "train1": (names[2],), "val1": (names[0],), "test2": (names[0],)}
    write_lists(folder, {f"labels/{name}.txt": "\n".join(lines) + "\n" for name, lines in lists.items()})
    return folder


def write_pets(root: Path) -> Path:
    folder = root / "oxford-iiit-pet"
    rows = ("Abyssinian_100 1 1 1", "american_bulldog_7 2 2 1", "Abyssinian_2 1 1 1", "Bengal_1 3 1 2")
    for number, row in enumerate(rows):
        write_picture(folder / "images" / f"{row.split()[0]}.jpg", 90 + number)
    write_lists(
        folder,
        {
            "annotations/trainval.txt": "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(rows[:2]),
            "annotations/test.txt": "\n".join((rows[3], rows[2], rows[1])) + "\n",
        },
    )
    return folder


def write_dogs(root: Path) -> Path:
    from scipy.io import savemat

    folder = root / "stanford_dogs"
    breeds = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02113978-Mexican_hairless")
    names = [f"{breeds[k % 3]}/{breeds[k % 3].split('-')[0]}_{k}.jpg" for k in (5, 0, 1, 3)]
    for number, name in enumerate(names):
        write_picture(folder / "Images" / name, 100 + number)
    (folder / "lists").mkdir()
    for split, chosen in (("train", names[2:]), ("test", names[:2])):
        cells = np.empty((len(chosen), 1), dtype=object)
        cells[:, 0] = chosen
        labels = np.array([[1 + breeds.index(name.split("/")[0])] for name in chosen], np.uint8)
        savemat(folder / f"lists/{split}_list.mat", {"file_list": cells, "annotation_list": cells, "labels": labels})
    return folder


def write_cub(root: Path) -> Path:
    folder = root / "CUB_200_2011"
    paths = {
        1: "001.Black_footed_Albatross/a_0046.jpg",
        2: "002.Laysan_Albatross/b.jpg",
        3: "001.Black_footed_Albatross/c.jpg",
        10: "010.Red_winged_Blackbird/d.jpg",
    }
    classes = {1: "001.Black_footed_Albatross", 2: "002.Laysan_Albatross", 10: "010.Red_winged_Blackbird"}
    for number, path in paths.items():
        write_picture(folder / "images" / path, 110 + number)
    use = {1: 0, 2: 1, 3: 1, 10: 0}
    label = {1: 1, 2: 2, 3: 1, 10: 10}
    order = (10, 3, 1, 2)  # lists in other orders are the same
    write_lists(
        folder,
        {
            "images.txt": "".join(f"{k} {path}\n" for k, path in paths.items()),
            "image_class_labels.txt": "".join(f"{k} {label[k]}\n" for k in order),
            "train_test_split.txt": "".join(f"{k} {use[k]}\n" for k in order),
            "classes.txt": "".join(f"{k} {name}\n" for k, name in classes.items()),
        },
    )
    return folder


def write_flowers(root: Path) -> Path:
    from scipy.io import savemat

    folder = root / "flowers-102"
    for number in range(1, 7):
        write_picture(folder / f"jpg/image_{number:05d}.jpg", 130 + number)
    savemat(folder / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 77, 3, 1]], np.uint8)})
    sets = {"trnid": [[2]], "valid": [[5]], "tstid": [[6, 1, 3, 4]]}
    savemat(folder / "setid.mat", {name: np.array(values, np.uint16) for name, values in sets.items()})
    return folder


def write_food(root: Path) -> Path:
    folder = root / "food-101/food-101"
    for number, name in enumerate(("apple_pie/1005649", "waffles/7", "apple_pie/1")):
        write_picture(folder / "images" / f"{name}.jpg", 140 + number)
    lists = {"train": "apple_pie/1\n", "test": "waffles/7\napple_pie/1005649\n", "classes": "apple_pie\nbaby_back_ribs\nwaffles\n"}
    write_lists(folder, {f"meta/{name}.txt": text for name, text in lists.items()})
    return folder


def write_textures(root: Path, counts: dict[str, int] | None = None, kinds: int = 5) -> Path:
    """DTD's layout with a colour a class, by split so many pictures of each class, their names mixed up."""
    folder, counts = root / "dtd", counts or {"train": 3, "val": 2, "test": 4}
    lists: dict[str, list[str]] = {split: [] for split in counts}
    for kind in range(kinds):
        for split, count in counts.items():
            for number in range(count):
                name = f"kind_{kind}/{split}_{number}.jpg"
                write_picture(folder / "images" / name, 50 * kind)
                lists[split].append(name)
    write_lists(folder, {f"labels/{split}1.txt": "\n".join(sorted(names, key=hash_of)) for split, names in lists.items()})
    return folder


def hash_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()

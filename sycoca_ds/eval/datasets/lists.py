"""Sets with lists of pictures beside a folder of them: DTD, Oxford-IIIT Pet, CUB-200-2011, Food-101, Stanford Dogs, Flowers102.

The last two have theirs in MATLAB files. What counts from 1 in a list counts from 0 here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sycoca_ds.eval.datasets.reading import (
    Damaged,
    Files,
    Split,
    checked,
    folders_in,
    needed,
    read_lines,
    read_mat,
    read_rows,
)


@dataclass(frozen=True)
class ByFolder:
    """A line a picture, `class/name`, and pictures below images/."""

    lists: dict[str, str]
    """{split: list}."""
    classes: str | None = None
    """The list of classes; None: the folders in images/, sorted."""
    suffix: str = ""
    """What a line leaves out of the file's name."""

    def needs(self, split: str) -> tuple[str, ...]:
        return (self.lists[split], *([self.classes] if self.classes else []), "images/")

    def read(self, root: Path, split: str) -> Split:
        path = root / self.lists[split]
        classes = read_lines(root / self.classes) if self.classes else folders_in(root / "images")
        place = {name: number for number, name in enumerate(classes)}
        lines = read_lines(path)
        try:
            labels = [place[line.split("/")[0]] for line in lines]
        except KeyError as error:
            raise Damaged(f"{path}: a picture of class {error}, of which there is no {self.classes or 'folder'}") from error
        names = [f"images/{line}{self.suffix}" for line in lines]
        return checked(Split(Files(root, names), None, np.array(labels, np.int64), tuple(classes), tuple(classes)), path)


@dataclass(frozen=True)
class Pets:
    """Oxford-IIIT Pet: lines `Abyssinian_100 1 1 1`: picture, class from 1, cat or dog, breed. Classes are named by pictures."""

    def needs(self, split: str) -> tuple[str, ...]:
        return f"annotations/{split}.txt", "images/"

    def read(self, root: Path, split: str) -> Split:
        path = root / f"annotations/{split}.txt"
        rows, called = self._rows(path), {}
        names, labels = [f"images/{name}.jpg" for name, _ in rows], [number - 1 for _, number in rows]
        others = [other for other in (root / "annotations/trainval.txt", root / "annotations/test.txt") if other != path]
        for listed in (path, *(other for other in others if other.is_file())):  # both splits have the same classes
            for name, number in rows if listed == path else self._rows(listed):
                if called.setdefault(number, name.rpartition("_")[0]) != name.rpartition("_")[0]:
                    raise Damaged(f"{listed}: class {number} is {called[number]} and {name.rpartition('_')[0]}")
        classes = tuple(called.get(number, str(number)) for number in range(1, max(called, default=0) + 1))
        return checked(Split(Files(root, names), None, np.array(labels, np.int64), classes, classes), path)

    def _rows(self, path: Path) -> list[tuple[str, int]]:
        """(picture, class from 1) of each line."""
        rows = []
        for line in read_lines(path):
            if line.startswith("#"):
                continue
            try:
                rows.append((line.split()[0], int(line.split()[1])))
            except (IndexError, ValueError) as error:
                raise Damaged(f"{path}: {line[:100]!r} is no line of picture, class, species, breed") from error
        return rows


@dataclass(frozen=True)
class Cub:
    """CUB-200-2011: lists by the picture's number, `1 001.Black_footed_Albatross/name.jpg`, `1 1` (class), `1 0` (1: training)."""

    def needs(self, split: str) -> tuple[str, ...]:
        return "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images/"

    def read(self, root: Path, split: str) -> Split:
        wanted = int(split == "train")
        paths = dict(read_rows(root / "images.txt", (int, str)))
        label = dict(read_rows(root / "image_class_labels.txt", (int, int)))
        use = dict(read_rows(root / "train_test_split.txt", (int, int)))
        called = dict(read_rows(root / "classes.txt", (int, str)))
        if set(paths) != set(label) or set(paths) != set(use):
            raise Damaged(f"{root}: images.txt, image_class_labels.txt and train_test_split.txt are of other pictures")
        numbers = [number for number in sorted(paths) if use[number] == wanted]
        names, keys = [f"images/{paths[number]}" for number in numbers], tuple(called[number] for number in sorted(called))
        place = {number: place for place, number in enumerate(sorted(called))}
        label_N = np.array([place.get(label[number], -1) for number in numbers], np.int64)
        return checked(Split(Files(root, names), None, label_N, tuple(key.partition(".")[2] for key in keys), keys), root)


@dataclass(frozen=True)
class Dogs:
    """Stanford Dogs: SPLIT_list.mat with file_list, a column of cells, and labels from 1; classes are the folders of the pictures,
    n02085620-Chihuahua."""

    def needs(self, split: str) -> tuple[str, ...]:
        return f"lists/{split}_list.mat or {split}_list.mat", "Images/"

    def read(self, root: Path, split: str) -> Split:
        path = needed(root, self.needs(split)[0])
        files, labels = read_mat(path, "file_list", "labels")
        listed = [str(np.squeeze(cell)) for cell in files.reshape(-1)]
        label_N = labels.reshape(-1).astype(np.int64) - 1
        keys = tuple(folders_in(root / "Images"))
        for name, label in zip(listed, label_N, strict=False):
            if not 0 <= label < len(keys) or name.split("/")[0] != keys[label]:
                raise Damaged(f"{path}: {name} has class {label + 1}, which is not the place of its folder among those in Images/")
        names = [f"Images/{name}" for name in listed]
        return checked(Split(Files(root, names), None, label_N, tuple(key.partition("-")[2] for key in keys), keys), path)


@dataclass(frozen=True)
class Flowers:
    """Flowers102: imagelabels.mat has the class of every picture, setid.mat the pictures of each split, both from 1. No file says
    what the classes are called."""

    def needs(self, split: str) -> tuple[str, ...]:
        return "setid.mat", "imagelabels.mat", "jpg/"

    def read(self, root: Path, split: str) -> Split:
        (numbers,) = read_mat(root / "setid.mat", {"train": "trnid", "val": "valid", "test": "tstid"}[split])
        (labels,) = read_mat(root / "imagelabels.mat", "labels")
        numbers, labels = numbers.reshape(-1).astype(np.int64), labels.reshape(-1).astype(np.int64)
        if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= len(labels):
            raise Damaged(f"{root / 'setid.mat'}: pictures {numbers.min()} to {numbers.max()}, labels for {len(labels)}")
        names = [f"jpg/image_{number:05d}.jpg" for number in numbers]
        keys = tuple(str(number) for number in range(1, int(labels.max(initial=0)) + 1))
        return checked(Split(Files(root, names), None, labels[numbers - 1] - 1, keys, keys), root / "setid.mat")

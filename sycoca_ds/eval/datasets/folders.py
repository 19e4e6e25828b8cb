"""Sets whose classes are folders: ImageNet's validation set and its relatives, Caltech-101."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sycoca_ds.eval.datasets.reading import (
    Damaged,
    Files,
    Split,
    checked,
    folders_in,
    pictures_in,
    present,
    read_lines,
    read_mat,
    some,
)

WNID = re.compile(r"n\d{8}")
WNID_FOLDERS = "n[0-9]???????/"
"""Such folders tell a set: a parquet or WebDataset folder may have its name, too."""
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
NAMES = "LOC_synset_mapping.txt or synset_words.txt or README.txt"
"""Lines `n01440764 tench, Tinca tinca`, among others: Kaggle's, Caffe's, and what comes with ImageNet-A and -R."""
BACKGROUND = "BACKGROUND_Google"
CLASSES_IN_V2 = 1000


def of_folders(root: Path, below: str, folders: Sequence[str]) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Pictures of folders, with the number of their folder, and notes of files that are no pictures."""
    names, labels, others = [], [], []
    for number, folder in enumerate(folders):
        place = f"{below}{folder}"
        mine, rest = pictures_in(root / place)
        names += [f"{place}/{name}" for name in mine]
        labels += [number] * len(mine)
        others += [f"{place}/{name}" for name in rest]
    notes = (f"{len(others)} files that are no pictures left out: {some(others)}",) if others else ()
    return names, np.array(labels, np.int64), notes


def first_name(words: str) -> str:
    """Of WordNet's synonyms the first."""
    return words.split(",")[0].strip()


def names_of_wnids(root: Path) -> dict[str, str]:
    """{WordNet id: first of its names} from the files of a set, in their order; empty where none says it."""
    listed = present(root, NAMES)
    if listed is not None:
        found = (re.match(r"(n\d{8})\s+(.+)", line) for line in read_lines(listed))
        return {match[1]: first_name(match[2]) for match in found if match}
    if present(root, META) is None:
        return {}
    return {wnid: name for wnid, name in synsets(root / META).values()}


def synsets(path: Path) -> dict[int, tuple[str, str]]:
    """{ILSVRC2012_ID: (WordNet id, first name)} of the 1,000 classes of the development kit: those that have no children. The ids
    are not in the order of the WordNet ids."""
    (rows,) = read_mat(path, "synsets")
    try:
        return {
            int(np.squeeze(row["ILSVRC2012_ID"])): (str(np.squeeze(row["WNID"])), first_name(str(np.squeeze(row["words"]))))
            for row in rows.reshape(-1)
            if int(np.squeeze(row["num_children"])) == 0
        }
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise Damaged(f"{path}: not as the development kit's synsets ({error!r})") from error


@dataclass(frozen=True)
class WnidFolders:
    """A folder a class, named by its WordNet id; labels count the sorted ids. ImageNet's own validation pictures may also lie in
    one folder as they are published, beside the development kit with their classes."""

    below: str
    """Ends with `/`, or "" for the set's folder."""
    published: bool = False
    """Whether there is that other way."""

    def needs(self, split: str) -> tuple[str, ...]:
        folders = f"{self.below}{WNID_FOLDERS}"
        return (f"{folders} or {self.below}ILSVRC2012_val_*" if self.published else folders,)

    def read(self, root: Path, split: str) -> Split:
        place = root / self.below
        wnids = [name for name in folders_in(place) if WNID.fullmatch(name)]
        loose = pictures_in(place)[0] if self.published else []
        if not wnids and loose:
            return self._by_development_kit(root, loose)
        if not wnids:
            kit = f", nor pictures beside {TRUTH}" if self.published else ""
            raise Damaged(f"{place}: no folder of a class, such as n01440764{kit}")
        names, label_N, notes = of_folders(root, self.below, wnids)
        if loose:
            notes += (f"{len(loose)} pictures in {self.below} itself, beside the folders of classes, left out: {some(loose)}",)
        known = names_of_wnids(root)
        classes = tuple(known.get(wnid, wnid) for wnid in wnids)
        return checked(Split(Files(root, names), None, label_N, classes, tuple(wnids), notes=notes), place)

    def _by_development_kit(self, root: Path, loose: list[str]) -> Split:
        for path in (root / TRUTH, root / META):
            if not path.is_file():
                raise Damaged(f"{root / self.below}: pictures without folders of classes, and no {path.relative_to(root)}")
        known = synsets(root / META)
        order = {wnid: place for place, wnid in enumerate(sorted(wnid for wnid, _ in known.values()))}
        names = dict(known.values())
        labels = []
        try:
            truth = [order[known[int(line)][0]] for line in read_lines(root / TRUTH)]
            for name in loose:  # ILSVRC2012_val_00000001.JPEG has the first line; a picture that is not there shifts nothing
                number = int(re.search(r"_(\d{8})\.", name)[1])
                labels.append(truth[number - 1] if number else truth[len(truth)])
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise Damaged(f"{root / TRUTH}: does not say the class of every picture in {self.below} ({error!r})") from error
        classes = tuple(names[wnid] for wnid in order)
        return checked(
            Split(Files(root, [f"{self.below}{name}" for name in loose]), None, np.array(labels, np.int64), classes, tuple(order)),
            root / TRUTH,
        )


@dataclass(frozen=True)
class NumberFolders:
    """ImageNet-V2: folders 0 to 999 are the numbers of the classes. As texts they would be sorted 0, 1, 10, 100: the label is the
    number itself, whichever folders are there."""

    def needs(self, split: str) -> tuple[str, ...]:
        return ("[0-9]*/",)

    def read(self, root: Path, split: str) -> Split:
        found = folders_in(root)
        numbers = sorted(int(name) for name in found if name.isascii() and name.isdecimal() and str(int(name)) == name)
        wrong = [name for name in found if not name.isdecimal() or int(name) >= CLASSES_IN_V2 or str(int(name)) != name]
        if wrong:
            raise Damaged(f"{root}: folder {some(wrong)}; expected the numbers of classes, 0 to {CLASSES_IN_V2 - 1}")
        names, place_N, notes = of_folders(root, "", [str(number) for number in numbers])
        keys = tuple(str(number) for number in range(CLASSES_IN_V2))
        return checked(Split(Files(root, names), None, np.array(numbers, np.int64)[place_N], keys, keys, notes=notes), root)


@dataclass(frozen=True)
class Caltech:
    """Caltech-101: 101 classes and BACKGROUND_Google, which is none. Faces and Faces_easy are two classes: the same pictures,
    whole and cut out. There is no official split; labels count the sorted names, capitals first, as torchvision's.

    Splits: `all`, the 101 classes; `background`, those and the background as a class of its own (the first), as CLIP has it.
    """

    def needs(self, split: str) -> tuple[str, ...]:
        return (f"{BACKGROUND}/", "accordion/ or airplanes/") if split == "background" else ("accordion/ or airplanes/",)

    def read(self, root: Path, split: str) -> Split:
        folders = [name for name in folders_in(root) if split == "background" or name != BACKGROUND]
        names, label_N, notes = of_folders(root, "", folders)
        return checked(Split(Files(root, names), None, label_N, tuple(folders), tuple(folders), notes=notes), root)

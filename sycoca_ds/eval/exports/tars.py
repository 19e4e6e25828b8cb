"""WebDatasets as CLIP_benchmark writes and DataComp ships them.

    SET/SPLIT/nshards.txt                        "3"
    SET/SPLIT/0.tar 1.tar 2.tar                  KEY.webp, .png, .jpg or .jpeg, with KEY.cls (class, from 0), or KEY.txt (captions,
                                                 one a line); of WILDS' sets, Dollar Street and GeoDE also KEY.npy, integers
    SET/classnames.txt                           a name a line, in the order of the classes
    SET/zeroshot_classification_templates.txt    a template a line, with {c}
    SET/dataset_type.txt                         retrieval or multilabel; none: classification

(CLIP_benchmark webdataset_builder.py, datasets/builder.py; DataComp eval_utils/wilds_eval.py.) Headers are walked with bounds by
data_pipeline's reader of strangers' tars, whose keys are webdataset's. Nothing is extracted, no pickle is run; pictures stay where
they are until they are asked for.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data_pipeline.pictures import FetchError, as_shown
from data_pipeline.progress import Progress
from data_pipeline.shards.mirror_tars import mirror_groups
from data_pipeline.shards.tarwalk import Group, Member, TarError
from sycoca_ds.eval.datasets.reading import MOST_PIXELS, Damaged, Split, Unused, checked, numbered

IMAGES = ("webp", "png", "jpg", "jpeg")
"""The first that a sample has, as CLIP_benchmark asks for them."""
COUNT, CLASSES, TEMPLATES, TYPE = "nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt"
MOST_SHARDS = 100_000
MOST_TEXT = 1 << 20
"""Bytes of a text file, or of a sample's captions."""
MOST_LABEL = 1 << 16
"""Bytes of a .cls or .npy."""
MOST_PICTURE = 1 << 28
"""Bytes of a picture."""
FACES = {"race", "gender", "age", "toxic"}
"""Questions that FairFace's and UTKFace's names of classes begin with."""


@dataclass(frozen=True)
class TarPictures:
    """Pictures at their places in tars."""

    shards: tuple[Path, ...]
    names: Sequence[str]
    place_N3: np.ndarray
    """(N, 3) int64: shard, first byte, bytes."""

    def pixels(self, number: int) -> np.ndarray:
        shard, offset, size = self.place_N3[number].tolist()
        with open(self.shards[shard], "rb") as file:
            data = _bytes_at(file, offset, size)
        return np.ascontiguousarray(as_shown(data, MOST_PIXELS)[..., ::-1])

    def missing(self) -> list[int]:
        return []

    def stamp(self) -> Iterator[bytes]:
        for shard in self.shards:
            found = os.stat(shard)
            yield f"{shard.name} {found.st_size} {found.st_mtime_ns}\n".encode()
        yield self.place_N3.tobytes()


def _bytes_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Raises `FetchError` for a picture that is too large or was cut off since its tar was walked."""
    if size > MOST_PICTURE:
        raise FetchError("needs too much memory")
    data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise FetchError("truncated image")
    return data


@dataclass(frozen=True)
class Tars:
    """One set's tars, by split."""

    group: int | None = None
    """Place in the integers of .npy that tells the part of the set a picture belongs to."""

    def needs(self, split: str) -> tuple[str, ...]:
        return (f"{split}/{COUNT}",)

    def read(self, root: Path, split: str) -> Split:
        """Raises `Damaged`, and `Unused` for sets that ask for several answers a picture."""
        kind = kind_of(root)
        if kind == "multilabel":
            raise Unused(f"{root}: several classes a picture ({TYPE} says multilabel); no task here takes them")
        classes, templates = names_of(root)
        if FACES & {name.partition(":")[0] for name in classes if ":" in name}:
            raise Unused(f"{root}: four questions a picture (race, gender, age, toxic); DataComp has no main metric for it")
        shards = shards_of(root, split)
        names, places, labels, captions, groups, blank = [], [], [], [], [], 0
        with Progress(f"read {root.name}", total=len(shards), unit="tars", enabled=len(shards) > 1) as bar:
            for number, path in enumerate(shards):
                with open(path, "rb") as file:
                    for group in _samples(path):
                        sample = _Sample(path, file, group)
                        picture = sample.picture()
                        names.append(f"{split}/{path.name}/{group.key}")
                        places.append((number, picture.offset, picture.size))
                        if kind == "retrieval":
                            lines = sample.text().splitlines()  # at U+2028, too: as CLIP_benchmark reads them
                            captions.append(tuple(line.strip() for line in lines if line.strip()))
                            blank += len(lines) - len(captions[-1])
                        else:
                            labels.append(sample.label())
                        if self.group is not None:
                            groups.append(f"group {sample.metadata(self.group)}")
                bar.advance()
        pictures = TarPictures(tuple(shards), names, np.array(places, dtype=np.int64).reshape(-1, 3))
        if kind == "retrieval":
            notes = (f"{blank:,} blank lines among its captions are left out",) if blank else ()
            return checked(Split(pictures, tuple(captions), notes=notes), root / split)
        label_N = np.array(labels, dtype=np.int64)
        own = classes or numbered(label_N, root / split)
        found = Split(
            pictures,
            label_N=label_N,
            classes=own,
            keys=own,
            group_N=tuple(groups) if self.group is not None else None,
            named_by=CLASSES if classes else "",
            nameless="" if classes else f"{root} has no {CLASSES}",
            templates=templates,
        )
        return checked(found, root / split)


@dataclass(frozen=True)
class _Sample:
    """A sample's members, none of them read yet. All raise `Damaged`."""

    path: Path
    file: BinaryIO
    group: Group

    def picture(self) -> Member:
        found = next((name for name in IMAGES if name in self.group.members), None)
        if found is None:
            raise self._damaged(f"no picture (.{', .'.join(IMAGES)}), only .{', .'.join(sorted(self.group.members))}")
        return self._whole(found)

    def text(self) -> str:
        try:
            return self._read("txt", MOST_TEXT).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"captions that are not UTF-8 ({error.reason})") from error

    def label(self) -> int:
        data = self._read("cls", MOST_LABEL, f"; sets of captions have {TYPE} with retrieval in it")
        if not re.fullmatch(rb"\d{1,9}", data.strip()):
            raise self._damaged(f"class {data[:20]!r}, expected a number from 0 on")
        return int(data)

    def metadata(self, place: int) -> int:
        data = self._read("npy", MOST_LABEL)
        try:
            return int(flat_integers(data)[place])
        except (ValueError, IndexError, EOFError, OverflowError) as error:
            raise self._damaged(f".npy without an integer at place {place} ({error})") from error

    def _whole(self, name: str) -> Member:
        member = self.group.members.get(name)
        if member is None or member.is_link:
            raise self._damaged(f"no .{name}" if member is None else f"a link in place of .{name}")
        return member

    def _read(self, name: str, most: int, hint: str = "") -> bytes:
        if name not in self.group.members:
            raise self._damaged(f"no .{name}{hint}")
        member = self._whole(name)
        if member.size > most:
            raise self._damaged(f".{name} of {member.size:,} bytes, expected at most {most:,}")
        return os.pread(self.file.fileno(), member.size, member.offset)

    def _damaged(self, what: str) -> Damaged:
        return Damaged(f"{self.path}, sample {self.group.key}: {what}")


def _samples(path: Path) -> Iterator[Group]:
    try:
        yield from mirror_groups(path)
    except TarError as error:
        raise Damaged(f"{path} {error}") from error


def flat_integers(data: bytes) -> np.ndarray:
    """(n,) values of a .npy, whatever its shape. ValueError: objects, or fewer bytes than its header announces."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of .npy")
    shape, _, dtype = read_header(stream)
    rest = data[stream.tell() :]
    if dtype.kind not in "iufb" or math.prod(shape) * dtype.itemsize != len(rest):
        raise ValueError(f"{dtype} of shape {shape} in {len(rest)} bytes")
    return np.frombuffer(rest, dtype)


def kind_of(root: Path) -> str:
    """classification, retrieval or multilabel. Raises `Damaged`."""
    path = root / TYPE
    kind = _text(path).strip().lower() if path.is_file() else "classification"
    if kind not in ("classification", "retrieval", "multilabel"):
        raise Damaged(f"{path}: {kind[:40]!r}, expected classification, retrieval or multilabel")
    return kind


def names_of(root: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of classes and templates, those that are there. Raises `Damaged`: a name is empty, a template lacks {c}."""
    classes, templates = (_lines(root / name) for name in (CLASSES, TEMPLATES))
    if not all(classes):
        raise Damaged(f"{root / CLASSES}: line {classes.index('') + 1} is empty, expected a class's name")
    templates = tuple(filter(None, templates))
    for template in templates:
        if "{c}" not in template:
            raise Damaged(f"{root / TEMPLATES}: {template[:100]!r} lacks {{c}}, the place of the class name")
    return classes, templates


def shards_of(root: Path, split: str) -> list[Path]:
    """The tars of a split in order. Raises `Damaged` for those that nshards.txt announces and that are not there."""
    path = root / split / COUNT
    said = _text(path).strip()
    if not re.fullmatch(r"\d{1,6}", said) or not 0 < int(said) <= MOST_SHARDS:
        raise Damaged(f"{path}: {said[:40]!r}, expected how many tars there are")
    shards = [root / split / f"{number}.tar" for number in range(int(said))]
    gone = [shard.name for shard in shards if not shard.is_file()]
    if gone:
        raise Damaged(f"{path} announces {len(shards):,} tars, of which {len(gone):,} are not there, the first {gone[0]}")
    return shards


def _lines(path: Path) -> tuple[str, ...]:
    return tuple(line.strip() for line in _text(path).rstrip().splitlines()) if path.is_file() else ()


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MOST_TEXT:
            raise Damaged(f"{path}: more than {MOST_TEXT:,} bytes, expected a few lines")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: not readable as text ({error})") from error

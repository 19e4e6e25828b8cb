"""Parquet folders as Hugging Face's datasets exports them.

    SET/data/test-00000-of-00002.parquet, SET/test-00000-of-00002.parquet, SET/test.parquet, SET/test/0000.parquet, or one of these
    in a folder of the configuration's name

    image       {bytes, path}; under another name if the features call it an Image
    label       an integer; its names, {"_type": "ClassLabel", "names": [...]}, are in the features
    caption     a text or a list of texts

The features stand as JSON in the schema's metadata under `huggingface`: {"info": {"features": {COLUMN: {"_type", ...}}}}. Of
pictures a row group is in memory at once, or two.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.pictures import FetchError, as_shown
from sycoca_ds.eval.datasets.reading import MOST_PIXELS, Damaged, Split, Unused, checked, numbered, some

IMAGE_NAMES = ("image", "img", "jpg", "png", "webp")
LABEL_NAMES = ("label", "fine_label", "labels", "cls")
CAPTION_NAMES = ("caption", "captions", "text", "sentences")
MOST_GROUP = 1 << 31
"""Bytes of a row group's pictures, unpacked."""
MOST_VALUES = 1 << 30
"""Bytes of a file's captions, unpacked."""
ROWS_AT_ONCE = 16
HELD = 2
"""Row groups in memory; threads that decode side by side are in two at most."""


def patterns(split: str) -> tuple[str, ...]:
    """Where a split's files may be below the set's folder, the configuration's folder or none in front."""
    own = (f"data/{split}-*.parquet", f"{split}-*.parquet", f"{split}/*.parquet", f"{split}.parquet", f"data/{split}.parquet")
    return (*own, *(f"*/{name}" for name in own[1:4]))


def files_of(root: Path, split: str) -> list[Path]:
    """A split's files in order. Raises `Damaged`: of two configurations, or not all that their names announce."""
    found = next((files for pattern in patterns(split) if (files := sorted(root.glob(pattern)))), [])
    folders = sorted({file.parent.relative_to(root).as_posix() for file in found})
    if len(folders) > 1:
        raise Damaged(f"{root}: split {split} is in several folders, {some(folders)}; put one of them into a folder of its own")
    if not found:
        raise Damaged(f"{root}: no parquet files of split {split}")
    announced = {int(match[1]) for file in found if (match := re.search(r"-of-(\d{1,6})\.parquet$", file.name))}
    if announced and announced != {len(found)}:
        raise Damaged(f"{found[0].parent}: {len(found)} files of split {split}, whose names announce {max(announced)}")
    return found


@dataclass
class ParquetPictures:
    """Pictures in a column of parquet files, by row group."""

    files: tuple[Path, ...]
    column: str
    names: Sequence[str]
    place_N3: np.ndarray
    """(N, 3) int64: file, row group, row in it."""
    _held: OrderedDict[tuple[int, int], list[bytes | None]] = field(default_factory=OrderedDict)
    _lock: Any = field(default_factory=threading.Lock)

    def pixels(self, number: int) -> np.ndarray:
        file, group, row = self.place_N3[number].tolist()
        held = self._group(file, group)
        data = held[row] if row < len(held) else None
        if data is None:
            raise FetchError("not an image")
        return np.ascontiguousarray(as_shown(data, MOST_PIXELS)[..., ::-1])

    def _group(self, file: int, group: int) -> list[bytes | None]:
        with self._lock:
            if (file, group) not in self._held:
                self._held[file, group] = list(_pictures_of(self.files[file], self.column, group))
                while len(self._held) > HELD:
                    self._held.popitem(last=False)
            self._held.move_to_end((file, group))
            return self._held[file, group]

    def missing(self) -> list[int]:
        return []

    def stamp(self) -> Iterator[bytes]:
        for file in self.files:
            found = os.stat(file)
            yield f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode()


def _pictures_of(path: Path, column: str, group: int) -> Iterator[bytes | None]:
    """Bytes of each picture of a row group. Raises `FetchError` where they are too many, `OSError` where the file is damaged."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    total = 0
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.row_group(group).total_byte_size > MOST_GROUP:
                raise FetchError("needs too much memory")
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], columns=[column]):
                total += batch.nbytes
                if total > MOST_GROUP:
                    raise FetchError("needs too much memory")
                values = batch.column(0)
                if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
                    values = values.flatten()
                yield from (pc.struct_field(values, "bytes") if pa.types.is_struct(values.type) else values).to_pylist()
    except pa.ArrowException as error:
        raise OSError(0, f"damaged parquet: {first_line(error)}") from error


@dataclass(frozen=True)
class Columns:
    """What a file's columns are for."""

    image: str
    label: str | None
    classes: tuple[str, ...]
    caption: str | None


def columns_of(path: Path) -> Columns:
    """Raises `Damaged`: no parquet, several columns that could be meant; `Unused`: no picture, neither class nor caption."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    except (pa.ArrowException, OSError, ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{path}: not readable as parquet with its features ({first_line(error)})") from error

    def holds_pictures(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or (pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0)

    def holds_texts(kind: pa.DataType) -> bool:
        texts = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        return pa.types.is_string(texts) or pa.types.is_large_string(texts)

    types = dict(zip(schema.names, schema.types, strict=True))
    images = [name for name in types if kinds.get(name, "Image") == "Image" and holds_pictures(types[name])]
    labels = [name for name in types if kinds.get(name) == "ClassLabel" and pa.types.is_integer(types[name])]
    labels = labels or [name for name in types if name in LABEL_NAMES and pa.types.is_integer(types[name])]
    captions = [name for name in CAPTION_NAMES if name in types and holds_texts(types[name])]
    image, label = _one(path, "picture", images, IMAGE_NAMES), _one(path, "class", labels, LABEL_NAMES)
    if image is None or (label is None and not captions):
        what = "a picture {bytes, path}" if image is None else f"a class (ClassLabel) or a caption ({', '.join(CAPTION_NAMES)})"
        raise Unused(f"{path}: no column with {what} among {', '.join(schema.names)[:200]}")
    named = features.get(label, {}).get("names") if label else None
    if isinstance(named, dict):  # the card's form: {"0": "cat", "1": "dog"}
        named = [named.get(str(number)) for number in range(len(named))]
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) and name.strip() for name in named)):
        raise Damaged(f"{path}: the names of {label}'s classes are no list of texts")
    return Columns(image, label, tuple(named or ()), None if label else captions[0])


def _one(path: Path, what: str, names: list[str], usual: tuple[str, ...]) -> str | None:
    """The only one, or the one of several that is called as usual."""
    if len(names) > 1:
        names = [name for name in usual if name in names][:1] or names
    if len(names) > 1:
        raise Damaged(f"{path}: several columns could be the {what}, {', '.join(names)}; call one of them {usual[0]}")
    return names[0] if names else None


@dataclass(frozen=True)
class Parquets:
    """One set's parquet files, by split."""

    def needs(self, split: str) -> tuple[str, ...]:
        return (" or ".join(patterns(split)),)

    def read(self, root: Path, split: str) -> Split:
        import pyarrow as pa
        import pyarrow.parquet as pq

        files = files_of(root, split)
        columns = columns_of(files[0])
        names, places, labels, captions, blank = [], [], [], [], 0
        for number, path in enumerate(files):
            if columns_of(path) != columns:
                raise Damaged(f"{path}: other columns or classes than {files[0].name}")
            try:
                with pq.ParquetFile(path) as file:
                    refuse_paths(path, file.metadata, columns.image)
                    rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
                    values = list(_values_of(file, columns.label or columns.caption))
            except (pa.ArrowException, OSError) as error:
                raise Damaged(f"{path}: not readable as parquet ({first_line(error)})") from error
            if len(values) != sum(rows):
                raise Damaged(f"{path}: {len(values)} values for {sum(rows)} rows")
            below = path.relative_to(root).as_posix()  # with the split in it, so that no picture to train on has its name
            names += [f"{below}/{row:06d}" for row in range(len(values))]
            places += [(number, group, row) for group, count in enumerate(rows) for row in range(count)]
            if columns.label:
                labels += [-1 if value is None else value for value in values]
                continue
            for value in values:
                lines = [value] if isinstance(value, str) else [line for line in value or [] if line is not None]
                captions.append(tuple(line.strip() for line in lines if line.strip()))
                blank += len(lines) - len(captions[-1])
        pictures = ParquetPictures(tuple(files), columns.image, names, np.array(places, dtype=np.int64).reshape(-1, 3))
        notes = (f"{blank:,} blank captions are left out",) if blank else ()
        if not columns.label:
            return checked(Split(pictures, tuple(captions), notes=notes), files[0].parent)
        label_N = np.array(labels, dtype=np.int64)
        if (label_N < 0).all():
            raise Damaged(f"{files[0].parent}: split {split} keeps its classes back (all are -1)")
        own = columns.classes or numbered(label_N, files[0].parent)
        nameless = "" if columns.classes else f"{files[0].name} has no names of classes in its features"
        return checked(Split(pictures, label_N=label_N, classes=own, keys=own, nameless=nameless), files[0].parent)


def refuse_paths(path: Path, metadata: Any, column: str) -> None:
    """Raises `Damaged` where a row group has pictures' paths and none of their bytes, as `Dataset.to_parquet` leaves pictures that
    were files."""
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for place in range(group.num_columns):
            chunk = group.column(place)
            nulls = chunk.statistics.null_count if chunk.statistics is not None else 0
            steps = chunk.path_in_schema.split(".")
            if (steps[0], steps[-1]) == (column, "bytes") and chunk.num_values and nulls == chunk.num_values:
                raise Damaged(f"{path}: its pictures are paths without bytes; docs/evaluation.md says how to put them in")


def _values_of(file: Any, column: str) -> Iterator[Any]:
    """Labels or captions of all rows. Raises `OSError` where they are more than any set has."""
    total = 0
    for batch in file.iter_batches(columns=[column]):
        total += batch.nbytes
        if total > MOST_VALUES:
            raise OSError(f"more than {MOST_VALUES:,} bytes in {column}")
        yield from batch.column(0).to_pylist()


def first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]

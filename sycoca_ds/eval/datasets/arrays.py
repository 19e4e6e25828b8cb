"""Sets whose pictures lie side by side in a few files: CIFAR's pickles, STL-10's binary files, MNIST's idx.

Pickles may run whatever they name: of CIFAR's only what numpy needs to build an array is let through.
"""

from __future__ import annotations

import gzip
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sycoca_ds.eval.datasets.reading import Arrays, Damaged, Split, checked, needed, read_lines

ARRAYS_ARE_MADE_OF = {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
CIFAR_SIDE, STL_SIDE = 32, 96
MOST_UNPACKED = 1 << 30
"""Bytes of an idx file; MNIST's largest has 47 million."""
IMAGES, LABELS = 2051, 2049
"""First numbers of idx files: unsigned bytes in three dimensions, in one."""


class OnlyArrays(pickle.Unpickler):
    """Reads dicts, lists, texts, numbers and numpy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS_ARE_MADE_OF:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return super().find_class(module, name)


def unpickled(path: Path) -> dict[str, Any]:
    """A pickle's dict by text keys: CIFAR's were written by Python 2, whose texts come as bytes. Raises `Damaged`."""
    try:
        with open(path, "rb") as file:
            content = OnlyArrays(file, encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    except Exception as error:  # of a broken pickle Python raises whatever its pieces lead to
        raise Damaged(f"{path}: not readable as one of CIFAR's pickles ({error!r})") from error


def text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


@dataclass(frozen=True)
class Cifar:
    """The python version: (N, 3072) bytes a file, red, green, blue, each row by row."""

    files: dict[str, tuple[str, ...]]
    """{split: its files}."""
    labels: str
    meta: str
    names: str

    def needs(self, split: str) -> tuple[str, ...]:
        return (*self.files[split], self.meta)

    def read(self, root: Path, split: str) -> Split:
        pixels, labels, names = [], [], []
        for file in self.files[split]:
            content = unpickled(root / file)
            try:
                rows = np.asarray(content["data"], np.uint8).reshape(-1, 3, CIFAR_SIDE, CIFAR_SIDE)
                labels.append(np.asarray(content[self.labels], np.int64).reshape(-1))
            except (KeyError, ValueError, TypeError) as error:
                raise Damaged(f"{root / file}: not as CIFAR's ({error!r})") from error
            if len(rows) != len(labels[-1]):
                raise Damaged(f"{root / file}: {len(labels[-1])} labels for {len(rows)} pictures")
            pixels.append(rows.transpose(0, 2, 3, 1))
            names += [f"{file}/{number:05d}" for number in range(len(rows))]
        try:
            classes = tuple(text(name) for name in unpickled(root / self.meta)[self.names])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{root / self.meta}: no {self.names} ({error!r})") from error
        split_ = Split(Arrays(names, np.concatenate(pixels)), None, np.concatenate(labels), classes, classes)
        return checked(split_, root / self.files[split][0])


@dataclass(frozen=True)
class Stl:
    """STL-10's binary files: each picture red, green, blue, each column by column; labels from 1."""

    def needs(self, split: str) -> tuple[str, ...]:
        return f"{split}_X.bin", f"{split}_y.bin", "class_names.txt"

    def read(self, root: Path, split: str) -> Split:
        images, labels, listed = (root / name for name in self.needs(split))
        size, one = images.stat().st_size, 3 * STL_SIDE * STL_SIDE
        if not size or size % one:
            raise Damaged(f"{images}: {size} bytes, expected a multiple of {one}, those of a picture")
        columns = np.memmap(images, np.uint8, "r").reshape(-1, 3, STL_SIDE, STL_SIDE)  # N, colour, column, row
        label_N, classes = np.fromfile(labels, np.uint8).astype(np.int64) - 1, tuple(read_lines(listed))
        names = [f"{images.name}/{number:05d}" for number in range(len(columns))]
        return checked(Split(Arrays(names, columns.transpose(0, 3, 2, 1)), None, label_N, classes, classes), labels)


@dataclass(frozen=True)
class Mnist:
    """Idx files as published, packed or not."""

    def needs(self, split: str) -> tuple[str, ...]:
        start = {"train": "train", "test": "t10k"}[split]
        plain = f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte"
        return tuple(f"{name} or {name}.gz" for name in plain)

    def read(self, root: Path, split: str) -> Split:
        images, labels = (needed(root, need) for need in self.needs(split))
        pixels_NHW, label_N = read_idx(images, IMAGES, 3), read_idx(labels, LABELS, 1).astype(np.int64)
        classes = tuple(str(digit) for digit in range(10))
        names = [f"{images.name.removesuffix('.gz')}/{number:05d}" for number in range(len(pixels_NHW))]
        return checked(Split(Arrays(names, pixels_NHW), None, label_N, classes, classes), labels)


def read_idx(path: Path, kind: int, dimensions: int) -> np.ndarray:
    """The array of an idx file: a number that says its kind, its lengths, all big-endian, then bytes. Raises `Damaged`."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            data = file.read(MOST_UNPACKED + 1)
        found, *lengths = struct.unpack_from(f">{1 + dimensions}I", data)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise Damaged(f"{path}: not readable as idx ({error!r})") from error
    start, count = 4 * (1 + dimensions), int(np.prod(lengths, dtype=object))
    if found != kind or len(data) - start != count:
        raise Damaged(f"{path}: an idx file of kind {found} with {len(data) - start} bytes, expected {kind} with {count}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(lengths)

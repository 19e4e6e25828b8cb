"""What a model said of samples, kept on disk: features, captions, likelihoods, by all that they depend on.

    FOLDER/NAME/key.json         what the entry is of; NAME is its sha256
    FOLDER/NAME/*.part           some samples each: their numbers and arrays, behind the sha256 of these bytes

Whoever is killed goes on from the parts that are there. A part appears whole or not at all; one that is damaged is deleted, told
and computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.files import sha256_text, write_bytes, write_json

FORMAT = 1
"""Raised when a change of this code changes what a model says of a sample, or how it is kept."""
SECONDS = 5.0
"""Work that a kill may cost: so long parts wait in memory to become one file."""
ROWS = "rows"
KEY_FILE = "key.json"
Arrays = dict[str, np.ndarray]


class Entry:
    """The samples of one key.

    Args:
        folder: None keeps nothing. key: its content of key.json.
    """

    def __init__(self, folder: Path | None, key: dict[str, Any] | None = None):
        self.folder, self._key = folder, key
        self._waiting: list[tuple[np.ndarray, Arrays]] = []
        self._since = time.monotonic()

    def load(self) -> list[tuple[np.ndarray, Arrays]]:
        """[(numbers of samples (N,) int64, arrays of N rows)] of all parts that are whole. Others are deleted, with a line."""
        found = []
        for path in sorted(self.folder.glob("*.part")) if self.folder is not None else ():
            try:
                arrays = unpacked(path.read_bytes())
                found.append((arrays.pop(ROWS), arrays))
            except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
                print(f"cache: {path} is damaged ({error}): its samples are computed again", flush=True)
                path.unlink(missing_ok=True)
        return found

    def add(self, rows_N: np.ndarray, arrays: Arrays) -> None:
        self._waiting.append((rows_N, arrays))
        if time.monotonic() - self._since >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. On a full disk it is lost for the next start, which is told, and the evaluation goes on."""
        if self._waiting and self.folder is not None:
            rows_N, arrays = joined(self._waiting)
            data = packed({ROWS: rows_N, **arrays})
            try:
                if self._key is not None and not (self.folder / KEY_FILE).is_file():  # another evaluation has made room
                    write_json(self.folder / KEY_FILE, self._key)
                write_bytes(self.folder / f"{int(rows_N.min()):08d}_{hashlib.sha256(data).hexdigest()[:12]}.part", data)
            except OSError as error:
                print(f"cache: {self.folder} cannot be written ({error}): nothing more of this is kept", flush=True)
                self.folder = None
        self._waiting, self._since = [], time.monotonic()


def entries(folder: str | Path, **wanted: Any) -> list[tuple[dict[str, Any], Arrays]]:
    """[(key, arrays in the order of the samples)] of what a cache keeps, for scripts.

    Args:
        wanted: values that the key has to have: `what="features of labelled images"`.
    """
    found = []
    for path in sorted(Path(folder).glob(f"*/{KEY_FILE}")):
        key = json.loads(path.read_text())
        parts = Entry(path.parent).load() if all(key.get(name) == value for name, value in wanted.items()) else []
        if parts:
            rows_N, arrays = joined(parts)
            rows_N, first_N = np.unique(rows_N, return_index=True)
            found.append((key, {name: array[first_N] for name, array in arrays.items()}))
    return found


class Cache:
    """Entries in a folder, bounded in size: those not used for longest go first.

    Args:
        folder: None keeps nothing.
        most_bytes: of all entries together; what the present process uses is never deleted, however much it is.
    """

    def __init__(self, folder: str | Path | None = None, most_bytes: int = 20 * 10**9):
        self.folder, self.most_bytes = Path(folder) if folder is not None else None, most_bytes
        self.used: set[str] = set()

    def entry(self, key: dict[str, Any]) -> Entry:
        """Args: key: JSON values that name all that the arrays depend on."""
        if self.folder is None:
            return Entry(None)
        text = json.dumps({"format": FORMAT, **key}, sort_keys=True)
        place = self.folder / sha256_text(text)[:32]
        self.used.add(place.name)
        try:
            if not (place / KEY_FILE).is_file():
                write_json(place / KEY_FILE, json.loads(text))
            os.utime(place / KEY_FILE)
        except OSError as error:
            print(f"cache: {place} cannot be written ({error}): nothing of this is kept", flush=True)
            return Entry(None)
        return Entry(place, json.loads(text))

    def trim(self) -> int:
        """Deletes until the bound is kept; bytes that are left."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        places = []
        for place in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):  # of other evaluations, which use it, too
                places.append(((place / KEY_FILE).stat().st_mtime, place, _bytes(place)))
        total, gone = sum(size for *_, size in places), 0
        for _, place, size in sorted(places):
            if total > self.most_bytes and place.name not in self.used:
                shutil.rmtree(place, ignore_errors=True)
                total, gone = total - size, gone + 1
        if gone:
            print(f"cache: {gone} entries not used for longest are deleted from {self.folder}", flush=True)
        if total > self.most_bytes:
            print(f"cache: {self.folder} holds {total / 1e9:.2f} GB, all of it of this evaluation; --cache-gb is less", flush=True)
        return total


def _bytes(place: Path) -> int:
    total = 0
    for path in place.iterdir():
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def packed(arrays: Arrays) -> bytes:
    """Digest, line break, .npz."""
    memory = io.BytesIO()
    np.savez(memory, **arrays)
    data = memory.getvalue()
    return hashlib.sha256(data).hexdigest().encode() + b"\n" + data


def unpacked(data: bytes) -> Arrays:
    """Raises ValueError if a byte is not as it was written."""
    digest, _, content = data.partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its sha256 is another one")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        return dict(file)


def joined(parts: Sequence[tuple[np.ndarray, Arrays]]) -> tuple[np.ndarray, Arrays]:
    """Parts one after another."""
    rows_N = np.concatenate([rows for rows, _ in parts])
    return rows_N, {name: np.concatenate([arrays[name] for _, arrays in parts]) for name in parts[0][1]}

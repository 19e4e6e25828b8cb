"""The vectors of a folder's pictures, kept on disk: each picture is looked at once.

    CACHE/<weights>/<folder>.npz     names, sizes, times of change, sha256 and vectors of all pictures

A file whose size and time of change are as they were is taken as it was; another one is hashed, and looked at only if no picture
with these bytes is known. The file appears whole or not at all, and every half minute anew while pictures are looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import atomic_path, check_place, no_folder, sha256_file, sha256_text
from data_pipeline.local.captions import find_pictures, say_so
from data_pipeline.progress import Progress

if TYPE_CHECKING:
    from sycoca_ds.inference.model import Model

FORMAT = 2
SAVE_SECONDS = 30.0
NAMED = 5
"""Pictures that cannot be read of which so many are named on stderr."""


@dataclass
class Entry:
    """What is known of one file."""

    size: int
    mtime_ns: int
    digest: str
    """sha256 of its bytes; empty where it cannot be read."""
    vector: np.ndarray | None
    """(E,) float32; None: it gives no picture."""
    problem: str = ""
    passing: bool = False
    """Whether another time there may be a picture: then the problem is not kept."""


@dataclass
class Counts:
    new: int = 0
    changed: int = 0
    moved: int = 0
    """New names, or times of change, of bytes that were known."""
    removed: int = 0
    """Names that are gone, but for renamed files."""
    same: int = 0
    looked_at: int = 0


@dataclass
class Index:
    """Pictures of a folder with their vectors."""

    folder: Path
    entries: dict[str, Entry] = field(default_factory=dict)
    """By path relative to the folder, in order."""
    counts: Counts = field(default_factory=Counts)

    @property
    def names(self) -> list[str]:
        """Of the pictures that have a vector."""
        return [name for name, entry in self.entries.items() if entry.vector is not None]

    @property
    def vectors(self) -> np.ndarray:
        """(pictures, E) float32, in the order of `names`."""
        return np.stack([entry.vector for entry in self.entries.values() if entry.vector is not None])

    @property
    def problems(self) -> dict[str, str]:
        return {name: entry.problem for name, entry in self.entries.items() if entry.vector is None}


def default_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sycoca_ds" / "search"


def cache_of(given: str | None) -> Path | None:
    """Where vectors are kept, a folder that can be written. None: they are not, which of the default folder is said on stderr.

    Args:
        given: a folder, `off`, or None for the default one.

    Raises:
        UserError: it cannot be written.
    """
    if given == "off":
        return None
    if given is not None:
        check_place(Path(given) / "index.npz", f"--cache {given}")
        return Path(given)
    try:
        folder = default_cache()
        check_place(folder / "index.npz", str(folder))
    except (UserError, RuntimeError) as error:  # Python's own where nobody knows a home
        print(f"{error}: vectors are not kept (--cache DIR keeps them)", file=sys.stderr, flush=True)
        return None
    return folder


def place_of(cache: Path, model: Model, folder: Path) -> Path:
    """The file of this folder's vectors by these weights; another version of how pictures are prepared is another file."""
    from sycoca_ds.eval.runner.bench import TRANSFORM

    weights = sha256_text(json.dumps([FORMAT, model.digest, model.precision, TRANSFORM]))[:16]
    return cache / weights / f"{sha256_text(str(folder.resolve()))[:16]}.npz"


def update(model: Model, folder: Path, cache: Path | None, batch_size: int, waiting: Callable[[], None] = lambda: None) -> Index:
    """The index of a folder as it is now.

    Args:
        cache: None keeps nothing.
        waiting: as of `survey`.

    Raises:
        UserError: no such folder, or no picture in it that can be read.
    """
    index, todo = survey(model, folder, cache, waiting)
    place = None if cache is None else place_of(cache, model, folder)
    saved = time.monotonic()
    try:
        with Progress("look at pictures", len(todo), "pictures", enabled=bool(todo)) as bar:
            for batch in _looked_at(model, index, todo, batch_size):
                bar.advance(batch)
                if place is not None and time.monotonic() - saved > SAVE_SECONDS:
                    _keep(place, index)
                    saved = time.monotonic()
    finally:
        if place is not None:
            _keep(place, index)
    if not index.names:
        first, why = next(iter(index.problems.items()))
        raise UserError(f"{folder}: none of {len(index.entries)} pictures can be read, for example {first} ({why})")
    return index


def survey(
    model: Model, folder: Path, cache: Path | None, waiting: Callable[[], None] = lambda: None
) -> tuple[Index, list[list[str]]]:
    """(what is known of a folder's pictures, names of those to look at, files with the same bytes together); no picture is opened.

    Args:
        waiting: called before each file; it may wait, or raise to end this.

    Raises:
        UserError: no such folder, or no file in it that is called like a picture.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: {no_folder(folder)}")
    known = {} if cache is None else load(place_of(cache, model, folder))
    names = find_pictures(folder, say_so)
    if not names:
        raise UserError(f"{folder}: no file in it is called like a picture (.jpg, .png, .webp, ...)")
    index, todo = Index(folder), {}
    by_digest = {entry.digest: entry for entry in known.values() if entry.digest}
    with Progress("read files", len(names), "files", enabled=len(known) < len(names)) as bar:
        for name in names:
            waiting()
            entry = _seen(folder / name, known.get(name), by_digest, index.counts)
            index.entries[name] = entry
            if entry.vector is None and not entry.problem:
                todo.setdefault(entry.digest, []).append(name)
            bar.advance()
    gone = Counter(known[name].digest for name in known.keys() - set(names))
    arrived = Counter(index.entries[name].digest for name in names if name not in known)
    renamed = sum(count for digest, count in (gone & arrived).items() if digest)
    index.counts.removed = gone.total() - renamed
    return index, list(todo.values())


def _seen(path: Path, before: Entry | None, by_digest: dict[str, Entry], counts: Counts) -> Entry:
    """What is known of a file without looking at the picture in it."""
    try:
        facts = path.stat()
        if before is not None and (before.size, before.mtime_ns) == (facts.st_size, facts.st_mtime_ns):
            counts.same += 1
            return before
        digest = sha256_file(path) if path.is_file() else ""
    except OSError as error:
        return Entry(0, 0, "", None, error.strerror or type(error).__name__, passing=True)
    if not digest:
        return Entry(facts.st_size, facts.st_mtime_ns, "", None, "is no file")
    if digest in by_digest:
        counts.moved += 1
        other = by_digest[digest]
        return Entry(facts.st_size, facts.st_mtime_ns, digest, other.vector, other.problem)
    if before is None:
        counts.new += 1
    else:
        counts.changed += 1
    return Entry(facts.st_size, facts.st_mtime_ns, digest, None)


def _looked_at(model: Model, index: Index, todo: list[list[str]], batch_size: int) -> Iterator[int]:
    """Fills in vectors, or why there is none; after each batch, how many pictures it had. Of files with the same bytes,
    which are one list of `todo`, the first is looked at."""
    from sycoca_ds.data.transforms import Passing
    from sycoca_ds.inference.pictures import readable

    for start in range(0, len(todo), batch_size):
        batch = todo[start : start + batch_size]
        places, shown, problems = readable([index.folder / names[0] for names in batch], model.image_size)
        for place, vector in zip(places, model.encode_image(shown, batch_size), strict=True):
            for name in batch[place]:
                index.entries[name].vector = vector
        for place, problem in problems.items():
            for name in batch[place]:
                entry = index.entries[name]
                entry.problem, entry.passing = str(problem), isinstance(problem, Passing)
        index.counts.looked_at += len(batch)
        yield len(batch)


def _keep(place: Path, index: Index) -> None:
    """`save`, where a disk that fails costs what is kept and nothing else."""
    try:
        save(place, index)
    except OSError as error:
        print(f"{place} cannot be written ({error.strerror}): vectors are not kept", file=sys.stderr, flush=True)


def save(place: Path, index: Index) -> None:
    """Writes what has been looked at, and of problems those that a picture's bytes prove. Raises `OSError`."""
    entries = index.entries.items()
    done = {name: entry for name, entry in entries if entry.vector is not None or entry.problem and not entry.passing}
    width = next((len(entry.vector) for entry in done.values() if entry.vector is not None), 0)
    arrays = {
        # bytes: a name need not be UTF-8, and an array of texts drops zeros at their ends
        "names": np.frombuffer("\0".join(done).encode("utf-8", "surrogateescape"), np.uint8),
        "problems": np.frombuffer(json.dumps([entry.problem for entry in done.values()]).encode(), np.uint8),
        "digests": np.frombuffer(" ".join(entry.digest or "-" for entry in done.values()).encode(), np.uint8),
        "facts": np.array([[entry.size, entry.mtime_ns] for entry in done.values()], np.int64).reshape(-1, 2),
        "vectors": np.array(
            [np.full(width, np.nan, np.float32) if entry.vector is None else entry.vector for entry in done.values()], np.float32
        ).reshape(len(done), width),
    }
    check = hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).digest()
    with atomic_path(place) as temporary, open(temporary, "wb") as file:
        np.savez(file, check=np.frombuffer(check, np.uint8), **arrays)


def load(place: Path) -> dict[str, Entry]:
    """What was written; nothing, with a line, where it is damaged or cannot be read."""
    try:
        with np.load(place) as file:
            arrays = {name: file[name] for name in file.files}
        check = arrays.pop("check").tobytes()
        if hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).digest() != check:
            raise ValueError("its sha256 is another")
        names = arrays["names"].tobytes().decode("utf-8", "surrogateescape").split("\0") if len(arrays["facts"]) else []
        problems, digests = json.loads(arrays["problems"].tobytes()), arrays["digests"].tobytes().decode().split(" ")
        rows = zip(names, problems, digests[: len(names)], arrays["facts"].tolist(), arrays["vectors"], strict=True)
        return {
            name: Entry(size, mtime_ns, digest.strip("-"), None if problem else vector, problem)
            for name, problem, digest, (size, mtime_ns), vector in rows
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is damaged"
        print(f"{place} {what} ({error}): all pictures are looked at again", file=sys.stderr, flush=True)
        return {}


def best(index: Index, query_E: np.ndarray, top: int) -> list[tuple[str, float]]:
    """(name, cosine) of the nearest pictures, best first; of equal ones the first by name."""
    cosine_I = index.vectors @ query_E
    names = index.names
    return [(names[number], float(cosine_I[number])) for number in np.argsort(-cosine_I, kind="stable")[:top]]

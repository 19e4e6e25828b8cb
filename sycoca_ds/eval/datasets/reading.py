"""What every layout gives for one split of a set: pictures by number, what is said of them, where they are.

Legend: N pictures, K classes, H, W a picture's own pixels.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from data_pipeline.errors import UserError, how_to_install
from data_pipeline.pictures import as_shown

MOST_PIXELS = 100_000_000
"""Of a picture in a file. More than of a training picture: these sets hold photographs as cameras made them."""
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MOST_CLASSES = 100_000
"""Where nothing in a set's files names them."""
MOST_NAMED = 3
"""Names that a message lists."""


class Damaged(UserError):
    """A file of a set that is not as the set's page describes it."""


class Absent(UserError):
    """A set, or a split of it, that is not here; says what is expected where."""


class Unused(Absent):
    """A set that is here, and that no task takes; says why."""


class Pictures(Protocol):
    """The pictures of a split, none of them decoded yet."""

    names: Sequence[str]
    """One each, in order, none twice: what a picture is called in results."""

    def pixels(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB. Raises `FetchError` with one of `headers.REASONS`, or `OSError`."""

    def missing(self) -> list[int]:
        """Numbers of pictures that are listed and not there."""

    def stamp(self) -> Iterator[bytes]:
        """Other bytes where a picture is another one: sizes and times of files, or pixels that are in memory. The pictures' own
        bytes would take as long to read as the evaluation takes."""


@dataclass(frozen=True)
class Files:
    """Pictures in files of their own, decoded as training pictures are: opacity on white, turned as EXIF says, CMYK and grey made
    RGB."""

    root: Path
    names: Sequence[str]
    """Paths below `root`, with /."""

    def pixels(self, number: int) -> np.ndarray:
        return np.ascontiguousarray(as_shown((self.root / self.names[number]).read_bytes(), MOST_PIXELS)[..., ::-1])

    def missing(self) -> list[int]:
        """By one look into each folder: a look at each file takes minutes on a network file system."""
        there: dict[str, set[str]] = {}
        gone = []
        for number, name in enumerate(self.names):
            folder, _, file = name.rpartition("/")
            if folder not in there:
                path = self.root / folder
                there[folder] = set(os.listdir(path)) if path.is_dir() else set()
            if file not in there[folder]:
                gone.append(number)
        return gone

    def stamp(self) -> Iterator[bytes]:
        for name in self.names:
            found = os.stat(self.root / name)
            yield f"{found.st_size} {found.st_mtime_ns}\n".encode()


@dataclass(frozen=True)
class Arrays:
    """Pictures that lie side by side in one array: nothing is left to decode."""

    names: Sequence[str]
    pixels_N: np.ndarray
    """(N, H, W, 3) RGB or (N, H, W) grey, uint8."""

    def pixels(self, number: int) -> np.ndarray:
        pixels = np.asarray(self.pixels_N[number])
        return np.ascontiguousarray(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2))

    def missing(self) -> list[int]:
        return []

    def stamp(self) -> Iterator[bytes]:
        for number in range(len(self.names)):
            yield self.pixels(number).tobytes()


@dataclass(frozen=True)
class Question:
    """Which of some pictures go with a word?"""

    cue: str
    first: int
    """Number of the first picture."""
    candidates: int
    """How many there are."""
    right: tuple[int, ...]
    """Places of the right ones among them, from 0."""


@dataclass(frozen=True)
class AskedFiles:
    """Files with questions on the pictures of a split."""

    questions: str
    """QUESTIONS.json, or QUESTIONS.json,ANNOTATIONS.json where answers are known."""
    answers: tuple[str, ...]
    """Those of which the candidates are taken."""
    count: int
    """Of questions."""


@dataclass(frozen=True)
class Split:
    """One split of a set, as its files have it."""

    pictures: Pictures
    captions: tuple[tuple[str, ...], ...] | None = None
    """Of each picture; None: the set has none, or keeps them back."""
    label_N: np.ndarray | None = None
    """(N,) int64, places in `classes`."""
    classes: tuple[str, ...] = ()
    """Names for people, in the order of the official labels; those without a picture have their place, too."""
    keys: tuple[str, ...] = ()
    """What the files call the classes (WordNet ids, folder names, numbers), in the same order."""
    group_N: tuple[str, ...] | None = None
    """The part of the split each picture belongs to: NoCaps' domain."""
    no_groups: str = ""
    """Why there are none, where the set has them officially."""
    ids: tuple[str, ...] = ()
    """Official ids, which results for a server have to use; empty: the pictures' names."""
    notes: tuple[str, ...] = ()
    """What is there and was left out, or is not as expected, a line each."""
    named_by: str = ""
    """The file whose names of classes stand in prompts as they are; empty: names are mended where folders' names need it."""
    nameless: str = ""
    """Why `classes` are numbers, where nothing in the files names them."""
    templates: tuple[str, ...] = ()
    """Those that the set's files bring with them, each with {c}."""
    questions: tuple[Question, ...] = ()
    """Those that are asked of its pictures, as WinoGAViL's are."""
    asked: AskedFiles | None = None
    """VQA's."""

    def __len__(self) -> int:
        """N."""
        return len(self.pictures.names)


class Layout(Protocol):
    """Files of one or several sets."""

    def needs(self, split: str) -> tuple[str, ...]:
        """Paths below the set's folder without which the split cannot be read, the one that tells the set first; folders end with
        `/`, any of those around ` or ` will do, and `*`, `?` and `[0-9]` are as in a shell."""

    def read(self, root: Path, split: str) -> Split:
        """Raises `Damaged`."""


def present(root: Path, need: str) -> Path | None:
    """The first of a need's alternatives that is there."""
    for name in need.split(" or "):
        is_there = Path.is_dir if name.endswith("/") else Path.is_file
        found = next(
            (path for path in (sorted(root.glob(name)) if set("*?[") & set(name) else (root / name,)) if is_there(path)), None
        )
        if found is not None:
            return found
    return None


def needed(root: Path, need: str) -> Path:
    """The same; `Damaged` where none is."""
    found = present(root, need)
    if found is None:
        raise Damaged(f"{root}: no {need}")
    return found


def checked(split: Split, where: Path) -> Split:
    """The split, if its parts fit together.

    Raises:
        Damaged: pictures of one name, or outside the set's folder; labels beyond the classes; lists of other lengths.
    """
    names, count = split.pictures.names, len(split)
    if not count:
        raise Damaged(f"{where}: lists no picture")
    for kind, values in (("picture", names), ("id", split.ids)):
        if len(set(values)) < len(values):
            twice = [name for name, times in Counter(values).items() if times > 1]
            raise Damaged(f"{where}: {kind} {some(twice)} stands more than once")
    if isinstance(split.pictures, Files):
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
                raise Damaged(f"{where}: {name!r} is no path within the set's folder")
    if split.label_N is not None:
        if len(split.label_N) != count or len(split.classes) != len(split.keys):
            raise Damaged(f"{where}: {len(split.label_N)} labels for {count} pictures")
        wrong = np.flatnonzero((split.label_N < 0) | (split.label_N >= len(split.classes)))
        if len(wrong):
            raise Damaged(f"{where}: {names[wrong[0]]} has class {split.label_N[wrong[0]]}, expected 0 to {len(split.classes) - 1}")
    for what, values in (("captions", split.captions), ("groups", split.group_N), ("ids", split.ids or None)):
        if values is not None and len(values) != count:
            raise Damaged(f"{where}: {what} for {len(values)} of {count} pictures")
    return split


def numbered(label_N: np.ndarray, where: Path) -> tuple[str, ...]:
    """ "0", "1", ... in place of classes' names. Raises `Damaged` for a label beyond all sets that there are."""
    count = int(label_N.max(initial=-1)) + 1
    if count > MOST_CLASSES:
        raise Damaged(f"{where}: class {count - 1:,} and no names of classes, expected at most {MOST_CLASSES:,}")
    return tuple(map(str, range(count)))


def some(names: Sequence[str]) -> str:
    """`a, b, c and 7 more`."""
    more = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_json(path: Path) -> Any:
    """Raises `Damaged`."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{path}: not readable as JSON ({error})") from error


def read_lines(path: Path) -> list[str]:
    """Lines that hold something. Raises `Damaged`."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: not readable as text ({error})") from error


def read_rows(path: Path, kinds: Sequence[Callable[[str], Any]], separator: str | None = None) -> list[tuple]:
    """Lines of as many words as there are kinds, each turned into its kind. Raises `Damaged`, which names the line."""
    rows = []
    for line in read_lines(path):
        words = line.split(separator)
        try:
            rows.append(tuple(kind(word) for kind, word in zip(kinds, words, strict=True)))
        except ValueError as error:
            expected = " ".join(kind.__name__ for kind in kinds)
            raise Damaged(f"{path}: {line[:100]!r} is no line of {expected}") from error
    return rows


def read_mat(path: Path, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file. Raises `Damaged`, and `UserError` that names the extra if scipy is missing."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{path}: {error}; {how_to_install('eval')} brings it") from error
    try:
        content = loadmat(path)
        return [content[name] for name in names]
    except Exception as error:  # of broken files scipy raises whatever it comes upon
        raise Damaged(f"{path}: not as expected, a MATLAB file with {', '.join(names)} ({error!r})") from error


def folders_in(path: Path) -> list[str]:
    """Names of folders in a folder, hidden ones left out, in the order of their code points."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


def pictures_in(path: Path) -> tuple[list[str], list[str]]:
    """Names of pictures in a folder, in the order of their code points, and of files that are none by their extension."""
    names = sorted(entry.name for entry in os.scandir(path) if not entry.is_dir() and not entry.name.startswith("."))
    mine = [name for name in names if name.lower().endswith(EXTENSIONS)]
    return mine, sorted(set(names) - set(mine))

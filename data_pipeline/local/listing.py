"""Which files of a folder are taken with which captions, before any picture is opened. Every picture that goes is counted under one
reason, and named."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.catalogue.captions import clean, is_blank
from data_pipeline.files import sha256_text
from data_pipeline.local.captions import Pair
from data_pipeline.shards.samples import MAX_MEMBER_BYTES, MAX_TEXT_BYTES, MOST_CAPTIONS

NO_CAPTION = "no caption"
EMPTY = "empty caption"
TOO_LONG = "caption too long"
MISSING = "no such file"
OUTSIDE = "leads out of the folder"
NO_FILE = "no file"
TOO_LARGE = "file too large"
TWICE = "duplicate row"


@dataclass(frozen=True)
class Sample:
    """One sample to be: a picture with its captions."""

    file: str
    """Relative to the folder."""
    captions: tuple[str, ...]
    """Cleaned, ordered by `place_of`: at most MOST_CAPTIONS of together MAX_TEXT_BYTES, a line each."""
    size: int
    mtime_ns: int

    @property
    def place(self) -> str:
        """By which samples are ordered: those of a class do not stay together."""
        return place_of(self.file, self.captions[0])


def place_of(file: str, caption: str) -> str:
    """64 hex digits."""
    return sha256_text(f"{file}\0{caption}")


@dataclass
class Listing:
    samples: list[Sample] = field(default_factory=list)
    rows_in: int = 0
    left_out: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by (file as it was given, reason)."""

    @property
    def dropped(self) -> dict[str, int]:
        """Pictures by reason."""
        return dict(Counter(reason for _, reason in self.left_out).most_common())

    @property
    def joined(self) -> int:
        """Rows that stand for no picture of their own: further captions of one that another row has named."""
        return self.rows_in - len(self.samples) - len(self.left_out)


def list_samples(folder: Path, pairs: Iterable[Pair]) -> Listing:
    """The samples of a folder. No file is read; links that stay in the folder are followed, others are not."""
    found, root = Listing(), os.path.realpath(folder)
    files: dict[str, tuple[str, int, int] | str] = {}
    captions: dict[tuple[str, int, int], set[str]] = {}
    for given, caption in pairs:
        found.rows_in += 1
        if given not in files:
            files[given] = _look(folder, root, given)
        at, text = files[given], None if caption is None else clean(caption)
        if isinstance(at, str):
            reason = at
        elif text is None:
            reason = NO_CAPTION
        elif is_blank(text):
            reason = EMPTY
        elif len(text.encode()) > MAX_TEXT_BYTES:
            reason = TOO_LONG
        elif text in captions.setdefault(at, set()):
            reason = TWICE
        else:
            captions[at].add(text)
            continue
        found.left_out[given, reason] += 1
    for (file, size, mtime_ns), texts in captions.items():
        ordered = sorted(texts, key=lambda text, file=file: place_of(file, text))
        found.samples += [Sample(file, part, size, mtime_ns) for part in _parts(ordered)]
    return found


def _parts(captions: list[str]) -> list[tuple[str, ...]]:
    """As many captions together as a sample may have; nearly always all of them."""
    parts: list[list[str]] = []
    room = 0
    for caption in captions:
        size = len(caption.encode()) + 1
        if not parts or size > room or len(parts[-1]) == MOST_CAPTIONS:
            parts.append([])
            room = MAX_TEXT_BYTES + 1
        parts[-1].append(caption)
        room -= size
    return list(map(tuple, parts))


def _look(folder: Path, root: str, given: str) -> tuple[str, int, int] | str:
    """(path relative to the folder, bytes, time of change), or why the file is not taken."""
    if not given or "\0" in given:
        return MISSING
    path = os.path.join(folder, given)  # an absolute path stays one
    if not os.path.lexists(path) and "\\" in given:
        path = os.path.join(folder, given.replace("\\", "/"))
    real = os.path.realpath(path)
    if os.path.commonpath([real, root]) != root:
        return OUTSIDE
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return MISSING
    if not stat.S_ISREG(facts.st_mode):
        return NO_FILE
    if facts.st_size > MAX_MEMBER_BYTES:
        return TOO_LARGE
    inside = os.path.relpath(os.path.normpath(os.path.abspath(path)), os.path.abspath(folder))
    if inside.startswith(".."):  # by a link from outside into the folder
        inside = os.path.relpath(real, root)
    return inside, facts.st_size, facts.st_mtime_ns

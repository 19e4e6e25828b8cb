"""Which files of a folder are taken with which captions, before any picture is opened. Every row that goes is counted under one
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
from data_pipeline.shards.samples import MAX_MEMBER_BYTES, MAX_TEXT_BYTES

NO_CAPTION = "no caption"
EMPTY = "empty caption"
TOO_LONG = "caption too long"
MISSING = "no such file"
OUTSIDE = "leads out of the folder"
NO_FILE = "no file"
TOO_LARGE = "file too large"
TWICE = "duplicate row"


@dataclass(frozen=True)
class Row:
    """One sample to be: a picture with one of its captions."""

    file: str
    """Relative to the folder."""
    caption: str
    """Cleaned."""
    size: int
    mtime_ns: int

    @property
    def place(self) -> str:
        """64 hex digits by which samples are ordered: those of a class, or of a picture, do not stay together."""
        return sha256_text(f"{self.file}\0{self.caption}")


@dataclass
class Listing:
    rows: list[Row] = field(default_factory=list)
    rows_in: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """(file as it was given, reason)."""

    @property
    def dropped(self) -> dict[str, int]:
        return dict(Counter(reason for _, reason in self.left_out).most_common())


def list_rows(folder: Path, pairs: Iterable[Pair]) -> Listing:
    """The rows of a folder. No file is read; links that stay in the folder are followed, others are not."""
    found, root = Listing(), os.path.realpath(folder)
    files: dict[str, tuple[str, int, int] | str] = {}
    seen: set[tuple[str, str]] = set()
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
        elif (at[0], text) in seen:
            reason = TWICE
        else:
            seen.add((at[0], text))
            found.rows.append(Row(at[0], text, at[1], at[2]))
            continue
        found.left_out.append((given, reason))
    return found


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

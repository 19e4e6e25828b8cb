"""Is a set whole? What is there against what its page says, missing files, pictures that cannot be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.pictures import FetchError
from sycoca_ds.eval.datasets.reading import Absent, Pictures, Split, some
from sycoca_ds.eval.datasets.registry import Count, OfficialSet

WHOLE, BROKEN, ABSENT = "whole", "broken", "not here"


@dataclass(frozen=True)
class Finding:
    """What was found of a split."""

    state: str
    """whole, broken or not here."""
    found: Count | None = None
    """None: it could not be read."""
    root: Path | None = None
    problems: tuple[str, ...] = ()
    """Why it is broken, or not here; a line each."""
    notes: tuple[str, ...] = ()
    """What else is worth knowing."""


def look(
    entry: OfficialSet, data_root: Path, split: str, decode: bool = False, told: Callable[[int], None] = lambda _: None
) -> Finding:
    """Reads a split's lists, and looks for every picture that they name.

    Args:
        decode: open and decode each picture, too.
        told: is called with numbers of pictures as they are decoded.
    """
    try:
        root, read = entry.open(data_root, split)
    except Absent as error:
        return Finding(ABSENT, problems=(str(error),))
    except UserError as error:  # damaged, or scipy is missing
        return Finding(BROKEN, problems=(str(error),))
    found, missing = count_of(read), read.pictures.missing()
    if len(missing) == len(read) and split != entry.evaluated:
        folder = read.pictures.names[0].rpartition("/")[0]
        why = f"{entry.name}, split {split}: none of its pictures is there, no file that it names in {folder}/"
        return Finding(ABSENT, root=root, problems=(why,))
    problems = [*against(found, entry.counts[split]), *problems_of(read, missing)]
    if decode:
        gone = set(missing)
        problems += unreadable(read.pictures, [number for number in range(len(read)) if number not in gone], told)
    told_problems = tuple(f"{entry.name}, split {split}: {problem}" for problem in problems)
    return Finding(BROKEN if problems else WHOLE, found, root, told_problems, notes_of(read))


def count_of(read: Split) -> Count:
    captions = None if read.captions is None else sum(map(len, read.captions))
    return Count(len(read), captions, len(read.classes) if read.label_N is not None else None)


def against(found: Count, official: Count) -> list[str]:
    """Counts that are not the official ones."""
    pairs = [(what, getattr(found, what), getattr(official, what)) for what in ("pictures", "captions", "classes")]
    return [f"{have:,} {what}, officially {must:,}" for what, have, must in pairs if None not in (have, must) and have != must]


def problems_of(read: Split, missing: list[int]) -> list[str]:
    """What keeps a split from giving its numbers."""
    names, problems = read.pictures.names, []
    if missing:
        problems.append(f"{len(missing):,} of {len(read):,} pictures are not there: {some([names[number] for number in missing])}")
    bare = [name for name, captions in zip(names, read.captions, strict=True) if not captions] if read.captions is not None else []
    if bare:
        problems.append(f"{len(bare):,} pictures have no caption: {some(bare)}")
    return problems


def notes_of(read: Split) -> tuple[str, ...]:
    notes = list(read.notes)
    if read.label_N is not None:
        empty = np.flatnonzero(np.bincount(read.label_N, minlength=len(read.classes)) == 0)
        if len(empty):
            notes.append(f"{len(empty)} classes have no picture here: {some([read.keys[number] for number in empty])}")
        twice = [name for name, times in Counter(read.classes).items() if times > 1]
        if twice:
            notes.append(f"two classes share the name {some(twice)}")
    if read.group_N is not None:
        notes.append(", ".join(f"{count:,} {group}" for group, count in sorted(Counter(read.group_N).items())))
    return tuple(notes)


def unreadable(pictures: Pictures, numbers: list[int], told: Callable[[int], None]) -> list[str]:
    """Decodes pictures on all cores; a line that counts those that give none, by reason."""

    def reason(number: int) -> str | None:
        try:
            pictures.pixels(number)
        except FetchError as error:
            return error.reason
        except OSError as error:
            return error.strerror or type(error).__name__
        return None

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    reasons, bad = Counter(), []
    with ThreadPoolExecutor(cores) as pool:
        for done, (number, why) in enumerate(zip(numbers, pool.map(reason, numbers), strict=True), 1):
            if why is not None:
                reasons[why] += 1
                bad.append(pictures.names[number])
            told(done)
    if not bad:
        return []
    causes = ", ".join(f"{count} {why}" for why, count in reasons.most_common())
    return [f"{len(bad):,} of {len(pictures.names):,} pictures cannot be read ({causes}): {some(bad)}"]

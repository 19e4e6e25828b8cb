"""Where characters of one text stand in another that was made from it: cleaned, lowered, or cut into words differently."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

Span = tuple[int, int]
"""Characters from the first number up to, not including, the second."""


def carry(spans: Sequence[Span], source: str, target: str) -> list[Span]:
    """The spans of `source` as spans of `target`. Characters that are in one of the two only are passed over; of a span of which
    nothing is left comes an empty one.

    The texts are aligned with the least change of single characters, without regard to case. (difflib would take the longest
    common piece first, which in `red  red  red` and `red red red` belongs to two different words.)
    """
    if source == target:
        return [(start, end) for start, end in spans]
    place = [(0, 0)] * len(source)
    for i1, i2, j1, j2 in changed_blocks(source, target):
        alike = i2 - i1 == j2 - j1
        place[i1:i2] = [(j1 + n, j1 + n + 1) if alike else (j1, j2) for n in range(i2 - i1)]
    found = []
    for start, end in spans:
        ranges = [(a, b) for a, b in place[start:end] if a < b]
        found.append((min(a for a, _ in ranges), max(b for _, b in ranges)) if ranges else (0, 0))
    return found


GONE = 2
"""Price of a character that is in one of the texts only; two of them are dearer than one that became another of its kind."""


def price(one: str, other: str) -> int:
    """Of one character that became another: nothing but for its case, and never a letter of a space."""
    if one.lower() == other.lower():
        return 0
    if one.isspace() or other.isspace():
        return 1 if one.isspace() and other.isspace() else 2 * GONE
    return 3 if one.isalnum() == other.isalnum() else 2 * GONE


def changed_blocks(source: str, target: str) -> list[tuple[int, int, int, int]]:
    """(i1, i2, j1, j2): source[i1:i2] became target[j1:j2]; in order, covering both, equal characters one by one."""
    head = len(os.path.commonprefix([source, target]))
    tail = len(os.path.commonprefix([source[head:][::-1], target[head:][::-1]]))
    a, b = source[head : len(source) - tail], target[head : len(target) - tail]
    price_IJ = np.array([[price(one, other) for other in b] for one in a], np.int32).reshape(len(a), len(b))
    # the least change that turns a[:i] into b[:j]; of a row all at once, insertions by the running minimum of what is left of it
    cost_IJ = np.zeros((len(a) + 1, len(b) + 1), np.int32)
    inserted_J = GONE * np.arange(len(b) + 1)
    cost_IJ[0] = inserted_J
    for i in range(1, len(a) + 1):
        row = cost_IJ[i - 1] + GONE
        row[1:] = np.minimum(row[1:], cost_IJ[i - 1, :-1] + price_IJ[i - 1])
        cost_IJ[i] = np.minimum.accumulate(row - inserted_J) + inserted_J
    blocks, i, j = [], len(a), len(b)
    end = None  # of a run of changes, while one is walked through backwards
    while i or j:
        if i and j and not price_IJ[i - 1, j - 1] and cost_IJ[i, j] == cost_IJ[i - 1, j - 1]:
            if end is not None:
                blocks.append((i, end[0], j, end[1]))
                end = None
            i, j = i - 1, j - 1
            blocks.append((i, i + 1, j, j + 1))
            continue
        end = end or (i, j)
        if i and j and cost_IJ[i, j] == cost_IJ[i - 1, j - 1] + price_IJ[i - 1, j - 1]:
            i, j = i - 1, j - 1
        elif i and cost_IJ[i, j] == cost_IJ[i - 1, j] + GONE:
            i -= 1
        else:
            j -= 1
    if end is not None:
        blocks.append((0, end[0], 0, end[1]))
    middle = [(head + i1, head + i2, head + j1, head + j2) for i1, i2, j1, j2 in reversed(blocks)]
    before = [(n, n + 1, n, n + 1) for n in range(head)]
    after = [(len(source) - n, len(source) - n + 1, len(target) - n, len(target) - n + 1) for n in range(tail, 0, -1)]
    return [*before, *middle, *after]

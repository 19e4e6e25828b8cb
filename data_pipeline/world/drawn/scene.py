"""What the scenes of every drawn world have in common: a caption that knows which of its words name which object.

A caption is written with marks, `a [1|small red star] on a [0|striped cyan background]`: the number is the object's label (0 the
background), the words behind it are the phrase that names it. `tell` takes the marks off and says where the phrases lie."""

from __future__ import annotations

import re
from dataclasses import dataclass

BACKGROUND = 0
"""The background's label in marks and masks; objects have 1, 2, ..."""
MARK = re.compile(r"\[(\d+)\|([^]]*)\]")


@dataclass(frozen=True)
class Told:
    """A caption without its marks."""

    text: str
    spans: dict[int, tuple[int, int]]
    """By label: first character of the phrase that names it, and the one behind its last. Labels without one are unnamed."""


def tell(marked: str) -> Told:
    """`a [1|red star]` -> Told("a red star", {1: (2, 10)}). A label is named once at most."""
    text, spans, read = "", {}, 0
    for mark in MARK.finditer(marked):
        text += marked[read : mark.start()]
        label = int(mark[1])
        assert label not in spans, marked
        spans[label] = (len(text), len(text) + len(mark[2]))
        text += mark[2]
        read = mark.end()
    return Told(text + marked[read:], spans)


def joined(parts: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


class Scene:
    """A description. Two pictures of one description differ only in what a picture's own seed decides."""

    marked: str
    """The caption with its marks."""
    names: tuple[str, ...]
    """Colour and shape of every object, named or not; that of the object with label k is names[k - 1]."""
    background_name: str
    label: int
    """The scene's class."""
    identity: tuple
    """What two equal scenes share; no two scenes of a world have the same."""

    @property
    def told(self) -> Told:
        return tell(self.marked)

    @property
    def caption(self) -> str:
        return self.told.text

    def regions(self, mask: str) -> dict:
        """This scene's entry in `SPLIT_regions.json`, for a mask at the path `mask`."""
        told = self.told

        def mention(label: int, name: str) -> dict:
            span = told.spans.get(label)
            return {"name": name, "named": span is not None, "span": None if span is None else list(span)}

        return {
            "mask": mask,
            "caption": told.text,
            "objects": [{"label": label, **mention(label, name)} for label, name in enumerate(self.names, 1)],
            "background": mention(BACKGROUND, self.background_name),
        }

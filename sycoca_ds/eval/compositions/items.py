"""What every benchmark of compositions comes to: items of one or two pictures and two captions, and the pictures behind them.

Legend: S image side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_pipeline.errors import UserError

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels of the picture as it is stored."""


class View(NamedTuple):
    """A picture, or a part of it."""

    file: Path
    box: Box | None = None

    def load(self, size: int) -> torch.Tensor:
        """(3, S, S) uint8 as `Collection.image` gives it. ValueError or OSError for what cannot be read, or a part without pixels.

        A part that reaches beyond the picture is black there, as PIL crops it and ARO's own loader with it.
        """
        import numpy as np
        from PIL import Image

        from sycoca_ds.data.transforms import eval_image, load_image

        image_HWC = load_image(self.file.read_bytes())
        if self.box is not None:
            height, width = image_HWC.shape[:2]
            left, top, right, bottom = self.box
            if not (max(left, 0) < min(right, width) and max(top, 0) < min(bottom, height)):
                raise ValueError(f"its part {self.box} has no pixel of its {width} x {height}")
            if right - left > 2 * width or bottom - top > 2 * height:
                raise ValueError(f"its part {self.box} is more than twice as large as its {width} x {height}")
            image_HWC = np.asarray(Image.fromarray(image_HWC).crop(self.box))
        return eval_image(image_HWC, size)


class Item(NamedTuple):
    """One question."""

    name: str
    """What the benchmark calls it."""
    group: str
    """The subset, relation or pair of attributes it counts under."""
    views: tuple[View, ...]
    """One, or two of which the n-th goes with the n-th caption."""
    captions: tuple[str, str]
    """Of one view first the one that is true, then the other."""


@dataclass(frozen=True)
class CompositionSet:
    """One benchmark."""

    name: str
    """The first part of its numbers' names."""
    title: str
    folder: Path
    items: tuple[Item, ...]
    counted: tuple[str, ...]
    """Groups whose mean is the benchmark's number."""
    digest: str
    """Of all that numbers depend on."""
    missing: dict[str, str] = field(default_factory=dict)
    """{group that is not there: why}."""

    def told(self) -> str:
        """One line for people."""
        pictures = len({view.file for item in self.items for view in item.views})
        return f"compositions ({self.title}): {len(self.items):,} items on {pictures:,} pictures of {self.folder}"


def read_json(name: str, path: Path, expected: str) -> Any:
    """Raises `UserError` where that fails."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--compositions {name}: {path} is not readable as JSON ({error}); expected {expected}") from error


def texts_of(name: str, where: str, entry: Any, fields: Sequence[str]) -> list[str]:
    """The texts of an entry's fields. UserError names the entry and the field that is not there or no text."""
    for text in fields:
        if not isinstance(entry, dict) or not isinstance(entry.get(text), str):
            raise UserError(
                f"--compositions {name}: {where}: expected an object with the texts {', '.join(fields)}; {text} is none"
            )
    return [entry[text] for text in fields]


def check_pictures(name: str, items: Iterable[Item], expected: str) -> None:
    """UserError for pictures that are not there. A benchmark without some of its pictures would be another one.

    Args:
        expected: which pictures belong where, and where they come from.
    """
    files = sorted({view.file for item in items for view in item.views})
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"--compositions {name}: {len(missing):,} of {len(files):,} pictures are not there, the first is {missing[0]}; "
            f"expected {expected}"
        )


def digest_of(items: Iterable[Item]) -> str:
    """Of the items, and of their pictures by name, size and time: hashing gigabytes would take longer than some evaluations."""
    seen, told = hashlib.sha256(), set()
    for item in items:
        seen.update(repr((item.name, item.group, item.captions, [view.box for view in item.views])).encode())
        for file in (view.file for view in item.views):
            seen.update(file.name.encode())
            if file not in told:
                told.add(file)
                found = file.stat()
                seen.update(repr((found.st_size, found.st_mtime_ns)).encode())
    return seen.hexdigest()

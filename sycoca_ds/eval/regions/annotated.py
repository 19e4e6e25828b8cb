"""What every layout of regions gives for a picture, in the picture's own pixels.

Legend: H, W the annotated picture's pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np

from data_pipeline.catalogue.captions import comparable
from data_pipeline.errors import UserError
from sycoca_ds.data.alignment import Span
from sycoca_ds.eval.collection import Picture

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")

UNSAID = -1
"""Label of a pixel of which nothing is said."""


@dataclass(frozen=True)
class Thing:
    """One object, or all objects of one kind, of a picture."""

    name: str
    mask_HW: np.ndarray
    """bool."""
    named: bool
    """Whether the caption names it."""


@dataclass(frozen=True)
class Phrase:
    """Words of the caption that name things of the picture."""

    spans: tuple[Span, ...]
    """Characters of `Annotated.sentence`."""
    things: tuple[int, ...]
    """Which of `Annotated.things`."""


@dataclass(frozen=True)
class Annotated:
    """One picture with its caption."""

    things: tuple[Thing, ...]
    phrases: tuple[Phrase, ...]
    sentence: str
    """The caption as it is annotated."""
    background_HW: np.ndarray
    """bool: what no thing covers; pixels of which nothing is known are neither."""
    background_named: bool = False
    """Whether the caption names the background, or the scene as a whole."""

    @property
    def digest(self) -> bytes:
        """Of all of it."""
        told = ([(thing.name, thing.named) for thing in self.things], self.phrases, self.sentence, self.background_named)
        found = hashlib.sha256(repr((told, self.background_HW.shape)).encode())
        for mask_HW in (*(thing.mask_HW for thing in self.things), self.background_HW):
            found.update(np.packbits(mask_HW).tobytes())
        return found.digest()


class OtherCaption(Exception):
    """The picture is annotated with other captions than this one."""


class Layout(Protocol):
    """Regions on the disk."""

    kind: str
    """For people."""
    classes: tuple[str, ...]
    """Names of the classes that its pixels are of; empty: it has none."""

    def find(self, picture: Picture) -> Hashable | None:
        """What `load` takes for a picture; None: it is not annotated."""

    def load(self, found: Any, caption: str) -> Annotated:
        """Raises `OtherCaption`, and `UserError` for what is damaged."""

    def labels(self, found: Any) -> np.ndarray:
        """int16 (H, W): `UNSAID`, 0 at the background, k at the k-th of `classes`, counted from 1. Errors as of `load`."""


def names_of(picture: Picture) -> list[str]:
    """What a picture may be called in annotations made for files: the last part of its url, then of its key, without extension."""
    return [stem(unquote(urlsplit(picture.url).path)), stem(picture.key)]


def stem(path: str) -> str:
    """A file's name without folders and without a picture's extension; other dots stay."""
    name = PurePosixPath(path.replace("\\", "/")).name
    return name[: name.rindex(".")] if name.lower().endswith(EXTENSIONS) else name


def same_caption(sentence: str, caption: str) -> bool:
    """Whether two captions differ in case, punctuation and spacing only."""
    return sentence == caption or comparable(sentence) == comparable(caption)


def uncovered(things: Sequence[Thing], shape: tuple[int, int]) -> np.ndarray:
    """bool (H, W): what none of the things covers."""
    covered_HW = np.zeros(shape, bool)
    for thing in things:
        covered_HW |= thing.mask_HW
    return ~covered_HW


def read_json(path: Path) -> Any:
    """Raises `UserError` where that fails."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"regions {path}: not readable as JSON ({error})") from error


def read_labels(path: Path) -> np.ndarray:
    """uint8 (H, W): the numbers of a label picture of one channel, also of one with a palette. UserError if it is none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"regions {path}: a picture of mode {image.mode}, expected one number a pixel (PNG, 8 bits, grey or palette)"
                )
            return np.asarray(image)
    except (OSError, ValueError) as error:
        raise UserError(f"regions {path}: the label picture cannot be read ({error})") from error

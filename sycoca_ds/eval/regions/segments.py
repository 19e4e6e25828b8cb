"""Classes of pixels, in the part of a picture that the model is shown.

Legend: H, W the annotated picture's pixels, C the side of the square in its middle.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.progress import Progress
from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.regions.patches import fits
from sycoca_ds.eval.regions.reading import open_layout


@dataclass(frozen=True)
class Segments:
    """Classes of the pixels of a data set's pictures, in its order. Packed: some kilobytes a picture."""

    kind: str
    """Of their layout."""
    classes: tuple[str, ...]
    """Empty: this layout has none."""
    packed: Sequence[tuple[int, bytes] | None]
    """(C, deflated int16) by picture; None: not annotated, or stored cropped since."""

    @property
    def there(self) -> list[int]:
        """Numbers of the pictures that have them."""
        return [number for number, packed in enumerate(self.packed) if packed is not None]

    def labels(self, number: int) -> np.ndarray:
        """int16 (C, C): -1 where nothing is said, 0 at the background, k at the k-th class, counted from 1."""
        side, packed = self.packed[number]
        return np.frombuffer(zlib.decompress(packed), np.int16).reshape(side, side)

    @property
    def digest(self) -> str:
        """Of all that numbers depend on."""
        seen = hashlib.sha256(repr(self.classes).encode())
        for packed in self.packed:
            seen.update(b"-" if packed is None else zlib.decompress(packed[1]))
        return seen.hexdigest()


def middle(label_HW: np.ndarray) -> np.ndarray:
    """The square that `eval_image` shows of a picture, to the nearest pixel; not resized, so that no label is made up."""
    height, width = label_HW.shape
    side = min(height, width)
    top, left = round((height - side) / 2), round((width - side) / 2)
    return label_HW[top : top + side, left : left + side]


def read_segments(path: str | Path, collection: PictureSet) -> Segments:
    """Those of a file or folder of regions. UserError: of no known layout, or damaged."""
    layout = open_layout(path)
    if not layout.classes:
        return Segments(layout.kind, (), [None] * len(collection))
    packed: list[tuple[int, bytes] | None] = []
    with Progress("read classes of pixels", total=len(collection), unit="images") as bar:
        for picture in collection.pictures:
            found = layout.find(picture)
            label_HW = None if found is None else layout.labels(found)
            if label_HW is None or not fits(picture, label_HW.shape):
                packed.append(None)
            else:
                label_CC = np.ascontiguousarray(middle(label_HW))
                packed.append((len(label_CC), zlib.compress(label_CC.tobytes(), 1)))
            bar.advance(1)
    return Segments(layout.kind, layout.classes, packed)

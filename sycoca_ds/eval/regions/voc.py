"""PASCAL VOC's layout (the VOC2012 development kit; labelme's export is the same): a folder with SegmentationClass/NAME.png.

A pixel is 0 at the background, k at class k, 255 where nothing is said (VOC's borders). `class_names.txt` or `labels.txt` in the
folder has the classes, a line a number, the background first (labelme begins with __ignore__, which is 255); without one they are
VOC's 20. The captions are the data set's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.collection import Picture
from sycoca_ds.eval.regions.annotated import UNSAID, Annotated, Phrase, Thing, names_of, read_labels
from sycoca_ds.eval.regions.names import Names, read_synonyms

CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
UNKNOWN = 255


class Voc:
    """Pictures by file name."""

    kind = "PASCAL VOC"

    def __init__(self, folder: Path):
        self.folder = folder / "SegmentationClass"
        self.known = {path.stem for path in self.folder.glob("*.png")}
        lists = [path for path in (folder / "class_names.txt", folder / "labels.txt") if path.is_file()]
        lines = lists[0].read_text(encoding="utf-8").split("\n") if lists else CLASSES
        self.classes = tuple(line.strip() for line in lines if line.strip() and line.strip() != "__ignore__")[1:]
        self.names = Names(self.classes, read_synonyms(folder / "synonyms.txt"))

    def find(self, picture: Picture) -> str | None:
        return next((name for name in names_of(picture) if name in self.known), None)

    def load(self, found: str, caption: str) -> Annotated:
        label_HW, said = self.labels(found), self.names.find(caption)
        there = [(label, self.classes[label - 1]) for label in map(int, np.unique(label_HW)) if label > 0]
        things = tuple(Thing(name, label_HW == label, name in said) for label, name in there)
        phrases = tuple(Phrase(said[thing.name], (number,)) for number, thing in enumerate(things) if thing.named)
        return Annotated(things, phrases, caption, label_HW == 0)

    def labels(self, found: str) -> np.ndarray:
        path = self.folder / f"{found}.png"
        label_HW = read_labels(path).astype(np.int16)
        label_HW[label_HW == UNKNOWN] = UNSAID
        if label_HW.max() > len(self.classes):
            raise UserError(
                f"regions {path}: class {label_HW.max()}, but there are {len(self.classes)}; list them in class_names.txt"
            )
        return label_HW

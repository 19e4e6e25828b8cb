"""A split of one of the paper's sets as the tasks of the evaluation take it."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.pictures import FetchError
from sycoca_ds.eval.collection import Picture, PictureSet
from sycoca_ds.eval.datasets.check import against, count_of, notes_of, problems_of
from sycoca_ds.eval.datasets.names import Prompts, labels_of
from sycoca_ds.eval.datasets.reading import Files
from sycoca_ds.eval.datasets.registry import OfficialSet
from sycoca_ds.eval.labels import LabelSet


class OfficialCollection(PictureSet):
    """Pictures in the order of the set's lists. A count that is not the official one stands in `facts`; a picture that is not
    there, or has no caption, is an error, since any number without it would be of another set."""

    compared_by_url = False

    def __init__(self, entry: OfficialSet, data_root: Path, image_size: int):
        """image_size: S. Raises `UserError`: the evaluated split is not there (`Absent`), or not whole enough for its numbers."""
        root, read = entry.open(data_root, entry.evaluated)
        problems = problems_of(read, read.pictures.missing())
        if problems:
            raise UserError(f"{entry.name}, split {entry.evaluated}: {'; '.join(problems)}")
        self.entry, self.read, self.data_root = entry, read, data_root
        names = read.pictures.names
        pictures = [Picture(own, name, name) for own, name in zip(read.ids or names, names, strict=True)]
        own = [(caption, number) for number, captions in enumerate(read.captions or ()) for caption in captions]
        captions, image_of_text = [caption for caption, _ in own], [number for _, number in own]
        super().__init__(root, image_size, self._digest(), pictures, captions, image_of_text)
        found, official = count_of(read), entry.counts[entry.evaluated]
        self.facts = {
            "set": entry.name,
            "split": entry.evaluated,
            "counts": asdict(found),
            "official_counts": asdict(official),
            "not_as_published": against(found, official),
            "notes": list(notes_of(read)),
            "page": entry.page,
        }

    def _digest(self) -> str:
        """Of lists and of the pictures' sizes and times, or of their pixels where they lie in arrays: what results depend on. The
        pictures' own bytes would take as long to read as the evaluation takes."""
        read, parts = self.read, hashlib.sha256()
        labels = read.label_N.tolist() if read.label_N is not None else None
        parts.update(json.dumps([self.entry.name, list(read.pictures.names), read.captions, labels, read.keys, read.ids]).encode())
        if isinstance(read.pictures, Files):
            for name in read.pictures.names:
                found = os.stat(read.pictures.root / name)
                parts.update(f"{found.st_size} {found.st_mtime_ns}\n".encode())
        else:
            for number in range(len(read)):
                parts.update(read.pictures.pixels(number).tobytes())
        return parts.hexdigest()

    def pixels(self, number: int) -> np.ndarray:
        try:
            return self.read.pictures.pixels(number)
        except (FetchError, OSError) as error:
            why = error.reason if isinstance(error, FetchError) else error.strerror
            raise UserError(
                f"{self.entry.name}: {self.read.pictures.names[number]} in {self.folder} cannot be read ({why}); count them by: "
                f"python -m sycoca_ds.eval datasets --data-root {self.data_root} --sets {self.entry.name} --decode"
            ) from error

    def labels(self, prompts: Prompts | None) -> LabelSet | None:
        """None for a set without classes. Raises `UserError` where nothing says what they are called."""
        if self.read.label_N is None:
            return None
        labels, told = labels_of(self.entry, self.folder, self.read, self.data_root, prompts)
        self.facts |= told
        return labels

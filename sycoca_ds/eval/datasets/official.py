"""A split of one of the paper's sets as the tasks of the evaluation take it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.pictures import FetchError
from sycoca_ds.eval.collection import Picture, PictureSet
from sycoca_ds.eval.datasets.check import against, count_of, notes_of, problems_of
from sycoca_ds.eval.datasets.names import Prompts, labels_of
from sycoca_ds.eval.datasets.registry import OfficialSet
from sycoca_ds.eval.labels import LabelSet
from sycoca_ds.eval.probe.data import Labelled, ProbeData


class OfficialCollection(PictureSet):
    """Pictures in the order of the set's lists. A count that is not the official one stands in `facts`; a picture that is not
    there, or has no caption, is an error, since any number without it would be of another set."""

    compared_by_url = False

    def __init__(self, entry: OfficialSet, data_root: Path, image_size: int, split: str | None = None):
        """image_size: S. split: default the one that is evaluated. Raises `UserError`: it is not there (`Absent`), or not whole
        enough for its numbers."""
        split = split or entry.evaluated
        root, read = entry.open(data_root, split)
        problems = problems_of(read, read.pictures.missing())
        if problems:
            raise UserError(f"{entry.name}, split {split}: {'; '.join(problems)}")
        self.entry, self.read, self.data_root = entry, read, data_root
        names = read.pictures.names
        pictures = [Picture(own, name, name) for own, name in zip(read.ids or names, names, strict=True)]
        own = [(caption, number) for number, captions in enumerate(read.captions or ()) for caption in captions]
        captions, image_of_text = [caption for caption, _ in own], [number for _, number in own]
        super().__init__(root, image_size, self._digest(), pictures, captions, image_of_text)
        if read.group_N is not None:
            self.domains = read.group_N
        elif read.no_groups:
            self.no_domains = read.no_groups
        self.cues = read.questions
        found, official, notes = count_of(read), entry.counts[split], notes_of(read)
        odd = [note for note in notes if "officially" in note]  # of what is counted in no other set, as WinoGAViL's questions
        self.facts = {
            "set": entry.name,
            "split": split,
            "counts": asdict(found),
            "official_counts": asdict(official),
            "not_as_published": [*against(found, official), *odd],
            "notes": [note for note in notes if note not in odd],
            "page": entry.page,
        }

    def _digest(self) -> str:
        """Of lists and the pictures' stamp: what results depend on."""
        read, parts = self.read, hashlib.sha256()
        labels = read.label_N.tolist() if read.label_N is not None else None
        parts.update(
            json.dumps(
                [self.entry.name, list(read.pictures.names), read.captions, labels, read.keys, read.ids, read.group_N]
            ).encode()
        )
        if read.questions:
            parts.update(repr(read.questions).encode())
        for piece in read.pictures.stamp():
            parts.update(piece)
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

    def probe_data(self) -> ProbeData:
        """Splits that a linear probe is fitted on. Raises `UserError`: one is not there (`Absent`), or has other classes."""
        parts = []
        for split in self.entry.fitted:
            part = OfficialCollection(self.entry, self.data_root, self.image_size, split)
            if part.read.keys != self.read.keys:
                raise UserError(
                    f"{self.entry.name}: split {split} has {len(part.read.keys)} classes that are not the {len(self.read.keys)} of "
                    f"split {self.facts['split']}; expected the same"
                )
            parts.append(Labelled(split, part, part.read.label_N, part.digest))
            self.facts["fitted"] = self.facts.get("fitted", []) + [part.facts]
            self.facts["not_as_published"] += [f"split {split}: {line}" for line in part.facts["not_as_published"]]
        return ProbeData(*parts)

    def labels(self, prompts: Prompts | None) -> LabelSet | None:
        """None for a set without classes. Raises `UserError` where nothing says what they are called."""
        if self.read.label_N is None:
            return None
        labels, told = labels_of(self.entry, self.folder, self.read, self.data_root, prompts)
        self.facts |= told
        return labels

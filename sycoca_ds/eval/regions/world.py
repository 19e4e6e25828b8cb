"""Regions of the drawn world: `{split}_regions.json`, and a label picture for each picture.

    {"format": 1, "pictures": {URL: {"mask": "regions/test/00000.png", "caption": "...",
        "objects": [{"label": 1, "name": "red star", "named": true, "span": [2, 10]}, ...],
        "background": {"name": "striped cyan", "named": false, "span": null}}}}

`mask` is relative to the file; its pixels are 0 at the background and k at the object with label k. `span`: characters of the
caption.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.collection import Picture
from sycoca_ds.eval.regions.annotated import UNSAID, Annotated, OtherCaption, Phrase, Thing, read_labels, same_caption

FORMAT = 1


class World:
    """Pictures by url."""

    kind = "drawn world"

    def __init__(self, files: dict[Path, Any]):
        """files: content of each file by its path. UserError: another format."""
        self.records: dict[str, tuple[Path, dict]] = {}
        for path, content in files.items():
            if content.get("format") != FORMAT or not isinstance(content["pictures"], dict):
                raise UserError(f"regions {path}: format {content.get('format')!r}, expected {FORMAT}; draw the world again")
            self.records |= {url: (path, record) for url, record in content["pictures"].items()}
        try:
            named = {entry["name"] for _, record in self.records.values() for entry in record["objects"]}
        except (KeyError, TypeError) as error:
            raise UserError(f"regions {path}: a record is not as expected ({error!r})") from error
        self.classes = tuple(sorted(named))
        self.class_of = {name: number for number, name in enumerate(self.classes, 1)}

    def find(self, picture: Picture) -> str | None:
        return picture.url if picture.url in self.records else None

    def load(self, found: str, caption: str) -> Annotated:
        path, record = self.records[found]
        try:
            if not same_caption(record["caption"], caption):
                raise OtherCaption
            label_HW = read_labels(path.parent / record["mask"])
            objects = [(entry["label"], entry["name"], entry["named"], entry["span"]) for entry in record["objects"]]
            things = tuple(Thing(name, label_HW == label, bool(named)) for label, name, named, _ in objects)
            spans = {tuple(span): [] for _, _, named, span in objects if named and span}
            for number, (_, _, named, span) in enumerate(objects):
                if named and span:
                    spans[tuple(span)].append(number)
            phrases = tuple(Phrase((span,), tuple(numbers)) for span, numbers in spans.items())
            return Annotated(things, phrases, record["caption"], label_HW == 0, bool(record["background"]["named"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"regions {path}: the record of {found} is not as expected ({error!r})") from error

    def labels(self, found: str) -> np.ndarray:
        path, record = self.records[found]
        try:
            label_HW = read_labels(path.parent / record["mask"])
            class_V = np.full(256, UNSAID, np.int16)
            class_V[0] = 0
            for entry in record["objects"]:
                class_V[entry["label"]] = self.class_of[entry["name"]]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"regions {path}: the record of {found} is not as expected ({error!r})") from error
        return class_V[label_HW]

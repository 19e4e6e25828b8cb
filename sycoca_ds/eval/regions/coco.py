"""COCO's instances_*.json (cocodataset.org, format-data): polygons, run lengths as lists and as strings, by pycocotools.

    {"images": [{"id", "file_name", "height", "width"}], "categories": [{"id", "name"}],
     "annotations": [{"image_id", "category_id", "segmentation", "iscrowd"}]}

All instances of a category are one thing, since a caption's word means any of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError, how_to_install
from sycoca_ds.eval.collection import Picture
from sycoca_ds.eval.regions.annotated import Annotated, Phrase, Thing, names_of, stem, uncovered
from sycoca_ds.eval.regions.names import Names, read_synonyms

SPLIT = re.compile(r"^COCO_(?:train|val|test)\d{4}_")


class Coco:
    """Pictures by file name, also by those of the other release (COCO_val2014_000000391895 is 000000391895), or by id."""

    kind = "COCO instances"

    def __init__(self, files: dict[Path, Any]):
        """files: content of each file by its path. UserError: not of this layout."""
        self.images: dict[int, dict] = {}
        self.by_name: dict[str, int] = {}
        self.annotations: dict[int, list[dict]] = defaultdict(list)
        self.categories: dict[int, str] = {}
        synonyms: dict[str, list[str]] = {}
        for path, content in files.items():
            try:
                self.categories |= {entry["id"]: entry["name"] for entry in content["categories"]}
                for entry in content["images"]:
                    self.images[entry["id"]] = {"path": path, "shape": (entry["height"], entry["width"])}
                    self.by_name[SPLIT.sub("", stem(entry["file_name"]))] = entry["id"]
                for entry in content["annotations"]:
                    self.annotations[entry["image_id"]].append(entry)
            except (KeyError, TypeError) as error:
                raise UserError(f"regions {path}: not as COCO's instances ({error!r})") from error
            synonyms |= read_synonyms(path.parent / "synonyms.txt")
        self.names = Names(self.categories.values(), synonyms)
        self.classes = tuple(dict.fromkeys(self.categories[number] for number in sorted(self.categories)))

    def find(self, picture: Picture) -> int | None:
        names = [SPLIT.sub("", name) for name in names_of(picture)]
        found = next((self.by_name[name] for name in names if name in self.by_name), None)
        if found is None:  # a bare id, not a running number of our own shards, which begins with zeros
            found = next((int(name) for name in names if re.fullmatch(r"[1-9]\d*", name) and int(name) in self.images), None)
        return found

    def load(self, found: int, caption: str) -> Annotated:
        shape, masks = self.images[found]["shape"], {}
        for name, mask_HW in self.instances(found):
            masks[name] = masks[name] | mask_HW if name in masks else mask_HW
        said = self.names.find(caption)
        things = tuple(Thing(name, mask_HW, name in said) for name, mask_HW in masks.items())
        phrases = tuple(Phrase(said[thing.name], (number,)) for number, thing in enumerate(things) if thing.named)
        return Annotated(things, phrases, caption, uncovered(things, shape))

    def instances(self, found: int) -> Iterator[tuple[str, np.ndarray]]:
        """(category, bool (H, W)) of each annotation."""
        image = self.images[found]
        for entry in self.annotations[found]:
            try:
                mask_HW, name = decode(entry["segmentation"], *image["shape"]), self.categories[entry["category_id"]]
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"regions {image['path']}: an annotation of image {found} is not as COCO's ({error!r})") from error
            yield name, mask_HW

    def labels(self, found: int) -> np.ndarray:
        """Where instances overlap, the smallest counts: it lies in front more often than not."""
        label_HW = np.zeros(self.images[found]["shape"], np.int16)
        for name, mask_HW in sorted(self.instances(found), key=lambda pair: -int(pair[1].sum())):
            label_HW[mask_HW] = self.classes.index(name) + 1
        return label_HW


def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """bool (H, W) of a list of polygons (x, y in turn), or of run lengths as a list or as COCO's string. UserError names the extra
    if pycocotools is missing."""
    try:
        from pycocotools import mask as runs
    except ImportError as error:
        raise UserError(f"regions in COCO's layout: {error}; {how_to_install('eval')} brings it") from error
    if isinstance(segmentation, list):
        runs_R = runs.frPyObjects(segmentation, height, width) if segmentation else []
    elif isinstance(segmentation["counts"], list):
        runs_R = [runs.frPyObjects(segmentation, height, width)]
    else:
        runs_R = [segmentation]
    if not runs_R:
        return np.zeros((height, width), bool)
    mask_HW = runs.decode(runs.merge(runs_R)).astype(bool)
    if mask_HW.shape != (height, width):
        raise ValueError(f"run lengths of {mask_HW.shape} pixels in a picture of {(height, width)}")
    return mask_HW

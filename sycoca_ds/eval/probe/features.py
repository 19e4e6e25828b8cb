"""Frozen features of pictures with their classes.

Legend: N pictures that have a class, D width of the features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.probe.data import Labelled
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays

FEATURES = {"output": "image_outputs", "embedding": "image_features"}
"""{what `--probe-features` may be: the model's task}."""
WHAT = "features of labelled images"
"""What the cache calls them."""


@dataclass(frozen=True)
class Known:
    """Features and classes of the pictures that have a class, in order."""

    feature_ND: np.ndarray
    """float64: in float32 L-BFGS stops where sums can no longer tell whether it descends, and another machine stops elsewhere."""
    label_N: np.ndarray

    def __len__(self) -> int:
        return len(self.label_N)

    def only(self, which_N: np.ndarray) -> Known:
        return Known(self.feature_ND[which_N], self.label_N[which_N])

    def digest(self) -> str:
        """sha256 of all of it."""
        digest = hashlib.sha256(repr(self.feature_ND.shape).encode())
        for array in (self.feature_ND, self.label_N):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def and_then(self, other: Known) -> Known:
        """Both, one behind the other."""
        return Known(np.concatenate([self.feature_ND, other.feature_ND]), np.concatenate([self.label_N, other.label_N]))


@dataclass(frozen=True)
class Look:
    """The model's task on pictures of a split, with what they are."""

    labelled: str

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        data, label_I = split_of(bench, self.labelled)
        image = bench.pixels(torch.stack([data.image(number) for number in numbers]))
        feature = bench.call(FEATURES[bench.options.probe_features], image_BCHW=image)
        return {
            "feature": feature.float().cpu().numpy(),
            "label": label_I[numbers],
            "image_id": np.array([data.pictures[number].image_id for number in numbers], dtype=str),
        }


def split_of(bench: Bench, name: str) -> tuple[PictureSet, np.ndarray]:
    """Pictures of a split to fit on, or the evaluated ones, and the class of each (I,). On every rank."""
    probe = bench.inputs.probe
    for split in (probe.train, probe.validation):
        if split is not None and split.name == name:
            return split.pictures, split.label_I
    return bench.collection, bench.inputs.labels.of([picture.url for picture in bench.collection.pictures])


def known(bench: Bench, labelled: Labelled) -> Known:
    """Features as `--probe-features` says; the cache has them as float32, with image_id and label."""
    key = {"what": WHAT, "split": labelled.name, "labels": labelled.digest, "features": bench.options.probe_features}
    data, told = labelled.pictures, f"features of {labelled.name} images"
    feature_ID = bench.map_of_images(Look(labelled.name), len(data), told, "images", key, data)["feature"]
    has = labelled.label_I >= 0
    return Known(feature_ID[has].astype(np.float64), labelled.label_I[has])

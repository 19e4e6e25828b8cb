"""Pictures with classes, to train a linear probe and to choose its C.

Legend: I pictures of a set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.collection import Collection, PictureSet
from sycoca_ds.eval.labels import LabelSet, load_labels

HELD_OUT = 5
"""One in so many training pictures of a class is held out to choose C, where a set has no validation split."""


@dataclass(frozen=True)
class Labelled:
    """Pictures and the class of each."""

    name: str
    """What they are called for people, and in files: `train`."""
    pictures: PictureSet
    label_I: np.ndarray
    """(I,) int64, -1: none."""
    digest: str
    """Of pictures and classes."""


@dataclass(frozen=True)
class ProbeData:
    """What a probe is fitted on beside the evaluated pictures, which it is tested on."""

    train: Labelled
    validation: Labelled | None = None
    """None: a part of `train` is held out."""


def own_probe_data(folder: str | Path, labels: str | Path | None, tested: LabelSet | None, image_size: int) -> ProbeData:
    """A data set folder of ours to train on.

    Args:
        folder: `--probe-train`. labels: `--probe-labels`, of these pictures; None: the file of the tested ones has theirs, too.
        tested: of the pictures that are tested on. image_size: S.

    Raises:
        UserError: no labels, or of other classes than the tested ones; no such folder.
    """
    if tested is None:
        raise UserError("--probe-train goes with --labels, which says what the pictures of --data show")
    given = tested if labels is None else load_labels(labels)
    if given.classes != tested.classes:
        raise UserError(
            f"--probe-labels {labels}: {len(given.classes)} classes that are not the {len(tested.classes)} of --labels "
            f"{tested.path}; expected the same, in the same order"
        )
    pictures = Collection(folder, image_size)
    label_I = given.of([picture.url for picture in pictures.pictures])
    return ProbeData(Labelled("train", pictures, label_I, f"{pictures.digest} {given.digest}"))


def held_out(label_N: np.ndarray, seed: int) -> np.ndarray:
    """(N,) bool: one in `HELD_OUT` pictures of each class, drawn by the seed, at least one of a class with two or more. A class
    with one picture keeps it for training."""
    random, chosen = np.random.default_rng(seed), np.zeros(len(label_N), bool)
    for label in np.unique(label_N):
        places = random.permutation(np.flatnonzero(label_N == label))
        if len(places) > 1:
            chosen[places[: max(1, len(places) // HELD_OUT)]] = True
    return chosen


def shared(train: Sequence[Labelled], tested: PictureSet) -> int:
    """How many tested pictures are among those to train on, by url, or by their names in an official set."""
    known = {picture.url for labelled in train for picture in labelled.pictures.pictures}
    return sum(picture.url in known for picture in tested.pictures)

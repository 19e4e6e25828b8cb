"""The pictures that an answer is compared with: the first ones of a data set folder, usually the run's validation data.

Legend: I compared pictures, T their captions, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint.exported import is_exported
from sycoca_ds.eval.collection import Collection, PictureSet
from sycoca_ds.eval.runner.bench import ImageFeatures, PatchSums, TextFeatures
from sycoca_ds.eval.runner.team import Work
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.inference.model import Model


class Samples:
    """A data set's pictures and captions, and which of them are compared with.

    Args:
        compared: how many of the first pictures; 0 all.
    """

    def __init__(self, collection: PictureSet, compared: int = 0):
        self.collection = collection
        self.compared = min(compared or len(collection), len(collection))
        at_T = np.flatnonzero(collection.image_of_text_T < self.compared)
        self.captions = [collection.captions[place] for place in at_T]
        """Of the compared pictures, T."""
        self.image_of_text_T = collection.image_of_text_T[at_T]
        try:
            self.other_I = wrong_captions(collection.captions_of_image)
        except UserError:  # one picture, or captions that are all alike
            self.other_I = None

    def caption(self, number: int) -> str:
        return self.collection.captions_of_image[number][0]

    def wrong_caption(self, number: int) -> str:
        """The one that the evaluation gives this picture as a wrong one; "" where there is none."""
        return "" if self.other_I is None else self.caption(int(self.other_I[number]))

    def places(self, text: str, number: int | None) -> list[int]:
        """Where a text stands among the compared captions: as that picture's own, or else as any picture's."""
        words = text.split()  # a form has other line breaks
        found = [place for place, caption in enumerate(self.captions) if caption.split() == words]
        own = [place for place in found if self.image_of_text_T[place] == number]
        return own or found


@dataclass(frozen=True)
class Vectors:
    """What one model makes of the compared pictures: the evaluation's vectors."""

    image_IE: torch.Tensor
    text_TE: torch.Tensor | None
    """None: the model has no tokenizer."""
    patch_sum_E: torch.Tensor | None
    """Over the patches of all compared pictures, where scores look at other pictures."""


def find_samples(model: Model, folder: str | None, compared: int) -> tuple[Samples | None, str]:
    """(the samples, "") or (None, why there are none in a sentence).

    Args:
        folder: default what the run calls data.validation.

    Raises:
        UserError: a folder that was asked for and cannot be read.
    """
    if folder is not None:
        return Samples(Collection(folder, model.image_size), compared), ""
    named = model.loaded.config.data.validation
    if is_exported(model.loaded.folder):
        return None, "This is an exported folder, which names no validation data: --data FOLDER gives pictures to compare with."
    if named is None:
        return None, "This run has no data.validation: --data FOLDER gives pictures to compare with."
    try:
        return Samples(Collection(named, model.image_size), compared), ""
    except (UserError, OSError) as error:
        return None, f"The run's data.validation cannot be read ({error}): --data FOLDER gives pictures to compare with."


def amount(model: Model, samples: Samples) -> int:
    """How many pictures and captions `look_at` looks at, a picture twice where scores look at other pictures."""
    texts = len(samples.captions) if model.loaded.known_tokenizer is not None else 0
    return texts + samples.compared * (1 + _looks_at_others(model))


def _looks_at_others(model: Model) -> bool:
    return model.config.masking.similarity == "centred_over_pictures"


def look_at(model: Model, samples: Samples, batch_size: int, told: Callable[[int], None]) -> Vectors:
    """The vectors of the compared pictures and captions.

    Args:
        told: called before each batch with how many pictures and captions are done; it may wait, or raise to end this.

    Raises:
        UserError: a picture that cannot be read.
    """
    bench, done = model.bench(samples.collection, batch_size), 0

    def of(work: Work, total: int, name: str) -> torch.Tensor:
        nonlocal done
        parts = []
        for start in range(0, total, batch_size):
            told(done)
            parts.append(work(bench, list(range(start, min(total, start + batch_size))))[name])
            done += len(parts[-1])
        return torch.from_numpy(np.concatenate(parts))

    image_IE, text_TE, sum_E = of(ImageFeatures(), samples.compared, "feature"), None, None
    if model.loaded.known_tokenizer is not None:
        text_TE = of(TextFeatures(samples.captions), len(samples.captions), "feature")
    if _looks_at_others(model):
        sum_E = of(PatchSums(False), samples.compared, "sum").double().sum(dim=0).float()
    return Vectors(image_IE, text_TE, sum_E)

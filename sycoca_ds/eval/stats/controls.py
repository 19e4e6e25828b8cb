"""Another picture's caption in place of the own one: which, and what the difference comes to. What a model does with the right
caption says nothing without what it does with a wrong one. Legend: I images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.stats.intervals import RESAMPLES, bootstrap_interval


def wrong_captions(captions_of_image: Sequence[Sequence[str]]) -> np.ndarray:
    """(I,) int64 permutation: for each image the image whose first caption misguides it. Deterministic.

    Rolled by one, then repaired until no image gets a caption equal to one of its own: two images swap where they can, else more of
    them pass theirs on in a ring. Being a permutation, the wrong guides are the same captions as the right ones: their difficulty
    cannot explain a gap. Raises UserError if fewer than two images, or if there is no such permutation.
    """
    count = len(captions_of_image)
    if count < 2:
        raise UserError(f"wrong captions: at least 2 images are needed to take one from, the data set has {count}")
    own = [{_plain(caption) for caption in captions} for captions in captions_of_image]
    first = [_plain(captions[0]) for captions in captions_of_image]
    other = np.roll(np.arange(count), -1)

    def wrong(image: int, source: int) -> bool:
        return image != source and first[source] not in own[image]

    for image in range(count):
        if wrong(image, other[image]):
            continue
        ring = _ring(image, other, wrong)
        if not ring:
            raise UserError(
                f"no wrong caption for image {image} ({captions_of_image[image][0]!r}): nearly all captions of "
                "the data set are equal; use a set with more varied captions"
            )
        other[ring] = np.roll(other[ring], -1)
    return other


def _ring(image: int, other: np.ndarray, wrong: Callable[[int, int], bool]) -> list[int]:
    """The shortest ring of images from this one on, each of which can take what the next one has; empty where there is none, and
    with it no permutation: that of all images would be made of such rings."""
    taker, count = {image: image}, len(other)
    queue = [image]
    for first in queue:
        for step in range(1, count):
            then = (first + step) % count
            if then in taker or not wrong(first, other[then]):
                continue
            taker[then] = first
            if wrong(then, other[image]):
                ring = [then]
                while ring[0] != image:
                    ring.insert(0, taker[ring[0]])
                return ring
            queue.append(then)
    return []


def _plain(caption: str) -> str:
    return " ".join(caption.lower().split())


def relative_gap(own: float, other: float) -> float:
    """How far the error with the own caption lies below the error with the wrong one, in percent of the latter."""
    return 100.0 * (other - own) / other if other else 0.0


def gap_metrics(own_I: np.ndarray, other_I: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, float]:
    """own_I, other_I: L1 over hidden patches per image, normalised pixel units. Both must be finite and of one length.

    `gap` in percent, from the means over images; `gap_low`, `gap_high`: bootstrap 95 % interval over images (seeded);
    `better_share`: percent of images where the own caption gave the smaller error.
    """
    own_I, other_I = np.asarray(own_I, np.float64), np.asarray(other_I, np.float64)
    if own_I.shape != other_I.shape or not len(own_I):
        raise ValueError(f"expected two equally long arrays of errors, got {own_I.shape} and {other_I.shape}")
    low, high = bootstrap_interval(
        lambda drawn: relative_gap(own_I[drawn].mean(), other_I[drawn].mean()), len(own_I), seed, resamples
    )
    return {
        "own_l1": float(own_I.mean()),
        "other_l1": float(other_I.mean()),
        "gap": relative_gap(own_I.mean(), other_I.mean()),
        "gap_low": low,
        "gap_high": high,
        "better_share": 100.0 * float((own_I < other_I).mean()),
    }

"""Recalls of retrieval, their intervals and chance, from features.

Legend: I images, T captions, E embedding width.
Protocol: CLIP_benchmark metrics/zeroshot_retrieval.py and LAVIS tasks/retrieval.py (an image with several captions is
found if ANY of them is in the top k).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from sycoca_ds.eval.stats.cosines import own_ranks
from sycoca_ds.eval.stats.intervals import bootstrap_interval

KS = (1, 5, 10)


@dataclass(frozen=True)
class Retrieval:
    """Ranks (0 = first) of both directions and the numbers made from them."""

    i2t_rank_I: np.ndarray
    t2i_rank_T: np.ndarray

    def metrics(self) -> dict[str, float]:
        """Percent for recalls; median ranks count from 1. mTR / mIR: mean of R@1, R@5, R@10 of image->text /
        text->image."""
        numbers: dict[str, float] = {}
        for name, mean_name, rank in (("i2t", "mTR", self.i2t_rank_I), ("t2i", "mIR", self.t2i_rank_T)):
            for k in KS:
                numbers[f"{name}_r{k}"] = 100.0 * float(np.mean(rank < k))
            numbers[mean_name] = float(np.mean([numbers[f"{name}_r{k}"] for k in KS]))
            numbers[f"{name}_median_rank"] = float(np.median(rank)) + 1.0
        return numbers

    def intervals(self, image_of_text_T: np.ndarray, seed: int = 0) -> dict[str, float]:
        """95 % intervals of the recalls, percent, over resampled images as queries; what they are found among stays. An image is
        drawn with all its captions: those of one picture fare alike."""
        images = len(self.i2t_rank_I)
        numbers: dict[str, float] = {}
        for name, rank, image in (("i2t", self.i2t_rank_I, np.arange(images)), ("t2i", self.t2i_rank_T, image_of_text_T)):
            asked_I = np.bincount(image, minlength=images)
            for k in KS:
                found_I = np.bincount(image, rank < k, images)
                share = partial(_share, found_I, asked_I)
                numbers[f"{name}_r{k}_low"], numbers[f"{name}_r{k}_high"] = bootstrap_interval(share, images, seed)
        return numbers

    def each(self, image_of_text_T: np.ndarray) -> dict[str, np.ndarray]:
        """The recalls, mTR and mIR of each image, percent, (I,); of its captions their mean, with `t2i_captions`, how many these
        are: the mean over captions weighs images by it."""
        images = len(self.i2t_rank_I)
        found: dict[str, np.ndarray] = {}
        for name, mean_name, rank, of in (
            ("i2t", "mTR", self.i2t_rank_I, np.arange(images)),
            ("t2i", "mIR", self.t2i_rank_T, image_of_text_T),
        ):
            asked_I = np.bincount(of, minlength=images)
            at = {f"{name}_r{k}": 100.0 * np.bincount(of, rank < k, images) / asked_I for k in KS}
            found |= {**at, mean_name: np.mean(list(at.values()), axis=0)}
        return {**found, "t2i_captions": asked_I.astype(np.float64)}


def _share(found_I: np.ndarray, asked_I: np.ndarray, drawn: np.ndarray) -> float:
    """Percent of the drawn images' queries that were found."""
    return 100.0 * float(found_I[drawn].sum() / asked_I[drawn].sum())


def retrieve(image_IE: torch.Tensor, text_TE: torch.Tensor, image_of_text_T: torch.Tensor, chunk: int = 256) -> Retrieval:
    """image_IE, text_TE: features; image_of_text_T (T,) int64: row of `image_IE` that the caption belongs to.

    Raises ValueError if an image has no caption or an index is out of range.
    """
    if len(image_of_text_T) != len(text_TE):
        raise ValueError(f"image_of_text has {len(image_of_text_T)} entries for {len(text_TE)} captions")
    if len(image_of_text_T) and not 0 <= int(image_of_text_T.min()) <= int(image_of_text_T.max()) < len(image_IE):
        raise ValueError(f"image_of_text must lie in 0..{len(image_IE) - 1}")
    i2t_rank_I, t2i_rank_T = own_ranks(image_IE, text_TE, image_of_text_T, chunk)
    return Retrieval(i2t_rank_I.numpy(), t2i_rank_T.numpy())


def chance_recalls(captions_of_image: Sequence[int]) -> dict[str, float]:
    """Expected recalls in percent of a random order, `i2t_r1` to `t2i_r10`: the share of queries whose own candidate is among k
    drawn without replacement, exact for several captions an image.

    captions_of_image (I,): how many captions each image has.
    """
    count_I = np.asarray(captions_of_image)
    images, texts, chance = len(count_I), int(count_I.sum()), {}
    for k in KS:
        missed_I = np.ones(images)
        for draw in range(min(k, texts)):
            missed_I *= np.clip(texts - count_I - draw, 0, None) / (texts - draw)
        chance[f"i2t_r{k}"] = 100.0 * float(np.mean(1 - missed_I))
        chance[f"t2i_r{k}"] = min(100.0, 100.0 * k / images)
    return chance

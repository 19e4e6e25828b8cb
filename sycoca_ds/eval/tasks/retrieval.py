"""Zero-shot retrieval between images and captions, from features.

Legend: I images, T captions, Q queries, C candidates, E embedding width.
Protocol: CLIP_benchmark metrics/zeroshot_retrieval.py and LAVIS tasks/retrieval.py (an image with several captions is
found if ANY of them is in the top k); tie rule of open_clip_train/metrics.py: at an equal score the lower index ranks
ahead.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.stats.intervals import HOW, bootstrap_interval
from sycoca_ds.eval.task import Outcome, Task, Wording, with_bounds

KS = (1, 5, 10)
# Features are rounded to multiples of 2^-24 (finer than the last bit of a float32 cosine). A product is then a multiple
# of 2^-48 and a cosine is at most 1, so every partial sum is exact in float64: the score depends on neither chunk size,
# BLAS kernel, thread count nor device. With plain float32 products two equal candidates can differ in the last bit, and
# ties (drawn scenes and popular captions have many) would be decided by the shape of the matrix product.
QUANTUM = 2.0**-24


def exact_unit_vectors(features_XE: torch.Tensor) -> torch.Tensor:
    """(X, E) floats -> (X, E) float64, L2-normalised and rounded to `QUANTUM`. Raises ValueError on values that are not
    finite."""
    features_XE = features_XE.detach().to(torch.float64)
    if not torch.isfinite(features_XE).all():
        rows = (~torch.isfinite(features_XE).all(dim=1)).nonzero().flatten()
        raise ValueError(
            f"{len(rows)} feature rows are not finite, the first is row {int(rows[0])}: the checkpoint is damaged or diverged"
        )
    features_XE = features_XE / features_XE.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.round(features_XE / QUANTUM) * QUANTUM


def best_own_ranks(
    query_QE: torch.Tensor,
    candidate_CE: torch.Tensor,
    group_of_query: torch.Tensor,
    group_of_candidate: torch.Tensor,
    chunk: int = 512,
) -> torch.Tensor:
    """Rank (0 = first) of the best-ranked candidate of the query's own group; (Q,) int64 on the CPU.

    query_QE, candidate_CE: floats, any scale. group_of_query (Q,), group_of_candidate (C,): int64.
    chunk: queries scored at once; bounds memory (chunk x C x 8 bytes), never changes the ranks.
    Raises ValueError for a query without any candidate of its own.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    query_QE, candidate_CE = exact_unit_vectors(query_QE), exact_unit_vectors(candidate_CE)
    group_of_query, group_of_candidate = group_of_query.to(query_QE.device), group_of_candidate.to(query_QE.device)
    position_C = torch.arange(len(candidate_CE), device=query_QE.device)
    ranks = []
    for start in range(0, len(query_QE), chunk):
        score = query_QE[start : start + chunk] @ candidate_CE.T
        own = group_of_query[start : start + chunk, None] == group_of_candidate[None, :]
        if not own.any(dim=1).all():
            row = start + int((~own.any(dim=1)).nonzero()[0])
            raise ValueError(f"query {row} (group {int(group_of_query[row])}) has no candidate of its own group")
        best = score.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
        first = torch.where(own & (score == best), position_C, len(candidate_CE)).amin(dim=1, keepdim=True)
        ahead = (score > best) | ((score == best) & (position_C < first))
        ranks.append(ahead.sum(dim=1).cpu())
    return torch.cat(ranks) if ranks else torch.zeros(0, dtype=torch.int64)


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


def retrieve(image_IE: torch.Tensor, text_TE: torch.Tensor, image_of_text_T: torch.Tensor, chunk: int = 512) -> Retrieval:
    """image_IE, text_TE: features; image_of_text_T (T,) int64: row of `image_IE` that the caption belongs to.

    Raises ValueError if an image has no caption or an index is out of range.
    """
    if len(image_of_text_T) != len(text_TE):
        raise ValueError(f"image_of_text has {len(image_of_text_T)} entries for {len(text_TE)} captions")
    if len(image_of_text_T) and not 0 <= int(image_of_text_T.min()) <= int(image_of_text_T.max()) < len(image_IE):
        raise ValueError(f"image_of_text must lie in 0..{len(image_IE) - 1}")
    image_I = torch.arange(len(image_IE))
    i2t = best_own_ranks(image_IE, text_TE, image_I, image_of_text_T, chunk)
    t2i = best_own_ranks(text_TE, image_IE, image_of_text_T, image_I, chunk)
    return Retrieval(i2t.numpy(), t2i.numpy())


def top_candidates(query_QE: torch.Tensor, candidate_CE: torch.Tensor, k: int) -> np.ndarray:
    """(Q, min(k, C)) int64: the best candidates in order, under the same scores and tie rule as the ranks."""
    score = exact_unit_vectors(query_QE) @ exact_unit_vectors(candidate_CE).T
    order = torch.argsort(score, dim=1, descending=True, stable=True)
    return order[:, :k].cpu().numpy()


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


def run_retrieval(bench: Bench) -> Outcome:
    """R@1/5/10 both ways over all captions of all images; examples: captions spread over the set with their five best
    images."""
    data = bench.collection
    image_of_text = torch.from_numpy(data.image_of_text_T)
    result = retrieve(bench.image_IE, bench.text_TE, image_of_text)
    images, texts = len(data), len(data.captions)
    chance = chance_recalls([len(captions) for captions in data.captions_of_image])
    queries = np.unique(np.linspace(0, texts - 1, num=min(bench.options.gallery, texts)).round().astype(int))
    best = top_candidates(bench.text_TE[queries], bench.image_IE, 5)
    examples = [
        {
            "caption": data.captions[query],
            "own": int(data.image_of_text_T[query]),
            "rank": int(result.t2i_rank_T[query]) + 1,
            "images": [int(image) for image in row],
        }
        for query, row in zip(queries, best, strict=True)
    ]
    numbers = result.metrics() | result.intervals(data.image_of_text_T, bench.options.seed)
    details = {"images": images, "captions": texts, "interval": HOW, "examples": examples}
    return Outcome(numbers, chance=chance, details=details, each=result.each(data.image_of_text_T))


TASK = Task(
    name="retrieval",
    title="Zero-shot retrieval",
    meaning="Nothing is trained for this. Every image and every caption becomes a vector; the nearest vectors are the answer.",
    numbers=with_bounds(
        {
            "i2t_r1": Wording("Image to text, R@1", "%", "images whose own caption comes first among all {captions} captions"),
            "i2t_r5": Wording("Image to text, R@5", "%", "... is among the first five"),
            "i2t_r10": Wording("Image to text, R@10", "%", "... is among the first ten"),
            "mTR": Wording("mTR", "%", "mean of the three numbers above"),
            "i2t_median_rank": Wording(
                "Image to text, median rank", "", "place of the own caption for the middle image; 1 is best"
            ),
            "t2i_r1": Wording("Text to image, R@1", "%", "captions whose own image comes first among all {images} images"),
            "t2i_r5": Wording("Text to image, R@5", "%", "... is among the first five"),
            "t2i_r10": Wording("Text to image, R@10", "%", "... is among the first ten"),
            "mIR": Wording("mIR", "%", "mean of the three numbers above"),
            "t2i_median_rank": Wording(
                "Text to image, median rank", "", "place of the own image for the middle caption; 1 is best"
            ),
        },
        lambda name: re.search(r"_r\d+$", name) is not None,
    ),
    headlines=("i2t_r1", "i2t_r5", "i2t_r10", "mTR", "t2i_r1", "t2i_r5", "t2i_r10", "mIR"),
    run=run_retrieval,
    each=True,
)

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
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.finite import check_finite
from sycoca_ds.eval.stats.extremes import extremes
from sycoca_ds.eval.stats.intervals import HOW, bootstrap_interval
from sycoca_ds.eval.task import Outcome, Task, Wording, with_bounds

EXTREMES = 3
"""Best cases shown, and as many worst."""
KS = (1, 5, 10)
# Features are rounded to multiples of 2^-24 (finer than the last bit of a float32 cosine). A product is then a multiple
# of 2^-48 and a cosine is at most 1, so every partial sum is exact in float64: the score depends on neither chunk size,
# BLAS kernel, thread count nor device. With plain float32 products two equal candidates can differ in the last bit, and
# ties (drawn scenes and popular captions have many) would be decided by the shape of the matrix product.
QUANTUM = 2.0**-24


def exact_unit_vectors(features_XE: torch.Tensor) -> torch.Tensor:
    """(X, E) floats -> (X, E) float64, L2-normalised and rounded to `QUANTUM`. UserError: features that are not finite."""
    features_XE = features_XE.detach().to(torch.float64)
    check_finite(features_XE, "features")
    features_XE = features_XE / features_XE.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.round(features_XE / QUANTUM) * QUANTUM


def own_ranks(
    image_IE: torch.Tensor, text_TE: torch.Tensor, image_of_text_T: torch.Tensor, chunk: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks (0 = first) of each image's best caption among all captions, (I,), and of each caption's image among all images, (T,);
    int64 on the CPU.

    One pass over float32 products serves both directions. Where a product is so near to what it is compared with that float32 may
    be wrong about the order, and in ties, the exact score decides.

    image_IE, text_TE: floats, any scale; image_of_text_T (T,): int64.
    chunk: images scored at once, against 8 x chunk captions; bounds memory beside the features, never changes the ranks.
    Raises ValueError for an image without a caption.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    image_IE, text_TE = exact_unit_vectors(image_IE), exact_unit_vectors(text_TE)
    images, texts, device = len(image_IE), len(text_TE), image_IE.device
    owner_T, place_T = image_of_text_T.to(device), torch.arange(texts, device=device)
    own_T = exact_scores(image_IE, text_TE, owner_T, place_T)
    best_I = own_T.new_full((images,), -torch.inf).scatter_reduce(0, owner_T, own_T, "amax")
    if (best_I == -torch.inf).any():
        raise ValueError(f"image {int((best_I == -torch.inf).nonzero()[0])} has no caption")
    first_T = torch.where(own_T == best_I[owner_T], place_T, texts)
    first_I = torch.full((images,), texts, device=device).scatter_reduce(0, owner_T, first_T, "amin")

    near = most_error(image_IE.shape[1])
    small_image_IE, small_text_TE = image_IE.float(), text_TE.float()  # exact: multiples of QUANTUM up to 1
    ahead_I, ahead_T = (torch.zeros(count, dtype=torch.int64, device=device) for count in (images, texts))
    for top in range(0, images, chunk):
        rows = slice(top, min(top + chunk, images))
        for left in range(0, texts, 8 * chunk):
            columns = slice(left, min(left + 8 * chunk, texts))
            score_RC = small_image_IE[rows] @ small_text_TE[columns].T
            inside_C = (owner_T[columns] >= rows.start) & (owner_T[columns] < rows.stop)
            own_C = inside_C.nonzero().flatten()
            score_RC[owner_T[columns][own_C] - top, own_C] = -torch.inf  # an image's own captions are not ahead of its best
            for bound, first, ahead, axis in (
                (best_I[rows, None], first_I[rows, None], ahead_I[rows], 1),
                (own_T[None, columns], owner_T[None, columns], ahead_T[columns], 0),
            ):
                above_RC = score_RC - bound.float()
                ahead += torch.gt(above_RC, near, out=torch.empty_like(above_RC)).sum(dim=axis).long()
                place_P = places(above_RC.abs_() <= near)
                if len(place_P) == 0:
                    continue
                row_P, column_P = place_P // len(above_RC[0]), place_P % len(above_RC[0])
                if len(place_P) > above_RC.numel() // 16:  # so many ties that the whole product is less work
                    score_P = (image_IE[rows] @ text_TE[columns].T).flatten()[place_P]
                else:
                    score_P = exact_scores(image_IE, text_TE, row_P + top, column_P + left)
                bound_P, first_P = (x.expand_as(above_RC)[row_P, column_P] for x in (bound, first))
                candidate_P, query_P = (column_P + left, row_P) if axis == 1 else (row_P + top, column_P)
                ahead_P = (score_P > bound_P) | ((score_P == bound_P) & (candidate_P < first_P))
                ahead.index_add_(0, query_P, ahead_P.long())
    return ahead_I.cpu(), ahead_T.cpu()


def most_error(width: int) -> float:
    """Most that a float32 product of two exact unit vectors may be off, whatever the order of its sum: Higham 2002, 3.5, with room
    for the comparison's own rounding. Where torch may round the factors, too, as TF32 and bf16 do, as much more."""
    return 1.001 * (width + 4) * 2.0**-24 + {"highest": 0.0, "high": 2.0**-9}.get(torch.get_float32_matmul_precision(), 2.0**-6)


def exact_scores(image_IE: torch.Tensor, text_TE: torch.Tensor, image_P: torch.Tensor, text_P: torch.Tensor) -> torch.Tensor:
    """Scores of pairs, (P,) float64, without a rounding: see `QUANTUM`."""
    pieces = zip(image_P.split(4096), text_P.split(4096), strict=True)
    return torch.cat([(image_IE[i] * text_TE[t]).sum(dim=1) for i, t in pieces] or [image_IE.new_zeros(0)])


def places(mask: torch.Tensor) -> torch.Tensor:
    """Where a mask is True, counted through it; on a CPU by NumPy, which takes an eighth of torch's time."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero().squeeze(1)


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


def first_captions(image_of_text_T: np.ndarray, most: int) -> np.ndarray:
    """(T',) int64, rising: places of each image's first `most` captions; of all with 0. Some of COCO's images have six or seven, of
    which papers take five."""
    order_T = np.argsort(image_of_text_T, kind="stable")
    sorted_T = image_of_text_T[order_T]
    place_T = np.arange(len(order_T)) - np.searchsorted(sorted_T, sorted_T)
    return np.sort(order_T[place_T < most]) if most else np.arange(len(order_T))


def run_retrieval(bench: Bench) -> Outcome:
    """R@1/5/10 both ways over the captions of all images; examples: captions spread over the set, which show the ordinary case,
    those whose own image comes first (of equal ranks the first of the data) and last, with their five best images."""
    data, most = bench.collection, bench.options.captions_per_image
    caption_T = first_captions(data.image_of_text_T, most)
    text_TE, image_of_text_T = bench.text_TE[caption_T], data.image_of_text_T[caption_T]
    result = retrieve(bench.image_IE, text_TE, torch.from_numpy(image_of_text_T))
    images, texts = len(data), len(caption_T)

    def shown(query_Q: np.ndarray) -> list[dict[str, Any]]:
        best_QK = top_candidates(text_TE[query_Q], bench.image_IE, 5)
        return [
            {
                "caption": data.captions[caption_T[query]],
                "own": int(image_of_text_T[query]),
                "rank": int(result.t2i_rank_T[query]) + 1,
                "images": [int(image) for image in row],
            }
            for query, row in zip(query_Q, best_QK, strict=True)
        ]

    best_Q, worst_Q = extremes(-result.t2i_rank_T, EXTREMES)
    ordinary_Q = np.unique(np.linspace(0, texts - 1, num=min(bench.options.gallery, texts)).round().astype(int))
    details = {
        "images": images,
        "captions": texts,
        "captions_per_image": most or "all",
        "interval": HOW,
        "examples": shown(ordinary_Q),
        "best": shown(best_Q),
        "worst": shown(worst_Q),
    }
    numbers = result.metrics() | result.intervals(image_of_text_T, bench.options.seed)
    chance = chance_recalls(np.bincount(image_of_text_T, minlength=images))
    return Outcome(numbers, chance=chance, details=details, each=result.each(image_of_text_T))


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
    depends=lambda inputs: {"captions_per_image": inputs.options.captions_per_image},
    each=True,
)

"""Zero-shot retrieval between images and captions, from features.

Legend: T captions, Q queries, E embedding width. Protocol: stats/recalls.py, stats/cosines.py.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.stats.cosines import top_candidates
from sycoca_ds.eval.stats.extremes import extremes
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.stats.recalls import chance_recalls, retrieve
from sycoca_ds.eval.task import Outcome, Task, Wording, with_bounds

EXTREMES = 3
"""Best cases shown, and as many worst."""


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

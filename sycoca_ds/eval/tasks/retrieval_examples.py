"""Retrieval with its best and worst cases: the captions whose own image comes first, and those where it comes last.

The examples of `tasks/retrieval.py` lie at even distances and show the ordinary case. Legend: T captions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.stats.extremes import extremes
from sycoca_ds.eval.task import Outcome
from sycoca_ds.eval.tasks import retrieval

SHOWN = 3
"""Best cases, and as many worst."""


def examples(bench: Bench, query_Q: np.ndarray, rank_T: np.ndarray) -> list[dict[str, Any]]:
    """Captions with the five images that are found for each, as the task's own."""
    data = bench.collection
    best = retrieval.top_candidates(bench.text_TE[query_Q], bench.image_IE, 5)
    return [
        {
            "caption": data.captions[query],
            "own": int(data.image_of_text_T[query]),
            "rank": int(rank_T[query]) + 1,
            "images": [int(image) for image in row],
        }
        for query, row in zip(query_Q.tolist(), best, strict=True)
    ]


def run(bench: Bench) -> Outcome:
    """`run_retrieval`, with `best` and `worst` among the details: by rank, of equal ones the first of the data."""
    outcome, data = retrieval.run_retrieval(bench), bench.collection
    _, rank_T = retrieval.own_ranks(bench.image_IE, bench.text_TE, torch.from_numpy(data.image_of_text_T))
    best_Q, worst_Q = extremes(-rank_T.numpy(), SHOWN)
    outcome.details |= {"best": examples(bench, best_Q, rank_T.numpy()), "worst": examples(bench, worst_Q, rank_T.numpy())}
    return outcome


TASK = replace(retrieval.TASK, run=run)

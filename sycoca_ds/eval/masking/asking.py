"""Scores of a whole data set's patches, of the model and of untrained weights, for every task that looks at them.

Legend: I images, C conditions, R = 1 + most phrases of a picture, N patches, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import check_model
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS, Scorer
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays


def compared(bench: Bench) -> tuple[list[str], dict[str, str]]:
    """The scores of `options.similarity` beside the checkpoint's own, and those that this model cannot have, with the reason."""
    found, left_out, config = [], {}, bench.config.model
    for named in dict.fromkeys(bench.options.similarity):
        if named == config.masking.similarity:
            continue
        try:
            check_model(replace(config, masking=replace(config.masking, similarity=named.partition(":")[0])))
            found.append(named)
        except UserError as error:
            left_out[named] = str(error)
    return found, left_out


@contextmanager
def counting(bench: Bench, model: torch.nn.Module, words: str) -> Iterator[None]:
    """In it the model's scores count the tokens of this value of `masking.words`; "" leaves it as it is."""
    if not words:
        yield
        return
    kept, left_out_V = model.left_out_V, torch.zeros_like(model.left_out_V)
    if words == "content":
        left_out_V[list(bench.tokenizer.meaningless_ids(bench.config.model.masking.common_words))] = True
    model.left_out_V = left_out_V
    try:
        yield
    finally:
        model.left_out_V = kept


@dataclass(frozen=True)
class PatchScores:
    first: list[str]
    other_I: np.ndarray
    named: str
    untrained: bool
    others: tuple[torch.Tensor, int] | None

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        similarity, _, words = self.named.partition(":")
        model = bench.untrained if self.untrained else bench.model
        scorer = Scorer(self.first, self.other_I, bench.inputs.regions, bench.ids, bench.config.model.text.eot_id)
        call, others = partial(bench.call, model=model, exact=True), self.others
        if others is not None:
            others = (others[0].to(bench.device), others[1])
        with counting(bench, model, words):
            by_token = similarity not in WITHOUT_WORDS
            score_BCRN = scorer(call, numbers, bench.images(numbers), by_token, similarity=similarity, others=others)
        return {"score": score_BCRN.cpu().numpy()}


def scores(bench: Bench, first: list[str], other_I: np.ndarray, named: str, model: torch.nn.Module) -> torch.Tensor:
    """(I, C, R, N) float32 on the host. Args: named: SIMILARITY or SIMILARITY:WORDS."""
    untrained, others = model is not bench.model, bench.others(named.partition(":")[0], model)
    regions = bench.inputs.regions
    key = {"what": "scores of patches", "named": named, "untrained": untrained, "precision": "fp32"}
    key["regions"] = regions.digest if regions is not None else None
    what = f"score patches: {named}{', untrained' if untrained else ''}"
    work = PatchScores(first, other_I, named, untrained, others and (others[0].cpu(), others[1]))
    return torch.from_numpy(bench.map_images(work, what, key)["score"])

"""Scores of a whole data set's patches, of the model and of untrained weights, for every task that looks at them.

Legend: I images, C conditions, R = 1 + most phrases of a picture, N patches, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.config import check_model
from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS, Scorer
from sycoca_ds.model.sycoca import SyCoCa

UNTRAINED_SEED = 0
"""Of the fresh weights that everything is measured on as well."""


def untrained_of(bench: Bench) -> SyCoCa:
    """The same configuration with fresh weights."""
    return SyCoCa(bench.config.model, seed=UNTRAINED_SEED).to(bench.device).eval()


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


def scores(bench: Bench, scorer: Scorer, named: str, model: torch.nn.Module) -> torch.Tensor:
    """(I, C, R, N) float32 on the host. Args: named: SIMILARITY or SIMILARITY:WORDS."""
    similarity, _, words = named.partition(":")
    call = partial(bench.call, model=model, exact=True)
    found, by_token, others = [], similarity not in WITHOUT_WORDS, bench.others(similarity, model)
    what = f"score patches: {named}{'' if model is bench.model else ', untrained'}"
    with Progress(what, total=len(bench.collection), unit="images") as bar, counting(bench, model, words):
        for numbers, image in bench.batches():
            found.append(scorer(call, numbers, bench.pixels(image), by_token, similarity=similarity, others=others).cpu())
            bar.advance(len(numbers))
    score_ICRN = torch.cat(found)
    if not torch.isfinite(score_ICRN[:, :, 0]).all():
        raise UserError("masking: the model's scores are not finite; the checkpoint is damaged or diverged")
    return score_ICRN

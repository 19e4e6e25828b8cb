"""How many steps of one row cost what another row's cost, by the FLOPs formula on the data's own captions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

from data_pipeline.errors import UserError
from sycoca_ds.ablations.tables import Row, row_options
from sycoca_ds.config import DataConfig, TrainConfig, with_vocabulary
from sycoca_ds.data.loader import ShardReader
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.model.flops import step_flops
from sycoca_ds.options import parse_options

CAPTIONS = 1_000
"""Of the first training folder, whose mean length stands for all."""


@functools.lru_cache(maxsize=8)
def caption_tokens(data: DataConfig, context_length: int) -> tuple[float, int]:
    """(tokens of a caption on average, [SOT] and [EOT] counted; entries of the vocabulary).

    Raises:
        UserError: no data set folder, or no tokenizer.
    """
    sources = Sources.of(data)
    known, reader = Tokenizer(data.tokenizer or sources.manifests[0].root / "tokenizer.json"), ShardReader(sources)
    places = ((shard, position) for shard, kept in enumerate(sources.kept[0].tolist()) for position in range(kept))
    captions = [reader.read(shard, position)[1] for shard, position in itertools.islice(places, CAPTIONS)]
    return float((known.encode(captions, context_length) != 0).sum(axis=1).mean()), known.vocab_size


def compute_of(config: TrainConfig) -> int:
    """FLOPs of one training sample: captions without padding, as training runs on them, and both encoders once more where a batch
    comes in several pieces."""
    tokens, entries = caption_tokens(config.data, config.model.text.context_length)
    model = config.model if config.model.text.vocab_size is not None else with_vocabulary(config.model, entries)
    contrasts = bool(config.loss.itc or config.loss.late_interaction)
    pieces = config.optim.accumulation_steps if contrasts else 1
    return step_flops(model, tokens, accumulation_steps=pieces, loss=config.loss)


def equal_steps(row: Row, reference: Row, train_options: Sequence[str]) -> list[str]:
    """The option that gives a row as many steps as cost what the other row's cost.

    Raises:
        UserError: the training is not counted in steps.
    """
    other, own = (parse_options([*train_options, *row_options(which)]) for which in (reference, row))
    if other.optim.steps is None:
        raise UserError("--equal-compute needs --optim.steps after --: the steps of the row that it names")
    return ["--optim.steps", str(round(other.optim.steps * compute_of(other) / compute_of(own)))]

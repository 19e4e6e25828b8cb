"""A look at what a run would be fed: counts, the order's arithmetic, the pictures of one global batch, this machine's speed.

python -m sycoca_ds.data inspect /data/cc12m /data/coyo --weights 0.3 0.7 --global-batch-size 2048 --out batch.png
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sycoca_ds.config import DataConfig, ImageEncoderConfig


@dataclass(frozen=True, kw_only=True)
class InspectCommand:
    """Counts, order, pictures and speed of the data that a run would be fed. Defaults are train.py's."""

    data: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Data set folders, as `--data.train` takes them."""
    weights: tuple[float, ...] = DataConfig.weights
    """As `--data.weights`."""
    global_batch_size: int | None = None
    """Pairs a step. None: train.py's, or where there are fewer samples the largest power of two of them."""
    lanes: int | None = None
    """As `--data.lanes`. None: train.py's, or where these do not divide the pairs of a step the most of them that do."""
    window: int = DataConfig.window
    """As `--data.window`."""
    seed: int = 0
    """As `--run.seed`."""
    step: int = 0
    """The step whose global batch is shown."""
    image_size: int = ImageEncoderConfig.image_size
    """Side of the training picture, pixels."""
    crop_scale: tuple[float, float] = DataConfig.crop_scale
    """As `--data.crop-scale`."""
    tokenizer: str | None = None
    """tokenizer.json; default: the one inside the first folder."""
    cache: str | None = DataConfig.cache
    """As `--data.cache`."""
    cache_gib: float = DataConfig.cache_gib
    """As `--data.cache-gib`."""
    samples_per_second: float = 4000.0
    """What the trainer asks for; the command says how many loader processes that takes."""
    seconds: float = 5.0
    """How long to measure."""
    out: Path | None = None
    """PNG with the first pictures of the batch and their captions; none by default."""

    def run(self) -> int:
        from sycoca_ds.data.inspection import inspect

        inspect(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)})
        return 0


def report(arguments: Sequence[str]) -> int:
    from data_pipeline.command_line import parse_command

    return parse_command(InspectCommand, list(arguments), "python -m sycoca_ds.data inspect", description=__doc__).run()

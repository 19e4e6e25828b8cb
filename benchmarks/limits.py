"""What the machine can do, measured beside the work: matrix products at the shapes used, plain writes of the same bytes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.frame import Turn, in_turns, timed
from sycoca_ds.config import ModelConfig
from sycoca_ds.model.layers.products import has_bf16_products

Shape = tuple[int, int, int]
"""Rows, inputs, outputs."""


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 where there are products of it."""
    return torch.bfloat16 if device.type == "cuda" or has_bf16_products() else torch.float32


def training_shapes(model: ModelConfig, batch_size: int, text_tokens: float) -> list[Shape]:
    """The large products of a step's forward pass, a block's of each part once, and the vocabulary's."""
    image_rows, text_rows = batch_size * (model.image.patches + 1), round(batch_size * text_tokens)
    widths = [(image_rows, model.image.width), (text_rows, model.text.width)]
    if model.captions:
        widths.append((text_rows, model.text_decoder.width))
    if model.reconstructs:
        widths.append((batch_size * model.image.patches, model.image_decoder.width))
    shapes = [(r, *s) for r, w in widths for s in ((w, 3 * w), (w, w), (w, 4 * w), (4 * w, w))]
    return [*shapes, (text_rows, model.text_decoder.width, model.text.vocab_size)] if model.captions else shapes


def products(shapes: Iterable[Shape], dtype: torch.dtype, device: torch.device, turns: int = 3) -> tuple[list[Turn], int]:
    """(Turns of these products alone, one after another; FLOPs of one turn)."""
    work = [
        (torch.randn(rows, given, device=device, dtype=dtype), torch.randn(out, given, device=device, dtype=dtype))
        for rows, given, out in shapes
    ]
    return multiplied(work, device, turns), sum(2 * len(x) * w.numel() for x, w in work)


def multiplied(work: Sequence[tuple[torch.Tensor, torch.Tensor]], device: torch.device, turns: int = 3) -> list[Turn]:
    """Turns of products of inputs (R, d) with weights (d', d)."""

    def multiply() -> None:
        with torch.no_grad():
            for x, w in work:
                F.linear(x, w)

    multiply()
    return in_turns({"": timed(multiply, device)}, turns)[""]


def write_rate(folder: Path, size: int, turns: int = 3) -> float:
    """Bytes a second of plain writes with fsync, median of turns."""
    piece, path, found = os.urandom(min(size, 1 << 24)), folder / "plain_write", []
    for _ in range(turns):
        began, left = time.perf_counter(), size
        with open(path, "wb", buffering=0) as file:
            while left > 0:
                left -= file.write(piece[: min(left, len(piece))])
            os.fsync(file.fileno())
        found.append(size / (time.perf_counter() - began))
        path.unlink()
    return statistics.median(found)

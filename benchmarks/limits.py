"""What the machine can do, measured beside the work: matrix products at the shapes used, plain writes of the same bytes."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.frame import Clock
from sycoca_ds.config import ModelConfig
from sycoca_ds.model.blocks import has_bf16_products

Shape = tuple[int, int, int]
"""Rows, inputs, outputs."""


def best_dtype(device: torch.device) -> torch.dtype:
    """bf16 where there are products of it."""
    return torch.bfloat16 if device.type == "cuda" or has_bf16_products() else torch.float32


def training_shapes(model: ModelConfig, batch_size: int, text_tokens: int) -> list[Shape]:
    """The large products of a step's forward pass, a block's of each part once, and the vocabulary's."""
    image_rows, text_rows = batch_size * (model.image.patches + 1), batch_size * text_tokens
    widths = [(image_rows, model.image.width), (text_rows, model.text.width)]
    if model.captions:
        widths.append((text_rows, model.text_decoder.width))
    shapes = [(r, *s) for r, w in widths for s in ((w, 3 * w), (w, w), (w, 4 * w), (4 * w, w))]
    return [*shapes, (text_rows, model.text_decoder.width, model.text.vocab_size)] if model.captions else shapes


def product_rate(shapes: Iterable[Shape], dtype: torch.dtype, device: torch.device, turns: int = 3) -> tuple[float, bool]:
    """(FLOP/s of these products alone, one after another, median of turns; whether it is of processor time)."""
    work = [
        (torch.randn(rows, given, device=device, dtype=dtype), torch.randn(out, given, device=device, dtype=dtype))
        for rows, given, out in shapes
    ]
    flops, clock, found = sum(2 * len(x) * w.numel() for x, w in work), Clock(device), []
    for turn in range(turns + 1):
        clock.start()
        for x, w in work:
            F.linear(x, w)
        if turn:
            found.append(clock.stop())
        else:
            clock.stop()
    busy = all(turn.disturbed for turn in found) and device.type == "cpu"
    threads = torch.get_num_threads()
    return flops / statistics.median(turn.processor / threads if busy else turn.seconds for turn in found), busy


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

"""The EMA of the weights in a checkpoint: a file a rank that maps each parameter to where that rank's piece of it starts, and the
piece."""

from __future__ import annotations

import fnmatch
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.engine.master_weights import WHOLE, Piece, Share

NAME, PATTERN = "ema_rank_{:05d}.pt", "ema_rank_*.pt"


def names(state: Mapping[str, Any]) -> list[str]:
    """The files of a checkpoint of which `state` is the seal's content, by rank; none: it has no EMA."""
    return sorted(fnmatch.filter(state["files"], PATTERN))


def content(pieces: Mapping[str, Piece]) -> dict[str, tuple[int, Tensor]]:
    """What a rank's file holds."""
    return {name: (piece.start, piece.values) for name, piece in pieces.items()}


def fill(folder: Path, files: Sequence[str], pieces: Mapping[str, Piece]) -> None:
    """Copies what a checkpoint holds of these pieces into them, in place, however it was cut; reads no file that is not needed.

    Args:
        files: the checkpoint's, those first that are likely to have them.

    Raises:
        UserError: a file that holds more than tensors, which is not executed.
        RuntimeError: something of a piece is in no file.
    """
    missing = sum(piece.values.numel() for piece in pieces.values())
    for file in files:
        try:
            saved = torch.load(folder / file, map_location="cpu", mmap=True, weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(f"{folder / file}: expected tensors only, and it names something to run: choose another step") from None
        for name in pieces.keys() & saved.keys():
            (start, values), (own_start, own) = saved[name], pieces[name]
            first, end = max(start, own_start), min(start + values.numel(), own_start + own.numel())
            if first < end:
                own[first - own_start : end - own_start] = values[first - start : end - start]
                missing -= end - first
        if not missing:
            return
    raise RuntimeError(f"{folder}: {missing} numbers of the EMA are in none of {', '.join(files)}")


def read(folder: Path, files: Sequence[str], shapes: Mapping[str, tuple[int, ...]], share: Share = WHOLE) -> dict[str, Tensor]:
    """The EMA of parameters of these shapes, float32, or a share of each."""
    pieces = {name: share.piece(math.prod(shape), torch.float32) for name, shape in shapes.items()}
    fill(folder, files, pieces)
    return {name: share.shaped(pieces[name].values, shape) for name, shape in shapes.items()}

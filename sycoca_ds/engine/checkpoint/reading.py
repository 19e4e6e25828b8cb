"""Weights on disk, read where they are asked for: files are mapped into memory, and only what is copied is read.

Every layout comes to one thing: of each parameter the runs of consecutive numbers that lie somewhere, each from a place on. Whoever
holds a part of a model copies that part, and nobody needs room for all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sycoca_ds.engine.master_weights import Piece

Find = Callable[[str], Iterable[Piece]]
"""Name of a parameter -> its pieces, in files."""
WHOLE_STATE = "mp_rank_00_model_states.pt"


class StoredWeights:
    """Parameters in files.

    Args:
        find: pieces of a parameter, all of one precision.
        shapes: of all parameters.
    """

    def __init__(self, find: Find, shapes: Mapping[str, tuple[int, ...]]):
        self._find, self.shapes = find, shapes

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """A copy of some numbers of the flattened parameter: (stop - start,), on the host, in the stored precision.

        Raises:
            RuntimeError: some of them are in no file.
        """
        found, missing = None, stop - start
        for piece in self._find(name):
            if found is None:
                found = torch.empty(stop - start, dtype=piece.values.dtype)
            first, end = max(start, piece.start), min(stop, piece.start + piece.values.numel())
            if first < end:
                found[first - start : end - start] = piece.values[first - piece.start : end - piece.start]
                missing -= end - first
        if missing or found is None:
            raise RuntimeError(f"{missing} numbers of {name} are in no file of the checkpoint")
        return found

    def whole(self, name: str) -> Tensor:
        """A copy, in its shape."""
        shape = self.shapes[name]
        return self.part(name, 0, math.prod(shape)).view(shape)

    def all(self) -> dict[str, Tensor]:
        """Copies of all parameters."""
        return {name: self.whole(name) for name in self.shapes}


def checkpoint_weights(folder: Path, zero_stage: int, shapes: Mapping[str, tuple[int, ...]]) -> StoredWeights:
    """A DeepSpeed checkpoint's weights, in float32, as the optimizer changed them, of any ZeRO stage and number of ranks."""
    if zero_stage == 0:
        saved = mapped(folder / WHOLE_STATE)["module"]
        return StoredWeights(lambda name: [Piece(0, saved[name].reshape(-1).float())], shapes)
    pieces = _pieces_of_zero_3(folder) if zero_stage == 3 else _pieces_of_zero_1_and_2(folder)
    return StoredWeights(pieces.__getitem__, shapes)


def ema_weights(folder: Path, files: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> StoredWeights:
    """The moving average in a checkpoint."""
    saved = [torch.load(folder / file, map_location="cpu", mmap=True, weights_only=True) for file in files]
    return StoredWeights(lambda name: [Piece(*each[name]) for each in saved if name in each], shapes)


def exported_weights(path: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, str]) -> StoredWeights:
    """A safetensors file. stored: {name: what it is called in the file}."""
    from safetensors import safe_open

    file = safe_open(path, framework="pt")
    return StoredWeights(lambda name: [Piece(0, file.get_tensor(stored[name]).reshape(-1))], shapes)


def mapped(path: Path) -> dict[str, Any]:
    """What `torch.save` wrote; numbers are read when they are looked at."""
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)


def _optimizer_states(folder: Path) -> list[dict[str, Any]]:
    """Of every rank, in order."""
    paths = {path.name.split("zero_pp_rank_")[1].split("_")[0]: path for path in folder.glob("*zero_pp_rank_*_optim_states.pt")}
    return [mapped(paths[str(rank)])["optimizer_state_dict"] for rank in range(len(paths))]


def _pieces_of_zero_3(folder: Path) -> dict[str, list[Piece]]:
    """Every rank holds an equal piece of each parameter, the last one filled up; a rank's pieces lie end to end in sub-groups."""
    (first,) = folder.glob("*zero_pp_rank_0_mp_rank_00_model_states.pt")
    shapes = {name: shape for group in mapped(first)["param_shapes"] for name, shape in group.items()}
    ranks = [state["fp32_flat_groups"] for state in _optimizer_states(folder)]
    pieces: dict[str, list[Piece]] = {name: [] for name in shapes}
    for rank, groups in enumerate(ranks):
        offset = 0
        for name, shape in shapes.items():
            share = -(-shape.numel() // len(ranks))
            start, left = rank * share, shape.numel() - rank * share
            pieces[name] += _run(groups, offset, min(share, max(0, left)), start)
            offset += share
    return pieces


def _pieces_of_zero_1_and_2(folder: Path) -> dict[str, list[Piece]]:
    """Every rank holds an equal piece of each parameter group, whose parameters lie end to end, filled up at the end.

    ZeRO-1 in bf16 has an optimizer class of its own, whose files DeepSpeed 0.19.8's zero_to_fp32 does not read.
    """
    shapes, states = mapped(folder / WHOLE_STATE)["param_shapes"], _optimizer_states(folder)
    paddings, pieces = states[0].get("param_alignment_paddings"), {}
    for number, group in enumerate(shapes):
        flats, offset = [state["single_partition_of_fp32_groups"][number] for state in states], 0
        for place, (name, shape) in enumerate(group.items()):
            pieces[name] = _run(flats, offset, shape.numel(), 0)
            offset += shape.numel() + (paddings[number][place] if paddings else 0)
    return pieces


def _run(flats: Iterable[Tensor], offset: int, count: int, start: int) -> list[Piece]:
    """`count` numbers from `offset` on in tensors laid end to end, as pieces of a parameter from `start` on. Views."""
    found, before = [], 0
    for flat in flats:
        first, end = max(offset, before), min(offset + count, before + flat.numel())
        if first < end:
            found.append(Piece(start + first - offset, flat[first - before : end - before]))
        before += flat.numel()
    return found

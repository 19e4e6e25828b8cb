"""The float32 weights of a checkpoint, of every ZeRO stage, read from where they lie and nothing beside them.

Without ZeRO they are the model's. Stages 1 and 2 lay the weights of an optimizer's group end to end and cut that into a piece a
rank, padded at the end; stage 3 cuts every weight for itself and lays the pieces end to end, group by group. Names of files and of
what is in them are those of DeepSpeed 0.19.8, whose own `zero_to_fp32` gives the same numbers.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipeline.errors import one_line
from sycoca_ds.engine.checkpoint.tensor_files import Damaged, Extent, Verified, Wanted
from sycoca_ds.engine.master_weights import WHOLE, Piece, Share

MODEL, OPTIMIZER = "*model_states.pt", "*_optim_states.pt"
Cut = tuple[int, Piece]
"""How many numbers a weight has, and the piece of it that is read."""
Place = tuple[int, Wanted]
"""A file's number, and what is wanted of it."""


def read(folder: Path, state: Mapping[str, Any], share: Share = WHOLE) -> dict[str, Tensor]:
    """All weights, float32, or a share of each, flat.

    Args:
        state: what the checkpoint's seal says.

    Raises:
        Damaged, OSError: of `tensor_files`; `Damaged` also where the files hold something else than a run's weights.
    """
    try:
        return _read(folder, state, share)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:  # what is in them is anybody's
        raise Damaged(f"{folder}: its files do not hold a run's weights ({type(error).__name__}: {one_line(error)})") from None


def _read(folder: Path, state: Mapping[str, Any], share: Share) -> dict[str, Tensor]:
    model = _opened(folder, state, MODEL)[0].content()
    if state["zero_stage"] == 0:
        return _of_model(folder, state, model["module"], share)
    files = _opened(folder, state, OPTIMIZER)
    parts = [file.content()["optimizer_state_dict"] for file in files]
    groups = [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]
    shapes = {name: shape for group in groups for name, shape in group.items()}
    pieces = {name: share.piece(math.prod(shape), torch.float32) for name, shape in shapes.items()}
    cut = {name: (math.prod(shape), pieces[name]) for name, shape in shapes.items()}
    if state["zero_stage"] == 3:
        places = _cut_each(cut, [part["fp32_flat_groups"] for part in parts])
    else:
        names = [list(group) for group in groups]
        places = _cut_together(cut, names, [part["single_partition_of_fp32_groups"] for part in parts])
    wanted: list[list[Wanted]] = [[] for _ in files]
    for number, one in places:
        wanted[number].append(one)
    for file, own in zip(files, wanted, strict=True):
        file.read(own)
    return {name: share.shaped(pieces[name].values, shape) for name, shape in shapes.items()}


def _opened(folder: Path, state: Mapping[str, Any], pattern: str) -> list[Verified]:
    """The files of a pattern, by rank: their names hold it, with as many digits as it has."""
    names = fnmatch.filter(state["files"], pattern)
    by_rank = sorted(names, key=lambda name: [int(word) if word.isdigit() else -1 for word in name.split("_")])
    return [Verified(folder / name, state["files"][name]) for name in by_rank]


def _of_model(folder: Path, state: Mapping[str, Any], module: Mapping[str, Extent], share: Share) -> dict[str, Tensor]:
    pieces = {name: share.piece(extent.numel, extent.dtype) for name, extent in module.items()}
    wanted = []
    for name, (first, values) in pieces.items():
        extent = module[name]
        wanted.append(Wanted(extent.record, extent.start + first * extent.dtype.itemsize, values))
    _opened(folder, state, MODEL)[0].read(one for one in wanted if one.target.numel())
    return {name: share.shaped(values.float(), module[name].shape) for name, (_, values) in pieces.items()}


def _end_to_end(extents: Sequence[tuple[int, Extent]], first: int, target: Tensor) -> Iterator[Place]:
    """Where the numbers of `target` are among those of some tensors laid end to end, each with its file's number; they begin there
    with the `first`-th."""
    begin = 0
    for file, extent in extents:
        start, end = max(first, begin), min(first + target.numel(), begin + extent.numel)
        if start < end:
            place = extent.start + (start - begin) * extent.dtype.itemsize
            yield file, Wanted(extent.record, place, target[start - first : end - first])
        begin += extent.numel


def _cut_each(weights: Mapping[str, Cut], parts: Sequence[Sequence[Extent]]) -> Iterator[Place]:
    """Stage 3: where pieces of weights are in the groups of each rank."""
    begin = 0
    for numel, (start, values) in weights.values():
        each = -(-numel // len(parts))
        for rank, extents in enumerate(parts):
            first, end = max(start, rank * each), min(start + values.numel(), (rank + 1) * each)
            if first < end:
                own = [(rank, extent) for extent in extents]
                yield from _end_to_end(own, begin + first - rank * each, values[first - start : end - start])
        begin += each


def _cut_together(
    weights: Mapping[str, Cut], groups: Sequence[Sequence[str]], parts: Sequence[Sequence[Extent]]
) -> Iterator[Place]:
    """Stages 1 and 2: where pieces of the weights of each group are in those that the ranks have of it."""
    for number, names in enumerate(groups):
        pieces, begin = [(rank, part[number]) for rank, part in enumerate(parts)], 0
        for name in names:
            numel, (start, values) = weights[name]
            yield from _end_to_end(pieces, begin + start, values)
            begin += numel

"""The EMA's files, cut as ZeRO's stages cut parameters, read back whole and cut anew."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from sycoca_ds.engine.checkpoint import ema_files
from sycoca_ds.engine.master_weights import Piece, Share

SHAPES = {"matrix": (7, 5), "bias": (3,), "scale": (), "vector": (16,), "large": (10, 13)}
WHOLE = {name: torch.randn(shape, generator=torch.Generator().manual_seed(n)) for n, (name, shape) in enumerate(SHAPES.items())}


def cut(stage: int, ranks: int) -> list[dict[str, Piece]]:
    """Each rank's pieces: at stage 3 of every tensor, below of all tensors laid end to end; padding belongs to none."""
    pieces: list[dict[str, Piece]] = [{} for _ in range(ranks)]
    own, place = -(-sum(value.numel() for value in WHOLE.values()) // ranks), 0
    for name, value in WHOLE.items():
        flat = value.flatten()
        size, offset = (-(-len(flat) // ranks), 0) if stage == 3 else (own, place)
        for rank in range(ranks):
            first, end = max(0, rank * size - offset), min(len(flat), (rank + 1) * size - offset)
            if first < end:
                pieces[rank][name] = Piece(first, flat[first:end])
        place += len(flat)
    return pieces


def write(folder: Path, stage: int, ranks: int) -> list[str]:
    state = {"files": {"state.json": {}, "random_rank_00000.pt": {}}}
    for rank, pieces in enumerate(cut(stage, ranks)):
        torch.save(ema_files.content(pieces), folder / ema_files.NAME.format(rank))
        state["files"][ema_files.NAME.format(rank)] = {}
    assert len(ema_files.names(state)) == ranks
    return ema_files.names(state)


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_any_number_of_ranks_reads_what_any_other_has_written(stage: int, ranks: int, tmp_path: Path) -> None:
    files = write(tmp_path, stage, ranks)
    read = ema_files.read(tmp_path, files, SHAPES)
    assert list(read) == list(WHOLE) and all(torch.equal(read[name], value) for name, value in WHOLE.items())
    for shares in (2, 5):
        parts = [ema_files.read(tmp_path, files, SHAPES, Share(number, shares)) for number in range(shares)]
        assert all(torch.equal(torch.cat([part[name] for part in parts]), value.flatten()) for name, value in WHOLE.items())
    for others in (1, 2, 3, 4):
        for wanted in cut(stage, others):
            mine = {name: Piece(start, torch.full_like(values, float("nan"))) for name, (start, values) in wanted.items()}
            ema_files.fill(tmp_path, files, mine)
            assert all(torch.equal(mine[name].values, wanted[name].values) for name in wanted)


def test_no_file_is_read_that_is_not_needed_and_what_is_nowhere_is_said(tmp_path: Path) -> None:
    files = write(tmp_path, 3, 3)
    mine = {name: Piece(start, torch.empty_like(values)) for name, (start, values) in cut(3, 3)[1].items()}
    for file in (files[0], files[2]):
        (tmp_path / file).unlink()
    ema_files.fill(tmp_path, [files[1], files[0], files[2]], mine)
    assert all(torch.equal(piece.values, cut(3, 3)[1][name].values) for name, piece in mine.items())
    with pytest.raises(RuntimeError, match=r"130 numbers of the EMA are in none of ema_rank_00001.pt"):
        ema_files.fill(tmp_path, files[1:2], mine | {"missing": Piece(0, torch.empty(130))})


def test_the_cuts_of_this_test_are_cuts() -> None:
    total = sum(value.numel() for value in WHOLE.values())
    for stage, ranks in itertools.product((1, 3), (1, 2, 3, 4, 5)):
        assert sum(piece.values.numel() for pieces in cut(stage, ranks) for piece in pieces.values()) == total

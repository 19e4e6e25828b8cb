"""Weights read part by part, from checkpoints of real ranks at every ZeRO stage, against DeepSpeed's own converter."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from sycoca_ds.engine.checkpoint.reading import StoredWeights, checkpoint_weights
from sycoca_ds.engine.checkpoint.seal import read_state
from sycoca_ds.engine.checkpoint.weights import open_weights
from sycoca_ds.engine.master_weights import Piece
from sycoca_ds.model.shapes import our_shapes
from tests.worlds.trainings.training import in_turn

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
CASES = {"zero0": "fp32", "zero1": "bf16", "zero2": "fp32", "zero3": "bf16"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, data_set: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("read")
    # sizes that two ranks cannot share evenly
    brief = ["--optim.steps", "2", "--optim.warmup-steps", "1", "--model.embed-dim", "31"]
    runs = [
        (folder / stage, [*brief, "--run.ds-config", f"ds_configs/{stage}.json", "--run.precision", precision])
        for stage, precision in CASES.items()
    ]
    assert in_turn(folder / "ranks", data_set, runs, ranks=2) == [""] * len(runs)
    return {stage: open_weights(folder / stage).folder for stage in CASES}


@pytest.mark.parametrize("stage", CASES)
def test_parts_and_wholes_are_what_was_saved(stage: str, checkpoints: dict[str, Path]) -> None:
    folder = checkpoints[stage]
    files = open_weights(folder).files
    found = files.all()
    assert {name: tuple(value.shape) for name, value in found.items()} == our_shapes(open_weights(folder).config.model)
    used = {}
    if stage in ("zero0", "zero1", "zero2"):
        used = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]
        for name, value in found.items():
            assert value.dtype == torch.float32 and torch.equal(value.to(used[name].dtype), used[name]), name
    if stage in ("zero2", "zero3"):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            expected = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)
        assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    random = np.random.default_rng(0)
    for name, value in found.items():
        start, stop = sorted(random.integers(0, value.numel() + 1, 2).tolist())
        assert torch.equal(files.part(name, start, stop), value.flatten()[start:stop]), name
    assert checkpoint_weights(folder, read_state(folder)["zero_stage"], files.shapes).shapes == files.shapes


def test_what_is_in_no_file_is_named() -> None:
    files = StoredWeights(lambda name: [Piece(0, torch.arange(3.0)), Piece(4, torch.arange(2.0))], {"x": (6,)})
    assert files.part("x", 4, 6).tolist() == [0, 1] and files.part("x", 1, 3).tolist() == [1, 2]
    assert len(files.part("x", 2, 2)) == 0
    with pytest.raises(RuntimeError, match="1 numbers of x are in no file"):
        files.whole("x")

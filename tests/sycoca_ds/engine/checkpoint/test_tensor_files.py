"""Weights that a stranger has made: what their files name is neither imported nor called."""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

import sycoca_ds
from data_pipeline.errors import UserError
from data_pipeline.files import sha256_file
from sycoca_ds.engine.checkpoint.seal import digests, read_state, write_seal
from sycoca_ds.engine.checkpoint.tensor_files import Damaged, Extent, StandIn, Verified
from tests.worlds.trainings.eval_world import make_run

pytestmark = pytest.mark.slow


class Evil:
    """Makes a file where it is read as pickle has it."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


class Worse(dict):
    """The same behind what pickle does to containers and to objects."""

    def __init__(self, mark: Path):
        super().__init__(a=1)
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",), {"state": 1}, iter([1, 2]), iter({"key": 1}.items())


def opened(content: Any, path: Path) -> Any:
    torch.save(content, path)
    return Verified(path, digests(path)).content()


@pytest.mark.parametrize("kind", [Evil, Worse])
def test_nothing_of_a_file_is_run(kind: type, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(kind(mark), tmp_path / "control")
    with contextlib.suppress(Exception):
        torch.load(tmp_path / "control", weights_only=False)
    assert mark.exists(), "this file could not do it anyhow"
    mark.unlink()
    found = opened({"weight": torch.arange(6.0).view(2, 3), "evil": [kind(mark)], 3: "text"}, tmp_path / "file")
    assert not mark.exists()
    assert isinstance(found["evil"][0], StandIn) and found[3] == "text"
    assert isinstance(found["weight"], Extent) and found["weight"].shape == (2, 3) and found["weight"].dtype == torch.float32


def test_containers_and_numbers_are_what_they_were(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, True, None], "b": OrderedDict(x=torch.Size([2, 3])), "c": (1, ("two",))}
    found = opened(content, tmp_path / "file")
    assert found == content and type(found["b"]) is OrderedDict and type(found["b"]["x"]) is torch.Size


def test_a_file_that_is_none_of_ours_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text" * 99)
    with pytest.raises(Damaged, match="text: not readable as what `torch.save` wrote of a run"):
        Verified(tmp_path / "text", digests(tmp_path / "text")).content()


@pytest.mark.parametrize("where", ["beside", "weight", "module", "file", "average"])
def test_a_run_with_an_evil_file_opens_without_it_or_is_refused_in_a_line(where: str, tmp_path: Path) -> None:
    """Its seal is right: whoever makes such a file can write that, too."""
    mark, run = tmp_path / "mark", make_run(tmp_path / "run", average_of=4)
    folder = run / "checkpoints" / "step_00000007"
    path = folder / ("ema_rank_00000.pt" if where == "average" else "mp_rank_00_model_states.pt")
    before = sycoca_ds.load(run, device="cpu").encode_text("a scene")
    content = torch.load(path)
    if where == "beside":
        content["client_state"] = Evil(mark)
    elif where == "module":
        content["module"] = Evil(mark)
    elif where == "weight":
        content["module"]["logit_scale"] = Evil(mark)
    else:
        content = Evil(mark)
    torch.save(content, path)
    state = read_state(folder)
    state["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_seal(folder, state)
    if where == "beside":
        assert (sycoca_ds.load(run, device="cpu").encode_text("a scene") == before).all()
    else:
        said = "expected tensors only" if where == "average" else "its files do not hold a run's weights"
        with pytest.raises(UserError, match=said) as error:
            sycoca_ds.load(run, device="cpu", ema=where == "average")
        assert "\n" not in str(error.value)
    assert not mark.exists()

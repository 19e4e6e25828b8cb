"""Which checkpoints stay: against a slow rule that looks at one after the other."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sycoca_ds.engine.checkpoint.retention import Retention, dispensable, retire, size
from sycoca_ds.engine.checkpoint.seal import STATE_FILE, sealed, step_folder, step_of, write_seal

STEPS = (100, 200, 250, 300, 400, 500)
BYTES = 1000


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    for step in STEPS:
        folder = step_folder(tmp_path, step)
        folder.mkdir()
        write_seal(folder, {"step": step, "files": {}})
        (folder / "weights").write_bytes(b"x" * (BYTES - (folder / STATE_FILE).stat().st_size))
        assert size(folder) == BYTES
    return tmp_path


def slowly(retention: Retention, incoming: int) -> set[int]:
    """Steps that stay."""
    stays = {step for step in STEPS if step == retention.best or (retention.keep_every and step % retention.keep_every == 0)}
    stays.add(max(STEPS))
    for step in sorted(STEPS, reverse=True):
        restarts = [
            s
            for s in stays
            if s == max(STEPS) or not (s == retention.best or (retention.keep_every and s % retention.keep_every == 0))
        ]
        if step not in stays and len(restarts) < retention.keep:
            stays.add(step)
    for step in sorted(stays):
        good = step == retention.best or (retention.keep_every and step % retention.keep_every == 0)
        if retention.budget is not None and incoming + BYTES * len(stays) > retention.budget and step != max(STEPS) and not good:
            stays.remove(step)
    return stays


@pytest.mark.parametrize("keep, every", itertools.product([0, 1, 2, 3, 10], [None, 200, 1000]))
@pytest.mark.parametrize("best", [None, 100, 250, 999])
@pytest.mark.parametrize("budget", [None, 0, 2500, 4000, 5999])
def test_as_a_slow_rule_says(keep: int, every: int | None, best: int | None, budget: int | None, checkpoints: Path) -> None:
    for incoming in (0, BYTES):
        retention = Retention(keep, every, best, budget)
        gone = {step_of(folder) for folder in dispensable(checkpoints, retention, incoming)}
        assert set(STEPS) - gone == slowly(retention, incoming), (retention, incoming)


def test_deleted_is_what_was_named(checkpoints: Path) -> None:
    assert retire(checkpoints, Retention(keep=2, keep_every=250)) == ["step_00000100", "step_00000200", "step_00000300"]
    assert [step_of(folder) for folder in sealed(checkpoints)] == [500, 400, 250]
    assert len(list(checkpoints.iterdir())) == 3


def test_what_cannot_be_deleted_is_named_and_stays(checkpoints: Path, capfd: pytest.CaptureFixture) -> None:
    """As where somebody has made a folder read-only to keep it."""
    seal = step_folder(checkpoints, 200) / STATE_FILE
    seal.unlink()
    seal.mkdir()
    assert retire(checkpoints, Retention(keep=2)) == ["step_00000100", "step_00000250", "step_00000300"]
    assert [step_of(folder) for folder in sealed(checkpoints)] == [500, 400, 200]
    assert f"an old checkpoint cannot be deleted ([Errno 21] Is a directory: '{seal}'): it stays" in capfd.readouterr().err

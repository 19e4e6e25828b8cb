"""Room for the next checkpoint: what makes way for it, and what never does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.files import sha256_file
from sycoca_ds.engine.checkpoint.retention import Retention, retire
from sycoca_ds.engine.checkpoint.saving import SPARE_BYTES, make_room
from sycoca_ds.engine.checkpoint.seal import newest_whole, sealed, step_folder, step_of, write_seal


def save(checkpoints: Path, step: int, retention: Retention) -> None:
    """As a saver and the writer of rank 0 do."""
    folder = step_folder(checkpoints, step)
    assert make_room(folder, retention, 100) == ""
    weights = folder / "weights"
    weights.write_bytes(b"%d" % step)
    write_seal(folder, {"step": step, "files": {"weights": {"bytes": len(b"%d" % step), "sha256": sha256_file(weights)}}})
    retire(checkpoints, retention)


@pytest.fixture(params=[1, 3])
def gone_back(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, Retention]]:
    """Checkpoints of steps 100 to 300, of which the run goes on from that of step 200, since the last one is damaged."""
    retention = Retention(keep=request.param)
    for step in (100, 200):
        save(tmp_path, step, Retention())
    save(tmp_path, 300, Retention())
    (step_folder(tmp_path, 300) / "weights").write_bytes(b"30x")
    found, problems = newest_whole(tmp_path)
    assert step_of(found) == 200 and len(problems) == 1
    yield tmp_path, retention


def test_a_damaged_checkpoint_never_outlives_the_whole_ones(gone_back: tuple[Path, Retention]) -> None:
    """Until the run has come as far again it is the one with the largest step."""
    checkpoints, retention = gone_back
    for step in (210, 220, 230):
        save(checkpoints, step, retention)
        found, problems = newest_whole(checkpoints)
        assert step_of(found) == step and not problems
        assert len(sealed(checkpoints)) <= retention.keep


def test_on_a_full_disk_the_last_whole_one_stays(gone_back: tuple[Path, Retention], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, retention = gone_back
    full = shutil._ntuple_diskusage(1, 1, SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert make_room(step_folder(checkpoints, 210), retention, 100).endswith("(there: 200)")
    assert step_of(newest_whole(checkpoints)[0]) == 200

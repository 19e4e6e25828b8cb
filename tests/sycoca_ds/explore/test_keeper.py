"""What goes on in the background: the samples and the folder of --index apart, an end in the middle of it, a disk that fails."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sycoca_ds.explore import keeper as keeping
from sycoca_ds.explore.keeper import Compared, Keeper
from sycoca_ds.explore.looking import answers
from sycoca_ds.explore.samples import find_samples
from sycoca_ds.inference.index import load, place_of
from tests.worlds.trainings.eval_world import make_data, make_run
from tests.worlds.trainings.explored import asked, open_here

PHOTOGRAPHS, BATCH = 40, 2
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.* longer than this model")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keeper")
    make_data(folder / "data", images=5)
    make_run(folder / "run")
    (folder / "photographs").mkdir()
    for number in range(PHOTOGRAPHS):
        Image.new("RGB", (50, 50), (number, 100, 255 - number)).save(folder / f"photographs/{number:02}.png")
    return folder


def keeper_of(folder: Path, run: Path, photographs: Path, cache: Path | None = None) -> Keeper:
    model = open_here(run)
    samples, why = find_samples(model, str(folder / "data"), 0)
    return Keeper(run, model, open_here, Compared(samples, why, photographs, cache, BATCH), watch_seconds=0.02)


def soon(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def neighbours(keeper: Keeper) -> dict[str, Any]:
    with keeper.lent() as held:
        return next(answers(asked(held, keeper.compared, 1), ("neighbours",)))


def test_a_folder_without_pictures_leaves_the_samples(folder: Path, tmp_path: Path) -> None:
    keeper = keeper_of(folder, folder / "run", tmp_path)
    keeper.start()
    try:
        soon(lambda: keeper.held.stage == "ready")
        found = neighbours(keeper)
    finally:
        keeper.end()
    problem = f"{tmp_path}: no file in it is called like a picture (.jpg, .png, .webp, ...)"
    assert keeper.held.problems == {"index": problem}
    assert len(found["samples"]) == 4 and not found["wait"]
    assert found["folder_lack"] == f"No neighbours from --index: {problem}"


def test_samples_that_cannot_be_read_leave_the_folder(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "data", tmp_path / "data")
    keeper = keeper_of(tmp_path, folder / "run", folder / "photographs")
    picture = keeper.compared.samples.collection.picture(1)
    shutil.rmtree(tmp_path / "data/shards")
    keeper._prepare(keeper.held, excused=Exception)
    assert keeper.held.problems.keys() == {"samples"} and keeper.held.stage == "ready"
    keeper.compared.samples.collection.picture = lambda number: picture
    found = neighbours(keeper)
    assert found["samples_lack"].startswith("The pictures to compare with cannot be read: ") and not found["wait"]
    assert len(found["folder"]["pictures"]) == 6


def test_an_end_in_the_middle_of_a_folder_waits_for_a_batch_alone(folder: Path, tmp_path: Path) -> None:
    keeper = keeper_of(folder, folder / "run", folder / "photographs", tmp_path)
    model, batches = keeper.held.model, []
    encode = model.encode_image
    model.encode_image = lambda images, batch_size: batches.append(len(images)) or time.sleep(0.1) or encode(images, batch_size)
    keeper.start()
    soon(lambda: keeper.held.stage == "index" and keeper.held.done >= 2 * BATCH)
    with keeper.lent() as held:
        time.sleep(0.3)  # the batch that had begun
        done, begun = held.done, len(batches)
        found = next(answers(asked(held, keeper.compared, 1), ("neighbours",)))
        time.sleep(0.5)
        assert len(batches) == begun, "it goes on while an answer is computed"
    assert len(found["samples"]) == 4 and found["wait"], "the samples were looked at before the folder"
    assert found["folder_lack"] == f"The pictures in {folder / 'photographs'} are still being looked at ({done} so far)."
    keeper.end()
    assert not keeper._thread.is_alive()
    kept = load(place_of(tmp_path, model, folder / "photographs"))
    assert set(batches) == {BATCH} and len(kept) == sum(batches) < PHOTOGRAPHS / 2, "what was looked at is kept"


def test_a_disk_that_fails_once_is_looked_at_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(folder / "run", tmp_path / "run")
    keeper = Keeper(run, open_here(run), open_here, Compared(None, "There are none."), watch_seconds=0.02)
    stale, real = OSError(errno.ESTALE, os.strerror(errno.ESTALE)), keeping.sealed

    def fails(checkpoints: Path) -> list[Path]:
        raise stale

    monkeypatch.setattr(keeping, "sealed", fails)
    keeper.start()
    try:
        said = f"{run / 'checkpoints'}: no look at its checkpoints (OSError: [Errno 116] Stale file handle); it is tried again"
        soon(lambda: keeper.unseen == said)
        time.sleep(0.2)
        monkeypatch.setattr(keeping, "sealed", real)
        soon(lambda: keeper.unseen == "")
        # a newer one whose files fail at first
        opened, tries = keeper.opened, []

        def opens_the_second_time(place: Path):
            tries.append(place.name)
            if len(tries) == 1:
                raise stale
            return opened(place)

        keeper.opened = opens_the_second_time
        make_run(tmp_path / "more", seed=4, step=9)
        (tmp_path / "more/checkpoints/step_00000009").rename(run / "checkpoints/step_00000009")
        soon(lambda: keeper.held.version == 2)
    finally:
        keeper.end()
    assert tries == ["step_00000009"] * 2 and keeper.held.model.step == 9 and keeper.problem == ""
    told = capsys.readouterr().err.splitlines()
    assert told == [said, "step 9 cannot be opened: [Errno 116] Stale file handle", "step 9 is taken"]

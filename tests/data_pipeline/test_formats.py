"""Files that another version wrote: each carries a number, and a number that is not read is a line that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.download.job import DownloadCommand
from data_pipeline.errors import UserError, check_format, check_python
from data_pipeline.shards.manifest import Manifest
from data_pipeline.world.on_disk import build_world
from tests.worlds.data.data_sets import write_data_set

SIZES = {"train": 1, "val": 1, "test": 1}


@pytest.mark.parametrize("found", [None, "1", 0, 1, 2, 3, 4])
def test_numbers(found: object) -> None:
    known = isinstance(found, int) and 2 <= found <= 3
    if known:
        check_format(found, 3, "f.json", "mend", oldest=2)
        return
    with pytest.raises(UserError) as error:
        check_format(found, 3, "f.json", "mend", oldest=2)
    newer = "f.json: format 4, written by a newer version; this one reads 2 to 3: update it (CHANGELOG.md)"
    assert str(error.value) == (newer if found == 4 else f"f.json: format {found}, this version reads 2 to 3; mend")


def changed(path: Path, number: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": number}))


def test_curated_rows_a_download_and_a_world_of_a_newer_version(tmp_path: Path) -> None:
    data, world = write_data_set(tmp_path / "data", [2]), tmp_path / "world"
    (data / "canonical").mkdir(exist_ok=True)
    curated = {"format": 2, "rows_in": 1, "rows_out": 1, "parts": []}
    (data / "canonical/curate.json").write_text(json.dumps(curated))
    assert read_curate(data)["rows_in"] == 1
    settings = {"rows": [], "image_size": 288, "min_image_size": 16, "max_pixels": 25_000_000, "shard_size": 10_000}
    (data / "download.json").write_text(json.dumps({"format": 1, "settings": settings, "shards": {}}))
    assert DownloadCommand(data=data, dry_run=True).run() == 0
    changed(data / "download.json", 2)
    with pytest.raises(UserError, match=r"download.json: format 2, written by a newer version; this one reads 1"):
        DownloadCommand(data=data, dry_run=True).run()
    changed(data / "canonical/curate.json", 3)
    with pytest.raises(UserError, match=r"curate.json: format 3, written by a newer version; this one reads 1 to 2"):
        read_curate(data)
    build_world(world, SIZES, 0, 8000)
    changed(world / "world.json", 2)
    with pytest.raises(UserError, match=r"world.json: format 2, written by a newer version"):
        build_world(world, SIZES, 0, 8000)


def test_a_manifest_of_another_version(tmp_path: Path) -> None:
    data = write_data_set(tmp_path, [2])
    changed(data / "manifest/manifest.json", 99)
    with pytest.raises(UserError, match="manifest.json: format 99"):
        Manifest.load(data)


def test_a_python_that_is_too_old_or_too_new_is_a_line() -> None:
    check_python((3, 10))
    check_python((3, 12))
    with pytest.raises(UserError, match=r"^Python 3.13 .*: expected 3.10 to 3.12 \(img2dataset 1.47 imports imghdr"):
        check_python((3, 13))
    with pytest.raises(UserError, match=r"^Python 3.9 .*: expected 3.10 to 3.12; make an environment with one of these"):
        check_python((3, 9))

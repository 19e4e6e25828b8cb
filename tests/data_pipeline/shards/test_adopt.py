"""Mirrors: tars as others publish them become a data set folder, with nothing downloaded, copied or changed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.build import AdoptCommand, BuildCommand
from data_pipeline.catalogue.curate import curate
from data_pipeline.errors import UserError
from data_pipeline.shards.adopt import adopt, find_tars
from data_pipeline.shards.manifest import Manifest
from sycoca_ds.data.loader import ShardReader
from sycoca_ds.data.sources import Sources
from tests.worlds.data_sets import write_mirror


def test_a_mirror_becomes_a_data_set(tmp_path: Path) -> None:
    mirror, out = write_mirror(tmp_path / "mirror"), tmp_path / "data"
    before = {tar: tar.read_bytes() for tar in mirror.iterdir()}
    AdoptCommand(tars=str(mirror), out=out, processes=1).run()
    assert {tar: tar.read_bytes() for tar in mirror.iterdir()} == before
    manifest = Manifest.load(out)
    assert (manifest.samples, manifest.kept, [shard.path.name for shard in manifest.shards]) == (
        8,
        7,
        ["cc12m-train-0000.tar", "cc12m-train-0001.tar"],
    )
    rows = [row for shard in manifest.shards for row in pq.read_table(shard.index_path).to_pylist()]
    assert [row["reason"] for row in rows] == [None] * 7 + ["no caption"]
    assert len({row["uid"] for row in rows if row["keep"]}) == 7, "keys repeat, uids do not"
    assert [row["url"] for row in rows[:3]] == [
        "http://example.org/0/0.jpg",
        "wds:cc12m-train-0000/000000001",
        "wds:cc12m-train-0000/000000002",
    ]
    assert {(row["width"], row["height"]) for row in rows[:7]} == {(50, 40)}, "measured, whatever the json says"
    reader = ShardReader(Sources.load([out]))
    assert [reader.read(shard, place)[1] for shard, place in ((0, 0), (0, 3), (1, 2))] == [
        "caption 0 of 0",
        "caption 3 of 0",
        "caption 2 of 1",
    ]
    funnel = json.loads((out / "funnel.json").read_text())
    assert (funnel["source"], funnel["rows_in"], funnel["kept"], funnel["rejected"]) == ("wds", 8, 7, {"no caption": 1})
    assert "no caption" in (out / "funnel.html").read_text()


def test_adopting_again_takes_up_what_is_new(tmp_path: Path) -> None:
    mirror, out = write_mirror(tmp_path / "mirror", tars=1), tmp_path / "data"
    command = AdoptCommand(tars=str(mirror / "*.tar"), out=out, processes=1)
    command.run()
    digest = Manifest.load(out).digest
    build = BuildCommand(source="wds", metadata=str(mirror), out=out, verify_processes=1)
    assert build.run() == 0 and Manifest.load(out).digest == digest
    with pytest.raises(UserError, match="--source wds: tars have no catalogue"):
        curate(build)
    other = write_mirror(tmp_path / "other", tars=3)
    os.rename(other / "cc12m-train-0002.tar", mirror / "cc12m-train-0002.tar")
    command.run()
    assert [shard.path.name for shard in Manifest.load(out).shards] == ["cc12m-train-0000.tar", "cc12m-train-0002.tar"]


def test_where_hard_links_are_not_possible_the_link_is_symbolic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    mirror, out = write_mirror(tmp_path / "mirror", tars=1), tmp_path / "data"
    AdoptCommand(tars=str(mirror), out=out, processes=1).run()
    assert (out / "shards/cc12m-train-0000.tar").is_symlink() and Manifest.load(out).kept == 4
    (tmp_path / "mirror").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="is missing"):
        Manifest.load(out)
    AdoptCommand(tars=str(tmp_path / "moved"), out=out, processes=1).run()
    assert Manifest.load(out).kept == 4


def test_what_cannot_be_adopted_is_refused(tmp_path: Path) -> None:
    mirror, other = write_mirror(tmp_path / "a/mirror", tars=1), write_mirror(tmp_path / "b/mirror", tars=1)
    with pytest.raises(UserError, match="no tars there"):
        find_tars(str(tmp_path))
    with pytest.raises(UserError, match="have the same name"):
        find_tars(str(tmp_path / "*/mirror/*.tar"))
    adopt(str(mirror), tmp_path / "data")
    with pytest.raises(UserError, match="there already, and not"):
        adopt(str(other), tmp_path / "data")
    (tmp_path / "built/canonical").mkdir(parents=True)
    with pytest.raises(UserError, match="holds rows that were curated"):
        adopt(str(mirror), tmp_path / "built")

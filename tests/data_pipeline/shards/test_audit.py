"""Verified data that changes afterwards: `verify` names the shard and says what to do, training refuses."""

import json
import os
import re
import tarfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.shards.manifest import Manifest, ManifestError
from data_pipeline.shards.verify import VerifyCommand, _on_record, check_shard, verify
from tests.worlds.data.data_sets import data_set, sample, write_tar


def flip_a_pixel(root: Path) -> None:
    row = Manifest.load(root).index(1).to_pylist()[2]
    with open(root / "shards/00001.tar", "r+b") as file:
        file.seek(row["image_offset"] + row["image_bytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))


def drop_a_member(root: Path) -> None:
    path = root / "shards/00001.tar"
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]
    write_tar(path, [(info, data) for info, data in members if not info.name.endswith("5.txt")])


def edit_the_index(root: Path) -> None:
    path = root / "manifest/index/00001.parquet"
    table = pq.read_table(path)
    widths = pa.array([1 for _ in range(table.num_rows)], pa.int32())
    pq.write_table(table.set_column(table.schema.get_field_index("width"), "width", widths), path)


AUDIT = {
    "a flipped byte": (flip_a_pixel, None, "00001.tar: changed since it was verified: sha256 .*delete it and download again"),
    "a dropped member": (drop_a_member, None, "00001.tar: changed since it was verified"),
    "a cut tar": (
        lambda root: os.truncate(root / "shards/00001.tar", 5000),
        "00001.tar: has .* bytes",
        "00001.tar: .*cut off.*delete it and download again",
    ),
    "a deleted shard": (
        lambda root: (root / "shards/00001.tar").unlink(),
        "00001.tar: is missing",
        "00001.tar: is missing; left out .download again",
    ),
    "an edited index": (
        edit_the_index,
        "index/00001.parquet: sha256",
        "index/00001.parquet is not the one that was verified; made again",
    ),
}


@pytest.mark.parametrize("attack", AUDIT)
def test_an_audit_names_the_shard_and_training_refuses(tmp_path, attack, capsys):
    """Training refuses before anybody audits (tests/sycoca_ds/data/test_loader.py: when it reads a sample)."""
    root = data_set(tmp_path / "ds", shards=3)
    verify(root, processes=1)
    before = Manifest.load(root)
    change, refusal, named = AUDIT[attack]
    time.sleep(0.01)
    change(root)
    if refusal:
        with pytest.raises(ManifestError, match=f"{refusal}.*data_pipeline verify"):
            manifest = Manifest.load(root)
            [manifest.index(number) for number in range(3)]
    for processes in (1, 2):  # said again until it is mended
        capsys.readouterr()
        status = VerifyCommand(data=root, processes=processes).run()
        said = capsys.readouterr().err
        if attack == "an edited index":
            assert status == 0 and Manifest.load(root).digest == before.digest
            if processes == 2:
                continue
        else:
            assert status == 1 and [shard.path.name for shard in Manifest.load(root).shards] == ["00000.tar", "00002.tar"]
        assert re.search(named, said), said
    if attack in ("a flipped byte", "a dropped member"):
        assert VerifyCommand(data=root, accept_changed=True).run() == 0 and len(Manifest.load(root).shards) == 3
        assert VerifyCommand(data=root).run() == 0


def test_missing_stays_missing_when_changes_are_accepted(tmp_path):
    root = data_set(tmp_path / "ds", shards=3)
    verify(root, processes=1)
    (root / "shards/00001.tar").unlink()
    for _ in range(2):
        assert [entry["reason"] for entry in verify(root, processes=1, accept_changed=True)["damaged"]] == ["is missing"]


def test_killed_between_index_and_manifest_a_replaced_tar_is_no_failing_disk(tmp_path, capsys):
    root = data_set(tmp_path / "ds", shards=2)
    verify(root, processes=1)
    write_tar(root / "shards/00001.tar", sample(100))
    stat = (root / "shards/00001.tar").stat()
    (root / "download.json").write_text(json.dumps({"shards": {"00001": [stat.st_size, stat.st_mtime_ns, 1]}}))
    assert check_shard(root, "00001.tar", _on_record(root)["00001.tar"])[1]["samples"] == 1  # its index is written, then: killed
    capsys.readouterr()
    assert verify(root, processes=1)["damaged"] == [] and len(Manifest.load(root).shards) == 2
    assert "changed" not in capsys.readouterr().err


def test_a_tar_that_the_download_replaced_is_taken(tmp_path):
    root = data_set(tmp_path / "ds", shards=2)
    verify(root, processes=1)
    write_tar(root / "shards/00001.tar", sample(100))
    stat = (root / "shards/00001.tar").stat()
    facts = {"00001": [stat.st_size, stat.st_mtime_ns, 1]}
    (root / "download.json").write_text(json.dumps({"shards": facts}))
    assert verify(root, processes=1)["damaged"] == [] and len(Manifest.load(root).shards) == 2
    (root / "download.json").write_text(json.dumps({"shards": facts | {"00002": [9, 9, 1]}}))
    assert [entry["path"] for entry in verify(root, processes=1)["damaged"]] == ["shards/00002.tar"]

"""Verification of tars, good and damaged, and the manifest: offsets, digests, what a change of any file does."""

import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import UserError
from data_pipeline.files import image_id, sha256_file
from data_pipeline.shards.manifest import INDEX_SCHEMA, Manifest, ManifestError, write_manifest
from data_pipeline.shards.samples import phash
from data_pipeline.shards.tarwalk import TarError, groups
from data_pipeline.shards.verify import verify
from tests.worlds.data.data_sets import RNG, data_set, member, picture, sample, write_tar
from tests.worlds.processes.watching import memory
from tests.worlds.strangers.hostile_pictures import text_bomb_png


def test_offsets_are_exactly_the_members(tmp_path):
    root = data_set(tmp_path / "ds")
    summary = verify(root, processes=1)
    assert (summary["tars"], summary["samples"], summary["kept"], summary["rejected"], summary["damaged"]) == (
        3,
        12,
        12,
        {},
        [],
    )
    manifest = Manifest.load(root)
    assert manifest.kept == manifest.samples == 12 and manifest.kept_per_shard.tolist() == [4, 4, 4]
    for number, shard in enumerate(manifest.shards):
        assert shard.path == root / "shards" / f"{number:05d}.tar"
        assert (shard.bytes, shard.sha256) == (shard.path.stat().st_size, sha256_file(shard.path))
        rows = manifest.index(number).to_pylist()
        data = shard.path.read_bytes()
        with tarfile.open(shard.path) as tar:
            names = [name.removesuffix(".jpg") for name in tar.getnames() if name.endswith(".jpg")]
            assert [row["key"] for row in rows] == names
            for row in rows:
                image, text = tar.extractfile(f"{row['key']}.jpg").read(), tar.extractfile(f"{row['key']}.txt").read()
                assert data[row["image_offset"] : row["image_offset"] + row["image_bytes"]] == image
                assert data[row["text_offset"] : row["text_offset"] + row["text_bytes"]] == text
                assert (row["width"], row["height"], row["caption_chars"]) == (24, 16, len(text.decode()))
                assert row["image_id"] == image_id(row["url"]) and len(row["phash"]) == 16 and row["keep"] and row["reason"] is None
    assert manifest.index(0, ["uid"]).to_pydict() == {"uid": [f"{number:016x}" for number in range(4)]}
    assert manifest.index(0).schema.equals(INDEX_SCHEMA)


BROKEN = {
    "empty caption": {"caption": b" \n"},
    "caption is not UTF-8": {"caption": b"caf\xe9 au lait"},
    "not an image": {"image": b"<html>"},
    "truncated image": {"image": picture(64, 64)[:-300]},
    "size differs from its json": {"width": 25},
    "json without uid and url": {"uid": "not hex"},
}


def test_broken_samples_stay_in_the_index_with_their_reason(tmp_path):
    members = sample(0)
    for number, changes in enumerate(BROKEN.values(), start=1):
        members += sample(number, **changes)
    members += sample(20)[:1] + sample(21)[::2]  # no caption and no json; no caption
    members += sample(30) + sample(30, key="00000031") + sample(32, key="00000030")  # the same uid again, the same key again
    write_tar(tmp_path / "ds/shards/00000.tar", members)
    summary = verify(tmp_path / "ds", processes=1)
    expected = dict.fromkeys(BROKEN, 1) | {
        "no caption and no json": 1,
        "no caption": 1,
        "duplicate uid": 1,
        "duplicate key": 1,
    }
    assert summary["rejected"] == dict(sorted(expected.items()))
    assert summary["samples"] == sum(expected.values()) + summary["kept"] and summary["kept"] == 2
    table = pq.read_table(tmp_path / "ds/manifest/index/00000.parquet")
    assert table.num_rows == summary["samples"]
    assert [(row["key"], row["reason"]) for row in table.to_pylist()][:4] == [
        ("00000000", None),
        ("00000001", "empty caption"),
        ("00000002", "caption is not UTF-8"),
        ("00000003", "not an image"),
    ]
    assert Manifest.load(tmp_path / "ds").index(0, ["key"])["key"].to_pylist() == ["00000000", "00000030"]


def test_a_mirrors_png_that_unpacks_to_gigabytes_is_refused_before_it_is_decoded(tmp_path):
    """Training's decoder would unpack it as well."""
    bomb = text_bomb_png(chunks=20, size=64 << 20)
    name = "00000000.png"
    members = [(info, data) for info, data in sample(0, image=bomb)]
    members[0][0].name = name
    write_tar(tmp_path / "ds/shards/00000.tar", members + sample(1))
    Path("/proc/self/clear_refs").write_text("5")  # the peak is this test's, not that of one before it
    before, _ = memory(os.getpid())
    assert verify(tmp_path / "ds", processes=1)["rejected"] == {"png with too many texts": 1}
    assert memory(os.getpid())[1] - before < 200, "MB; decoded it would take 1,300"


def flip_header(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = next(iter(groups(path))).members["txt"].offset - 512
    data[place + 3] ^= 1
    path.write_bytes(data)


def drop_end(path: Path) -> None:
    with tarfile.open(path) as tar:
        end = max(info.offset_data + info.size for info in tar.getmembers())
    os.truncate(path, end - 1)


DAMAGE = {
    "cut in the middle": (lambda path: os.truncate(path, path.stat().st_size // 2 + 100), "cut off"),
    "cut in the last member": (drop_end, "cut off"),
    "no end mark": (
        lambda path: os.truncate(
            path, -(-max(info.offset_data + info.size for info in tarfile.open(path).getmembers()) // 512) * 512
        ),
        "no end mark",
    ),
    "empty file": (lambda path: os.truncate(path, 0), "no end mark"),
    "flipped bit in a header": (flip_header, "damaged header"),
    "climbing name": (lambda path: write_tar(path, sample(1) + [member("../evil.jpg", b"x")]), "not a plain file name"),
    "absolute name": (lambda path: write_tar(path, [member("/etc/evil.jpg", b"x")]), "not a plain file name"),
    "folder": (lambda path: write_tar(path, [member("folder.d", b"", type=tarfile.DIRTYPE)]), "not a regular file"),
    "link": (
        lambda path: write_tar(path, sample(1) + [member("a.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")]),
        "not a regular file",
    ),
    "hard link": (
        lambda path: write_tar(path, [member("a.jpg", b"", type=tarfile.LNKTYPE, linkname="00000001.jpg")]),
        "not a regular file",
    ),
    "extended header with a path": (
        lambda path: write_tar(path, [member("0.jpg", b"x", pax_headers={"path": "../../evil.jpg"})]),
        "renames or resizes",
    ),
    "long name": (lambda path: write_tar(path, [member("n" * 200 + ".jpg", b"x")]), "renames or resizes"),
    "not a tar": (lambda path: path.write_bytes(b"<html>" * 1000), "damaged header"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_tar_is_named_and_left_out(tmp_path, damage, capsys):
    root = data_set(tmp_path / "ds", shards=2)
    spoil, reason = DAMAGE[damage]
    spoil(root / "shards/00001.tar")
    summary = verify(root, processes=1)
    assert [entry["path"] for entry in summary["damaged"]] == ["shards/00001.tar"]
    assert reason in summary["damaged"][0]["reason"]
    assert "00001.tar" in capsys.readouterr().err
    assert [shard.path.name for shard in Manifest.load(root).shards] == ["00000.tar"]


def test_nothing_left_is_an_error_and_leaves_no_usable_manifest(tmp_path):
    root = data_set(tmp_path / "ds", shards=1)
    verify(root, processes=1)
    (root / "shards/00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="no sample is left to train on .1 of 1 tars damaged.*download again"):
        verify(root, processes=1)
    with pytest.raises(ManifestError, match="empty, no kept sample"):
        Manifest.load(root)
    with pytest.raises(UserError, match="no tars to verify; run first"):
        verify(tmp_path / "nothing", processes=1)


@pytest.mark.timeout(60)
def test_a_second_run_checks_only_what_changed_and_many_processes_agree(tmp_path):
    root = data_set(tmp_path / "ds")
    first = verify(root, processes=2)
    digest = Manifest.load(root).digest
    stamps = {path.name: path.stat().st_mtime_ns for path in (root / "manifest/index").iterdir()}
    assert verify(root, processes=1) == first | {"reused": 3}
    os.utime(root / "shards/00000.tar")  # copied or touched: read again, found to be the same
    assert verify(root, processes=1, recheck=False)["reused"] == 3
    assert Manifest.load(root).digest == digest
    assert {path.name: path.stat().st_mtime_ns for path in (root / "manifest/index").iterdir()} == stamps
    write_tar(root / "shards/00001.tar", sample(100))
    summary = verify(root, processes=1, accept_changed=True)
    assert (summary["reused"], summary["kept"]) == (2, 9) and Manifest.load(root).digest != digest


def test_a_flipped_byte_behind_an_old_time_of_change_is_found_by_recheck(tmp_path):
    root = data_set(tmp_path / "ds", shards=2)
    verify(root, processes=1)
    tar = root / "shards/00001.tar"
    stat, before = tar.stat(), Manifest.load(root)
    offset = before.index(1).to_pylist()[2]["image_offset"]
    data = bytearray(tar.read_bytes())
    data[offset] ^= 0xFF
    tar.write_bytes(data)
    os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert verify(root, processes=1)["reused"] == 2
    for recheck in (True, False):  # found once it stays on record
        summary = verify(root, processes=1, recheck=recheck)
        assert summary["reused"] == 1 and [entry["path"] for entry in summary["damaged"]] == ["shards/00001.tar"]
        assert "its size and time did not (a failing disk?)" in summary["damaged"][0]["reason"]
        assert [shard.path.name for shard in Manifest.load(root).shards] == ["00000.tar"]
    data[offset] ^= 0xFF
    tar.write_bytes(data)
    assert verify(root, processes=1)["damaged"] == [] and Manifest.load(root).digest == before.digest, "restored"


def test_the_manifest_notices_every_change(tmp_path, capsys):
    root = data_set(tmp_path / "ds", shards=2)
    with pytest.raises(ManifestError, match="no such folder.*data_pipeline build"):
        Manifest.load(tmp_path / "none")
    with pytest.raises(ManifestError, match="manifest.json: not there.*data_pipeline verify"):
        Manifest.load(root)
    verify(root, processes=1)
    manifest = Manifest.load(root / "manifest")
    assert manifest == Manifest.load(str(root))
    index = root / "manifest/index/00001.parquet"
    whole = index.read_bytes()
    rows = pq.read_table(index).to_pylist()
    rows[0]["keep"] = False
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA.with_metadata(pq.read_schema(index).metadata)), index)
    assert manifest.index(0).num_rows == 4
    with pytest.raises(ManifestError, match="00001.parquet: sha256 .* the manifest says"):
        manifest.index(1)
    verify(root, processes=1)
    assert f"changed: {index} is not the one that was verified" in capsys.readouterr().err
    assert index.read_bytes() == whole and manifest.index(1).num_rows == 4
    with open(root / "shards/00000.tar", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ManifestError, match="00000.tar: has .* bytes, the manifest says"):
        Manifest.load(root)
    (root / "shards/00000.tar").unlink()
    with pytest.raises(ManifestError, match="00000.tar: is missing"):
        Manifest.load(root)
    table = pq.read_table(root / "manifest/shards.parquet")
    pq.write_table(table.slice(1), root / "manifest/shards.parquet")
    with pytest.raises(ManifestError, match="shards.parquet: digest"):
        Manifest.load(root)
    (root / "manifest/shards.parquet").write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match="shards.parquet: damaged"):
        Manifest.load(root)


def test_write_manifest_with_tables_and_paths_that_leave(tmp_path):
    root = data_set(tmp_path / "ds", shards=1)
    verify(root, processes=1)
    shard, table = Manifest.load(root).shards[0], Manifest.load(root).index(0)
    row = {"path": "shards/00000.tar", "bytes": shard.bytes, "samples": 4, "kept": 4, "sha256": shard.sha256}
    again = write_manifest(root, [row], [table])
    assert again.index(0).equals(table)
    write = dict(row, index="manifest/index/00000.parquet", index_sha256=again.shards[0].index_sha256)
    with pytest.raises(ManifestError, match="leaves the folder"):
        write_manifest(root, [write | {"path": "../elsewhere.tar"}])


def test_groups_split_on_a_repeated_extension(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [member("1.jpg", b"a"), member("1.txt", b"b"), member("1.jpg", b"c"), member("2.seg.png", b"d")],
    )
    assert [(group.key, sorted(group.members)) for group in groups(path)] == [
        ("1", ["jpg", "txt"]),
        ("1", ["jpg"]),
        ("2", ["seg.png"]),
    ]
    with pytest.raises(TarError), open(path, "r+b") as file:
        file.seek(0)
        file.write(b"\xff" * 10)
        file.flush()
        list(groups(path))


def test_phash_is_stable_under_resizing_and_tells_pictures_apart():
    smooth = cv2.GaussianBlur(RNG.integers(0, 256, (256, 256), np.uint8), (0, 0), 12)
    smooth = cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)

    def distance(a: str, b: str) -> int:
        return (int(a, 16) ^ int(b, 16)).bit_count()

    assert distance(phash(smooth), phash(cv2.resize(smooth, (100, 90)))) <= 6
    assert distance(phash(smooth), phash(smooth[::-1])) >= 16

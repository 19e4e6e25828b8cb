"""Tars as people's tools leave them: each good sample is read, or why it is not says what is there."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_pipeline.shards.manifest import INDEX_SCHEMA
from data_pipeline.shards.mirror_tars import MAX_PADDING, mirror_groups
from data_pipeline.shards.samples import MAX_TEXT_BYTES, check_tar
from data_pipeline.shards.tarwalk import TarError
from data_pipeline.shards.verify import verify


def picture(kind: str = "JPEG", seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def archive(members: list[tuple[str, bytes]], pax: dict[str, str] | None = None, **options) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), pax or {}
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(kind: bytes, name: str, linkname: str = "") -> bytes:
    """The header of an entry that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info.tobuf()


def pictures_as(extension: str) -> list[tuple[str, bytes]]:
    return [(name.replace("jpg", extension), data) for name, data in SAMPLES[::2]]


def changed(change) -> bytes:
    return archive([change(name, data) for name, data in SAMPLES])


def renamed(change) -> bytes:
    return archive([(change(name), data) for name, data in SAMPLES])


def without_end(data: bytes) -> bytes:
    whole = data.rstrip(b"\0")
    return whole + bytes(-len(whole) % 512)


SAMPLES = [(f"{n:03d}.{kind}", data) for n in range(3) for kind, data in (("jpg", picture(seed=n)), ("txt", b"caption %d" % n))]
PLAIN = archive(SAMPLES)
BLANK = {"000": "\ufeff", "001": " \u200b\n", "002": "\u200d\x00\xad"}
KEYS = ["000", "001", "002"]
READ = {
    "plain": (PLAIN, KEYS),
    "./": (renamed(lambda name: f"./{name}"), KEYS),
    "tar -P": (renamed(lambda name: f"/data/{name}"), [f"data/{key}" for key in KEYS]),
    "slashes": (renamed(lambda name: f".///./{name}"), KEYS),
    "in a folder": (renamed(lambda name: f"00000/{name}"), ["00000/000", "00000/001", "00000/002"]),
    "same names in two folders": (
        archive([(f"{folder}/{name}", data) for folder in "ab" for name, data in SAMPLES[:2]]),
        ["a/000", "b/000"],
    ),
    "upper case": (renamed(lambda name: name.replace("jpg", "JPG").replace("txt", "Txt")), KEYS),
    "jfif": (renamed(lambda name: name.replace("jpg", "jfif")), KEYS),
    "gif": (changed(lambda name, data: (name.replace("jpg", "gif"), picture("GIF")) if "jpg" in name else (name, data)), KEYS),
    "dots in the key": (renamed(lambda name: f"img.v2.{name}"), ["img.v2.000", "img.v2.001", "img.v2.002"]),
    "dots beside a plain one": (archive([*SAMPLES[:2], ("000.v2.jpg", SAMPLES[2][1]), ("000.v2.txt", b"b")]), ["000", "000.v2"]),
    "fields": (archive([("a.image.jpg", SAMPLES[0][1]), ("a.caption.txt", b"x")]), ["a"]),
    "a field and a plain text": (archive([("a.image.jpg", SAMPLES[0][1]), ("a.txt", b"x"), ("a.meta.json", b"{}")]), ["a"]),
    "a field and a plain picture": (archive([("a.jpg", SAMPLES[0][1]), ("a.caption.txt", b"x"), ("a.json", b"{}")]), ["a"]),
    "a mask beside": (archive([*SAMPLES[:2], ("000.seg.png", picture("PNG"))]), ["000"]),
    "blanks and colons": (renamed(lambda name: f"my a:{name}"), [f"my a:{key}" for key in KEYS]),
    "unicode": (renamed(lambda name: f"b\u00fc{name}"), [f"b\u00fc{key}" for key in KEYS]),
    "latin-1 names": (
        archive([(f"b\u00fc{name}", data) for name, data in SAMPLES], format=tarfile.GNU_FORMAT, encoding="latin-1"),
        [f"b\\xfc{key}" for key in KEYS],
    ),
    "line break in a name": (renamed(lambda name: f"a\n{name}"), [f"a\\n{key}" for key in KEYS]),
    "long pax": (archive([("k" * 150 + n, d) for n, d in SAMPLES], format=tarfile.PAX_FORMAT), ["k" * 150 + key for key in KEYS]),
    "long gnu": (archive([("k" * 150 + n, d) for n, d in SAMPLES], format=tarfile.GNU_FORMAT), ["k" * 150 + key for key in KEYS]),
    "pictures first": (archive(sorted(SAMPLES, key=lambda member: member[0][-3:])), KEYS),
    "a key again": (archive([*SAMPLES[:4], ("000.jpg", SAMPLES[4][1]), ("000.txt", b"c")]), ["000", "001", "000 (2)"]),
    "caption": (renamed(lambda name: name.replace("txt", "caption")), KEYS),
    "mark of byte order": (changed(lambda name, data: (name, b"\xef\xbb\xbf" + data if "txt" in name else data)), KEYS),
    "a space without width": (changed(lambda name, data: (name, b"x\xe2\x80\x8b" if "txt" in name else data)), KEYS),
    "one zero block": (without_end(PLAIN) + bytes(512), KEYS),
    "padded to 256 kB": (PLAIN + bytes(256 << 10), KEYS),
    "one tar behind another": (archive(SAMPLES[:2]) + archive(SAMPLES[2:]), KEYS),
    "macOS": (archive([m for n, d in SAMPLES for m in ((f"._{n}", b"\0\5\x16\7"), (n, d), (f"__MACOSX/{n}", b"x"))]), KEYS),
    "other files": (archive([("README", b"x"), (".DS_Store", b"x"), *SAMPLES]), KEYS),
    "folder": (special(tarfile.DIRTYPE, "00000") + PLAIN, KEYS),
    "attributes": (archive(SAMPLES, {"LIBARCHIVE.xattr.x": "AQA", "SCHILY.fflags": "archive"}, format=tarfile.PAX_FORMAT), KEYS),
    "global": (archive(SAMPLES, format=tarfile.PAX_FORMAT, pax_headers={"comment": "3b18e5"}), KEYS),
    "json of 70 kB": (archive([*SAMPLES, ("002.json", json.dumps({"exif": "x" * 70_000}).encode())]), KEYS),
    "json of 2 MB": (archive([*SAMPLES, ("002.json", json.dumps({"exif": "x" * 2_000_000}).encode())]), KEYS),
    "half a surrogate pair": (archive([*SAMPLES, ("002.json", b'{"url": "http://a.example/\\ud800.jpg"}')]), KEYS),
    "nested json": (archive([*SAMPLES, ("002.json", b"[" * 100_000)]), KEYS),
}
NAMED = {
    "two pictures with one key": archive(SAMPLES + pictures_as("png")),
    "caption only in the json (expected .txt)": archive(
        SAMPLES[::2] + [(f"{key}.json", json.dumps({"caption": "a dog"}).encode()) for key in KEYS]
    ),
    "no caption but a class (.cls)": renamed(lambda name: name.replace("txt", "cls")),
    "no caption": archive(SAMPLES[::2]),
    "no image": archive(SAMPLES[1::2]),
    "no image and no caption": renamed(lambda name: name.replace("jpg", "npy").replace("txt", "flac")),
    "dots in the name behind its key": archive(SAMPLES[1::2] + pictures_as("a.jpg") + pictures_as("b.jpg")),
    "caption is not UTF-8": changed(lambda name, data: (name, "caf\u00e9".encode("latin-1") if "txt" in name else data)),
    "empty caption": changed(lambda name, data: (name, BLANK[name[:3]].encode() if "txt" in name else data)),
    "empty picture": changed(lambda name, data: (name, b"" if "jpg" in name else data)),
    "TIFF picture (expected JPEG, PNG, WebP or GIF)": archive(SAMPLES[1::2] + [(f"{key}.jpg", picture("TIFF")) for key in KEYS]),
    ".heic picture (expected JPEG, PNG, WebP or GIF)": archive(
        SAMPLES[1::2] + [(f"{key}.heic", b"\0\0\0\x18ftypheic" + bytes(99)) for key in KEYS]
    ),
    "member too large": changed(lambda name, data: (name, b"x" * (MAX_TEXT_BYTES + 1) if "txt" in name else data)),
}
NAMED["picture or caption is a link inside the tar"] = b"".join(
    special(tarfile.LNKTYPE, f"{key}.jpg", "else.jpg") for key in KEYS
) + archive(SAMPLES[1::2])
REFUSED = {
    "without an end mark: cut off, or never closed": without_end(PLAIN),
    "cut off at byte 1100: no end mark": archive([("a.txt", b"x")])[:1100],
    "cut off: '000.jpg' should end": PLAIN[:1000],
    "something that is no tar stands at byte": PLAIN + b"junk",
    "zero bytes from byte .* an interrupted download": without_end(PLAIN) + bytes(MAX_PADDING + 512),
    "zero bytes from byte 0 on": bytes(2 * MAX_PADDING),
    "holds no samples": archive([("README", b"x")]),
    "is empty": b"",
    "is compressed with gzip": gzip.compress(PLAIN),
    "Git LFS pointer, not the tar: run git lfs pull": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git-annex pointer": b"/annex/objects/SHA256E-s123--4d7a.tar\n",
    "is a web page": b"\n<!doctype html><title>429 Too Many Requests</title>" * 40,
    "is JSON": b'{"error": "rate limit"}',
    "damaged header at byte 0": b"nothing that we know" * 100,
    "not a path inside a folder": renamed(lambda name: f"../{name}"),
    "'../000.jpg' is not a path inside a folder": renamed(lambda name: f"/../{name}"),
    "is not a regular file": special(tarfile.CHRTYPE, "000.dev") + PLAIN,
    "resizes members": archive(SAMPLES, {"size": "1"}, format=tarfile.PAX_FORMAT),
}


def written(folder: Path, data: bytes) -> Path:
    path = folder / "shard.tar"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", READ)
def test_good_samples_are_read_however_they_are_packed(tmp_path: Path, kind: str) -> None:
    data, keys = READ[kind]
    path = written(tmp_path, data)
    rows = check_tar(path, mirror=True)
    assert [(row["key"], row["reason"]) for row in rows] == [(key, None) for key in keys]
    assert len({row["uid"] for row in rows}) == len(rows)
    texts = {bytes(content) for name, content in SAMPLES if name.endswith("txt")} | {b"b", b"c", b"x", "x\u200b".encode()}
    pa.Table.from_pylist(rows, INDEX_SCHEMA)
    for row in rows:
        image = data[row["image_offset"] :][: row["image_bytes"]]
        assert data[row["text_offset"] :][: row["text_bytes"]].removeprefix(b"\xef\xbb\xbf") in texts
        assert Image.open(io.BytesIO(image)).size == (row["width"], row["height"]) == (24, 16)


@pytest.mark.parametrize("reason", NAMED)
def test_what_is_no_sample_says_what_it_is(tmp_path: Path, reason: str) -> None:
    rows = check_tar(written(tmp_path, NAMED[reason]), mirror=True)
    assert [row["reason"] for row in rows] == [reason] * 3 and not any(row["keep"] for row in rows)


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_tar_says_what_it_is(tmp_path: Path, reason: str) -> None:
    with pytest.raises(TarError, match=reason):
        check_tar(written(tmp_path, REFUSED[reason]), mirror=True)


@pytest.mark.parametrize("name", ["BZh.jpg", "{a}.jpg", "<b>.jpg", "PAR1.jpg", "PK\3.jpg"])
def test_names_that_look_like_other_files(tmp_path: Path, name: str) -> None:
    data = archive([(name, SAMPLES[0][1]), (name.replace("jpg", "txt"), b"x")])
    assert [row["keep"] for row in check_tar(written(tmp_path, data), mirror=True)] == [True]


@pytest.mark.full
def test_a_place_that_was_reserved_for_a_download_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    path.touch()
    os.truncate(path, 3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TarError, match="interrupted download"):
        list(mirror_groups(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


def test_tars_of_two_mirrors_with_one_name_share_no_pictures(tmp_path: Path) -> None:
    """Ids are of what a sample holds, or of its address where its json says one."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    other = changed(lambda name, data: (name, picture(seed=9) if name == "000.jpg" else data))
    first, second = (check_tar(written(tmp_path / name, data), mirror=True) for name, data in (("a", PLAIN), ("b", other)))
    assert [row["url"] for row in first] == [row["url"] for row in second]
    assert [a["image_id"] == b["image_id"] for a, b in zip(first, second, strict=True)] == [False, True, True]
    assert [a["uid"] == b["uid"] for a, b in zip(first, second, strict=True)] == [False, True, True]


def test_lines_are_captions_where_most_samples_have_several(tmp_path: Path) -> None:
    many = changed(lambda name, data: (name, b"one dog\ntwo dogs\r\n\n three dogs \n" if "txt" in name else data))
    few = changed(lambda name, data: (name, b"one dog\non a lawn" if name == "000.txt" else data))
    rows = check_tar(written(tmp_path, many), mirror=True)
    assert [(row["captions"], row["caption_chars"], len(row["caption_hash"].split())) for row in rows] == [(3, 10, 3)] * 3
    poem = changed(lambda name, data: (name, b"a line\n" * 65 if "txt" in name else data))
    for data in (few, poem):
        assert not any("captions" in row for row in check_tar(written(tmp_path, data), mirror=True))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("x.1.jpg x.1.txt x.2.jpg x.3.txt", {"x.1": None, "x.2": "no caption", "x.3": "no image"}),
        ("x.2.jpg x.1.txt x.1.jpg x.txt x.jpg", {"x": None, "x.2": "no caption", "x.1": None}),
        ("x.1.jpg x.1.json x.2.jpg x.2.json", dict.fromkeys(("x.1", "x.2"), "caption only in the json (expected .txt)")),
        ("x.1.jpg x.2.png", {"x.1": "no caption", "x.2": "no caption"}),
        ("x.1.txt x.2.txt", {"x.1": "no image", "x.2": "no image"}),
        ("x.jpg x.txt x.seg.png x.depth.png", {"x": None}),
    ],
)
def test_every_sample_of_a_dotted_name_is_a_row(tmp_path: Path, names: str, expected: dict[str, str | None]) -> None:
    contents = {"jpg": picture(), "png": picture("PNG"), "txt": b"a dog", "json": b'{"caption": "a dog"}'}
    data = archive([(name, contents[name.rpartition(".")[2]]) for name in names.split()])
    assert {row["key"]: row["reason"] for row in check_tar(written(tmp_path, data), mirror=True)} == expected


def test_our_own_tars_are_read_as_strictly_as_before(tmp_path: Path) -> None:
    for number, kind in enumerate(("./", "in a folder", "long pax", "one zero block", "one tar behind another", "folder")):
        (tmp_path / f"{number}/shards").mkdir(parents=True)
        written(tmp_path / f"{number}/shards", READ[kind][0])
        with pytest.raises(ValueError, match="1 of 1 tars damaged"):
            verify(tmp_path / str(number), processes=1)

"""Near duplicates and evaluation data: marked where they are planted, against slow comparisons, over kills and changes of mind."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pytest

from data_pipeline.catalogue.captions import comparable
from data_pipeline.errors import UserError
from data_pipeline.shards import mark as marking
from data_pipeline.shards.manifest import Manifest, ManifestError
from data_pipeline.shards.mark import MARKS, bands, mark, near
from data_pipeline.shards.verify import read_summary, verify
from tests.worlds.data.data_sets import parts, write_tar


def distance(a: int, b: int) -> int:
    return bin(a ^ b).count("1")


def clustered(random: np.random.Generator, count: int) -> np.ndarray:
    """Hashes of which many are a few bits from another one."""
    hashes = random.integers(0, 1 << 63, count, dtype=np.uint64)
    for number in range(count // 3, count):
        hashes[number] = hashes[random.integers(number)]
        for bit in random.integers(0, 64, random.integers(0, 9)):
            hashes[number] ^= np.uint64(1) << np.uint64(bit)
    return hashes


@pytest.mark.parametrize("bits", [0, 1, 3, 6, 15])
def test_near_finds_what_comparing_all_finds(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking, "COMPARED_AT_ONCE", 50)  # several pieces, one of them a single hash with more neighbours
    hashes = clustered(np.random.default_rng(bits), 400)
    own, others = hashes[::2], hashes[1::2]
    expected = [any(distance(int(a), int(b)) <= bits for b in others) for a in own]
    assert near(own, others, bits).tolist() == expected and 0 < sum(expected) < len(expected)
    assert not near(own, others[:0], bits).any() and len(near(own[:0], others, bits)) == 0
    assert sum(width for _, width in bands(bits)) == 64 and len(bands(bits)) == bits + 1


@pytest.mark.parametrize("bits", [0, 2, 5])
def test_duplicates_are_rows_with_an_earlier_near_one(bits: int) -> None:
    hashes = clustered(np.random.default_rng(bits + 9), 300)
    out = np.random.default_rng(1).random(300) < 0.1  # in an evaluation set: neither side
    database = duckdb.connect()
    database.execute("CREATE TABLE looked (place BIGINT, mark UTINYINT, phash UBIGINT)")
    for place in np.random.default_rng(2).permutation(300).tolist():
        database.execute("INSERT INTO looked VALUES (?, ?, ?)", [place, int(out[place]), int(hashes[place])])
    marking._find_duplicates(database, bits)
    found = [number for (number,) in database.execute("SELECT mark FROM looked ORDER BY place").fetchall()]
    earlier = [any(not out[a] and distance(int(hashes[a]), int(hashes[b])) <= bits for a in range(b)) for b in range(300)]
    assert found == [1 if out[b] else 3 if earlier[b] else 0 for b in range(300)] and 20 < sum(earlier) < 280


def picture(number: int) -> np.ndarray:
    """Smooth, and unlike the others."""
    coarse = np.random.default_rng(number).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    return cv2.resize(coarse, (120, 90), interpolation=cv2.INTER_CUBIC)


def write_folder(folder: Path, samples: list[tuple[np.ndarray, str]], quality: int, each: int = 5) -> Path:
    for shard in range(-(-len(samples) // each)):
        members = []
        for place, (image, caption) in enumerate(samples[shard * each : (shard + 1) * each]):
            number = shard * each + place
            jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            facts = {"uid": f"{number:016x}", "url": f"http://example.org/{folder.name}/{number}.jpg", "caption": caption}
            facts |= {"width": image.shape[1], "height": image.shape[0], "status": "success"}
            members += parts(f"{number:08d}", jpg=jpeg, txt=caption.encode(), json=json.dumps(facts).encode())
        write_tar(folder / "shards" / f"{shard:05d}.tar", members)
    verify(folder, processes=1)
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    """first: pictures 0 to 11, 3 again as its last but one, an undecodable one; second: 8 to 19, smaller and worse; evaluation: 5,
    10 and 15 in another quality, and 40 with a caption of picture 1's."""
    first = [(picture(n), f"picture number {n}") for n in range(12)] + [(picture(3), "the third again"), (picture(30), "x")]
    second = [(cv2.resize(picture(n), (96, 72), interpolation=cv2.INTER_AREA), f"copy of {n}") for n in range(8, 20)]
    held_out = [(picture(n), f"held out {n}") for n in (5, 10, 15)] + [(picture(40), "  Picture, NUMBER 1!! ")]
    return (
        write_folder(tmp_path / "first", first, 95),
        write_folder(tmp_path / "second", second, 60),
        write_folder(tmp_path / "evaluation", held_out, 80),
    )


def reasons(folder: Path) -> list[str | None]:
    import pyarrow.parquet as pq

    manifest = Manifest.load(folder)
    tables = [pq.read_table(shard.index_path, columns=["keep", "reason"]).to_pylist() for shard in manifest.shards]
    rows = [row for table in tables for row in table]
    assert all(row["keep"] == (row["reason"] is None) for row in rows) and manifest.kept == sum(row["keep"] for row in rows)
    return [row["reason"] for row in rows]


def test_marks_are_where_they_were_planted(folders: tuple[Path, Path, Path]) -> None:
    first, second, evaluation = folders
    tars = {path: (path.read_bytes(), path.stat().st_mtime_ns) for folder in folders for path in folder.rglob("*.tar")}
    before = Manifest.load(first).digest
    counted = mark([first, second], [evaluation], duplicate_bits=4, write=False)
    assert reasons(first) == [None] * 14 and Manifest.load(first).digest == before, "counting changes nothing"
    counts = mark([first, second], [evaluation], duplicate_bits=4)
    assert counted == counts
    held, caption, near_duplicate = MARKS
    assert reasons(first) == [
        held if n in (5, 10) else caption if n == 1 else near_duplicate if n == 12 else None for n in range(14)
    ]
    # 8, 9 and 11 are in the first folder; 10 and 15 in the evaluation set
    assert reasons(second) == [held if n in (10, 15) else near_duplicate if n in (8, 9, 11) else None for n in range(8, 20)]
    assert counts == {first: {held: 2, caption: 1, near_duplicate: 1}, second: {held: 2, near_duplicate: 3}}
    assert reasons(evaluation) == [None] * 4
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tars} == tars
    summary = read_summary(first)
    assert (summary["kept"], summary["rejected"]) == (10, {caption: 1, near_duplicate: 1, held: 2})
    assert Manifest.load(first).digest != before
    # checking again keeps the marks, marking again changes nothing, and without the reasons all comes back
    digest = Manifest.load(first).digest
    assert verify(first, processes=1)["reused"] == 3 and Manifest.load(first).digest == digest
    assert mark([first, second], [evaluation], duplicate_bits=4) == counts and Manifest.load(first).digest == digest
    assert mark([first, second], duplicate_bits=-1) == {first: {}, second: {}} and Manifest.load(first).digest == before


def test_what_verify_rejected_is_never_kept_by_marking(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    broken = write_folder(tmp_path / "broken", [(picture(n), "" if n == 51 else f"caption {n}") for n in range(50, 56)], 95)
    assert reasons(broken)[1] == "empty caption"
    assert mark([broken, folders[0]])[broken] == {} and reasons(broken) == [None, "empty caption", *[None] * 4]


def test_killed_between_index_and_manifest_it_is_refused_and_mended(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, evaluation = folders

    def killed(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(marking, "write_summary", killed)
        with pytest.raises(KeyboardInterrupt):
            mark([first, second], [evaluation])
    with pytest.raises(ManifestError, match="the manifest says .* run: python -m data_pipeline verify"):
        manifest = Manifest.load(first)
        for shard in range(len(manifest.shards)):
            manifest.index(shard)
    again = mark([first, second], [evaluation])
    assert reasons(first)[5] == MARKS[0] and again[first][MARKS[0]] == 2
    assert not (first / "manifest/.mark").exists()


def test_what_cannot_be_is_refused_and_changes_nothing(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    first, second, evaluation = folders
    copy = write_folder(tmp_path / "copy", [(picture(n), f"again {n}") for n in (1, 2)], 90)
    digests = [Manifest.load(folder).digest for folder in (first, copy)]
    for arguments, message in (
        (([],), "expected at least one"),
        (([first, first],), "given twice"),
        (([first], [first]), "given twice"),
        (([first, tmp_path / "none"],), "no such folder"),
        (([first], (), 16), "--duplicate-bits 16: expected -1 to 15"),
        (([first], (), 0, -1), "--evaluation-bits -1: expected 0 to 15"),
        (([copy], [first]), f"{copy}: nothing would be left"),
        (([first], (), 0, 0, "much"), "--memory-limit much"),
    ):
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            mark(*arguments)
    assert [Manifest.load(folder).digest for folder in (first, copy)] == digests


def test_captions_are_compared_by_their_words() -> None:
    assert comparable("  A  Dog,&amp; the \u201cCat\u201d\u2026 runs_fast ") == "a dog the cat runs fast"
    assert comparable("!!! ...") == "" and comparable("caf\u00e9 42") == "caf\u00e9 42"

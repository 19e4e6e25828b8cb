"""`--dry-run`: says what would be done and what is done already, refuses what would be refused, and changes nothing."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_pipeline.__main__ import parse
from data_pipeline.errors import UserError
from tests.worlds.data.catalogues import parquet
from tests.worlds.data.data_sets import write_data_set

ROWS = [{"url": f"http://example.com/{number}.jpg", "caption": f"a picture, the {number}th"} for number in range(5)]


def said(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert parse([*line.split(), "--dry-run"]).run() == 0
    return capsys.readouterr().out.splitlines()


def everything(folder: Path) -> dict[str, tuple[int, int] | None]:
    """What stands there; of folders not the time, which a file that was tried and taken back changes."""
    found = sorted(folder.rglob("*"))
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None for path in found}


def test_stage_by_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, options = (
        tmp_path / "ds",
        f"--source generic --metadata {parquet(tmp_path / 'rows.parquet', ROWS)} --out {tmp_path / 'ds'}",
    )
    lines = said(f"build {options} --processes 3 --threads 7 --timeout 2", capsys)
    assert lines[0].startswith("curate: 1 files of ") and lines[0].endswith(f"into {out}/canonical")
    assert lines[2:] == ["download: then, the rows that are left", "verify: then, every tar", "report: then, the funnel"]
    assert not out.exists()
    assert parse(f"curate {options}".split()).run() == 0
    before, _ = everything(out), capsys.readouterr()
    assert said(f"curate {options}", capsys) == [f"curate: {out}/canonical: already curated, 5 rows"]
    curated, first, second, *_ = said(f"build {options} --processes 3 --threads 7 --timeout 2 --shard-size 10", capsys)
    assert "already curated" in curated and first == f"download: 5 of 5 rows in 1 of 1 shards, into {out}/shards"
    assert second.startswith("  3 processes of 7 connections; at most ")
    assert everything(out) == before
    with pytest.raises(UserError, match="its rows were curated with --dedup url"):
        parse(f"curate {options} --dedup none --dry-run".split()).run()
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="run: holds a training .*; choose another folder"):
        parse(f"curate {options.replace(str(out), str(tmp_path / 'run'))} --dry-run".split()).run()
    with pytest.raises(UserError, match="--processes 0: expected at least 1"):
        parse(f"build {options} --processes 0 --dry-run".split()).run()


@pytest.mark.parametrize("source", ["generic --metadata {rows}", "wds --metadata {tars}", "folder --pictures {tars}"])
def test_a_place_where_no_folder_can_be_is_told_at_once(source: str, tmp_path: Path) -> None:
    places = {"rows": parquet(tmp_path / "rows.parquet", ROWS), "tars": write_data_set(tmp_path / "data", [2]) / "shards"}
    (tmp_path / "file").touch()
    said = r"file/ds/(canonical|shards): expected a folder, or a place for one \(Not a directory\); choose another"
    with pytest.raises(UserError, match=said):
        parse(f"build --source {source.format(**places)} --out {tmp_path / 'file' / 'ds'} --dry-run".split()).run()


def test_tars_that_are_checked_already(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data_set(tmp_path / "data", [2, 3])
    before = everything(data)
    (line,) = said(f"verify --data {data} --processes 2", capsys)
    assert line.startswith("verify: 2 tars of ") and "by 2 processes; 2 were checked before" in line and everything(data) == before
    with pytest.raises(UserError, match="no tars to verify"):
        parse(["verify", "--data", str(tmp_path), "--dry-run"]).run()


def test_marks_and_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, other, out = write_data_set(tmp_path / "data", [2, 3]), write_data_set(tmp_path / "other", [2, 3]), tmp_path / "t.json"
    before = everything(tmp_path)
    with pytest.raises(UserError, match="nothing would be left of it"):
        parse(f"mark {data} {other} --dry-run".split()).run()
    assert said(f"mark {data} --duplicate-bits -1", capsys) == [f"{data}: would mark nothing"]
    line = f"tokenizer train --data {data} --out {out} --vocab-size 300 --max-captions"
    assert said(f"{line} 4", capsys) == [f"would train 300 entries on 4 of 5 captions in {data} and write {out}"]
    with pytest.raises(UserError, match="--vocab-size 30: expected at least 259"):
        parse(f"tokenizer train --data {data} --out {out} --vocab-size 30 --dry-run".split()).run()
    assert everything(tmp_path) == before


def test_pictures_of_this_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures, out = tmp_path / "red_fox", tmp_path / "ds"
    pictures.mkdir()
    for number in range(30):
        Image.new("RGB", (40, 40), (8 * number, 9, 9)).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"a square, the {number}th")
    line = f"build --source folder --pictures {pictures} --out {out} --image-size 32 --shard-size 10"
    first = f"pack: 30 pictures with 30 captions of {pictures}, by a text beside each picture, into {out}/shards"
    assert said(line, capsys) == [first, "verify: then, every tar", "report: then, the funnel"] and not out.exists()
    assert parse(line.split()).run() == 0
    before, _ = everything(out), capsys.readouterr()
    assert said(line, capsys)[:2] == [first, "  packed already: 30 pictures, in 3 of 3 tars"] and everything(out) == before
    (pictures / "3.txt").write_text("another caption")
    (second,) = [text for text in said(line, capsys) if "packed" in text]
    (changed,) = [path for path in (out / "shards").glob("*.tar") if b"the 3th" in path.read_bytes()]
    with tarfile.open(changed) as tar:
        again = sum(name.endswith(".jpg") for name in tar.getnames())
    assert second == f"  packed already: {30 - again} pictures, in 2 of 3 tars"
    with pytest.raises(UserError, match=f"^{out}: was made with --image-size 32"):
        parse(f"{line.replace('32', '48')} --dry-run".split()).run()
    (tmp_path / "tars" / "shards").mkdir(parents=True)
    (tmp_path / "tars/shards/0.tar").touch()
    with pytest.raises(UserError, match="holds files but there is no pictures.json"):
        parse(f"{line.replace(str(out), str(tmp_path / 'tars'))} --dry-run".split()).run()

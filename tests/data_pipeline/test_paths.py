"""Names of files and folders that libraries read as something else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.duck import Duck, quote
from data_pipeline.errors import UserError
from data_pipeline.paths import PlainPaths, find, is_plain

NAMES = "cc12m [v1]|a*b|a?b|a{b,c}|a\\b|status=done|a::b|s3:x|file:|it's|50%20|a#b|$HOME|~x|x |a&b|b\u00fccher \u732b|-x".split("|")


def test_a_name_that_exists_is_no_pattern(tmp_path, monkeypatch):
    for name in ("part-0[1].parquet", "part-01.parquet", "part-1.parquet", "v/a.parquet", "cc [v]/a.parquet", "cc [v]/b.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str, **options) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find(f"{tmp_path}/{pattern}", **options)]

    assert found("part-0[1].parquet") == ["part-0[1].parquet"]
    assert found("part-[01].parquet") == ["part-1.parquet"]
    assert found("part-0[!2].parquet") == ["part-01.parquet"]
    assert found("cc [v]/*.parquet") == ["cc [v]/a.parquet", "cc [v]/b.parquet"]
    assert found("cc [v]") == ["cc [v]"] and found("cc*/?.parquet") == ["cc [v]/a.parquet", "cc [v]/b.parquet"]
    assert found("[v]/*.parquet") == ["v/a.parquet"] and found("nothing/*") == found("nothing") == []
    assert found("**/a.parquet", recursive=True) == ["cc [v]/a.parquet", "v/a.parquet"]
    (tmp_path / "[v]").mkdir()
    assert found("[v]/*.parquet") == ["v/a.parquet"], "a folder of that name that holds nothing hides nothing"
    monkeypatch.chdir(tmp_path / "cc [v]")
    assert find("*.parquet") == [Path("a.parquet"), Path("b.parquet")] and find("../v/a*") == [Path("../v/a.parquet")]


@pytest.mark.parametrize("name", NAMES)
def test_duckdb_reads_and_writes_files_of_any_name(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    with Duck(folder, "30MB", on_disk=True) as duck:
        for target in (folder / "part0.parquet", folder / "part[0].parquet", folder / "key=value.parquet"):
            written = folder / ".written.tmp"
            duck.connection.execute(f"COPY (SELECT 7 AS status) TO {quote(duck.name(written))} (FORMAT parquet)")
            written.rename(target)
            rows = duck.connection.execute(f"SELECT * FROM {duck.parquet([target], 'filename = true')}").fetchall()
            assert rows == [(7, duck.name(target))] and is_plain(duck.name(target))
        duck.connection.execute("CREATE TABLE many AS SELECT i, md5(i::VARCHAR) AS m FROM range(1000000) AS r(i)")
        assert {path.name for path in folder.iterdir()} > {"part[0].parquet", "part0.parquet"}, "what is too large lies there"
        link = Path(duck.name(folder / "part[0].parquet"))
    assert sorted(path.name for path in folder.glob("*.parquet")) == ["key=value.parquet", "part0.parquet", "part[0].parquet"]
    assert not link.exists() or link.parent == folder


def test_links_need_a_plain_place(tmp_path, monkeypatch):
    (tmp_path / "a [b]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a [b]"))
    with pytest.raises(UserError, match="TMPDIR .*a .b.: expected a name of letters"):
        PlainPaths()(tmp_path / "a [b]" / "c")
    assert PlainPaths()(tmp_path / "plain") == tmp_path / "plain", "for which nothing is made"


@pytest.mark.parametrize("name", NAMES)
def test_fsspec_takes_local_paths_as_they_are(tmp_path, name):
    """As img2dataset asks; in a process of its own, because it stays so."""
    (tmp_path / name / "shards").mkdir(parents=True)
    for number in (1, 0):
        (tmp_path / name / f"shards/{number:05d}_stats.json").touch()
    code = """if True:
        import fsspec, json, sys
        from data_pipeline.paths import read_local_paths_literally
        read_local_paths_literally(), read_local_paths_literally()
        folder = sys.argv[1]
        fs, path = fsspec.core.url_to_fs(folder + "/shards")
        with fs.open(f"{fsspec.core.url_to_fs(folder + '/new')[1]}", "wb") as file:
            file.write(b"x")
        memory, other = fsspec.core.url_to_fs("memory://a/b")
        print(json.dumps([path, fs.exists(path), fs.isdir(path), fs.glob(path + "/*.json"), memory.protocol, other]))"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True, check=True)
    path, exists, is_folder, files, protocol, other = json.loads(done.stdout)
    assert path == str(tmp_path / name / "shards") and exists and is_folder and (protocol, other) == ("memory", "/a/b")
    assert files == [f"{path}/0000{number}_stats.json" for number in (0, 1)]
    assert (tmp_path / name / "new").read_bytes() == b"x"

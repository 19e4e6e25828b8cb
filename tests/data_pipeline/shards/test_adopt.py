"""Mirrors: tars as others publish them become a data set folder, with nothing downloaded, copied or changed."""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_pipeline.build import AdoptCommand, BuildCommand
from data_pipeline.catalogue.curate import curate
from data_pipeline.errors import UserError
from data_pipeline.shards.adopt import adopt, find_tars
from data_pipeline.shards.manifest import INDEX_SCHEMA, Manifest
from data_pipeline.shards.mark import mark
from sycoca_ds.data.loader import ShardReader
from sycoca_ds.data.sources import Sources
from sycoca_ds.eval.collection import Collection
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import parts, picture, write_mirror, write_tar


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
        find_tars(str(tmp_path / "a"))
    with pytest.raises(UserError, match="have the same name"):
        find_tars(str(tmp_path / "*/mirror/*.tar"))
    adopt(str(mirror), tmp_path / "data")
    with pytest.raises(UserError, match="there already, and not"):
        adopt(str(other), tmp_path / "data")
    (tmp_path / "built/canonical").mkdir(parents=True)
    with pytest.raises(UserError, match="holds rows that were curated"):
        adopt(str(mirror), tmp_path / "built")


def hub(root: Path, blobs: bool = True) -> Path:
    """A folder as huggingface_hub leaves it: relative links into a store of blobs."""
    write_mirror(root / "blobs", tars=2)
    snapshot = root / "snapshots/abc"
    snapshot.mkdir(parents=True)
    for number, tar in enumerate(sorted((root / "blobs").iterdir())):
        (snapshot / f"train-{number}.tar").symlink_to(f"../../blobs/{tar.name}")
        if number and not blobs:
            tar.unlink()
    return snapshot


def test_links_of_a_hubs_cache_are_followed(tmp_path: Path) -> None:
    snapshot, out = hub(tmp_path / "hub"), tmp_path / "data"
    assert AdoptCommand(tars=f"{snapshot}/*.tar", out=out, processes=1).run() == 0
    assert [shard.path.name for shard in Manifest.load(out).shards] == ["train-0.tar", "train-1.tar"]
    assert not any(tar.is_symlink() for tar in (out / "shards").iterdir())


def test_a_link_that_leads_nowhere_is_named_until_it_leads_somewhere(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    snapshot, out = hub(tmp_path / "hub", blobs=False), tmp_path / "data"
    command = AdoptCommand(tars=str(snapshot), out=out, processes=1)
    for _ in range(2):
        assert command.run() == 1
        said = capsys.readouterr().err
        assert f"train-1.tar: leads to {tmp_path}/hub/blobs/cc12m-train-0001.tar, which is not there" in said
        assert "without 1 of 2 tars" in said and Manifest.load(out).kept == 4
    write_mirror(tmp_path / "again", tars=2)
    (tmp_path / "again/cc12m-train-0001.tar").rename(tmp_path / "hub/blobs/cc12m-train-0001.tar")
    assert command.run() == 0 and Manifest.load(out).kept == 7


def test_what_is_not_downloaded_ends_with_1_and_is_taken_when_it_is_there(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    mirror, out = write_mirror(tmp_path / "mirror"), tmp_path / "data"
    whole = (mirror / "cc12m-train-0001.tar").read_bytes()
    (mirror / "cc12m-train-0001.tar").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    command = BuildCommand(source="wds", metadata=str(mirror), out=out, verify_processes=1)
    for _ in range(2):
        assert command.run() == 1 and Manifest.load(out).kept == 4
        said = capsys.readouterr().err
        assert "run git lfs pull in the mirror" in said and "without 1 of 2 tars, named above: mend them in the mirror" in said
    (mirror / "new").write_bytes(whole)
    os.rename(mirror / "new", mirror / "cc12m-train-0001.tar")  # as git does: another file, not the linked one
    assert command.run() == 0 and Manifest.load(out).kept == 7
    (mirror / "new").write_bytes(whole + bytes(512))
    os.rename(mirror / "new", mirror / "cc12m-train-0001.tar")
    with pytest.raises(UserError, match="there already, and not"):  # what was verified is not exchanged
        command.run()


def test_the_same_command_again_where_the_glob_reaches_its_own_folder(tmp_path: Path) -> None:
    write_mirror(tmp_path / "m/a")
    command = AdoptCommand(tars=f"{tmp_path}/m/**/*.tar", out=tmp_path / "m/out", processes=1)
    for _ in range(2):
        assert command.run() == 0 and Manifest.load(tmp_path / "m/out").kept == 7
    assert AdoptCommand(tars=f"{tmp_path}/m/**/*.tar", out=tmp_path / "m/other", processes=1).run() == 0, "the same files twice"
    inside = AdoptCommand(tars=str(tmp_path / "m/out/shards"), out=tmp_path / "m/out", processes=1)
    assert inside.run() == 0 and Manifest.load(tmp_path / "m/out").kept == 7, "tars that lie there already"
    assert [tar.name for tar in find_tars(str(tmp_path / "m/a/cc12m-train-0001.tar"))] == ["cc12m-train-0001.tar"]


def test_options_of_curation_and_download_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror")
    given = {"min_caption": 500, "block_host": ("x.example",), "image_size": 64, "spark_master": "local"}
    command = BuildCommand(source="wds", metadata=str(mirror), out=tmp_path / "data", verify_processes=1, **given)
    with pytest.raises(UserError, match="^--min-caption, --block-host, --spark-master, --image-size: without effect") as refusal:
        command.run()
    assert "\n" not in str(refusal.value) and not (tmp_path / "data").exists()
    defaults = {"image_size": 288, "dedup": "url", "processes": 1, "min_caption": None}
    assert BuildCommand(source="wds", metadata=str(mirror), out=tmp_path / "data", verify_processes=1, **defaults).run() == 0


def build(folder: Path, *options: str, allowed_everything: bool = True) -> tuple[int, str]:
    """Status and output of the command in `folder`.

    Args:
        allowed_everything: False takes root's right to read and write what nobody may; whoever is not root has none.
    """

    def give_up_rights() -> None:
        for right in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, out of what a started program may have (PR_CAPBSET_DROP)
            ctypes.CDLL(None).prctl(24, right, 0, 0, 0)

    done = subprocess.run(
        [sys.executable, "-m", "data_pipeline", "build", "--source", "wds", "--verify-processes", "1", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=None if allowed_everything else give_up_rights,
    )
    return done.returncode, done.stdout + done.stderr


NOT_TARS = {
    "gone": ([], "nothing is there, and no name fits it as a pattern; expected a folder with *.tar, or a glob in quotes"),
    "empty": (["empty/"], "an empty folder; expected a folder with *.tar, or a glob in quotes"),
    "packed": (["packed/0.tar.gz", "packed/x.txt"], "no tars there, but compressed ones (0.tar.gz); unpack them, samples are read"),
    "rows": (["rows/README", "rows/a.parquet"], "no tars there, but a.parquet: of a catalogue of URLs `python -m data_pipeline"),
    "rows/*.parquet": (["rows/a.parquet"], "no tars there, but a.parquet: of a catalogue of URLs"),
    "deep": (["deep/a/0.tar", "deep/b/1.tar"], "no tars there, but in folders in it; give each by itself, or 'deep/*/*.tar'"),
    "others": (["others/a.txt", "others/b.txt"], "no tars there, but a.txt and 1 more; expected a folder with *.tar, or a glob"),
    "file.txt": (["file.txt"], "no tars there, but file.txt; expected a folder with *.tar, or a glob in quotes"),
}


@pytest.mark.parametrize("given", NOT_TARS)
def test_where_there_are_no_tars_it_is_said_what_there_is(given: str, tmp_path: Path) -> None:
    files, said = NOT_TARS[given]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_bytes(b"x")
    status, output = build(tmp_path, "--metadata", given, "--out", "data")
    assert (status, output.count("\n")) == (2, 1) and output.startswith(f"error: --metadata {given}: {said}"), output
    assert not (tmp_path / "data").exists()
    with pytest.raises(UserError, match=f"^--tars {re.escape(str(tmp_path / given))}: "):
        adopt(str(tmp_path / given), tmp_path / "data")


@pytest.mark.parametrize("out, why", [("file", "File exists"), ("file/data", "Not a directory")])
def test_a_place_that_takes_no_folder_is_refused(out: str, why: str, tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    (tmp_path / "file").write_text("x")
    status, output = build(tmp_path, "--metadata", "mirror", "--out", out)
    assert (status, output) == (2, f"error: {out}: expected a folder, or a place for one ({why}); choose another\n")


@pytest.mark.parametrize(
    "options, said",
    [
        (["--processes", "0"], "error: --processes 0: expected at least 1\n"),
        (["--verify-processes", "-1"], "error: --verify-processes -1: expected at least 1\n"),
        (["--imagesize", "3"], "error: Unrecognized options"),
        (
            ["--image-size", "64"],
            "error: --image-size: without effect with --source wds, whose tars are taken as they are; leave that",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_one_line_and_nothing_is_done(options: list[str], said: str, tmp_path: Path) -> None:
    write_mirror(tmp_path / "mirror")
    status, output = build(tmp_path, "--metadata", "mirror", "--out", "data", *options)
    assert (status, output.count("\n")) == (2, 1) and output.startswith(said), output
    assert not (tmp_path / "data").exists()


def test_statuses_of_a_mirror_of_which_some_or_none_can_be_used(tmp_path: Path) -> None:
    """0: all are there, also where the output lies within; 1: without those that are named; 2: there is no data set."""
    write_mirror(tmp_path / "mirror")
    for _ in range(2):
        status, output = build(tmp_path, "--metadata", "mirror", "--out", "mirror/data")
        assert status == 0 and Manifest.load(tmp_path / "mirror/data").kept == 7, output
    write_mirror(tmp_path / "cut")
    os.truncate(tmp_path / "cut/cc12m-train-0001.tar", 3000)
    status, output = build(tmp_path, "--metadata", "cut", "--out", "some")
    assert status == 1 and Manifest.load(tmp_path / "some").kept == 4
    assert output.splitlines()[-1].startswith("some: without 1 of 2 tars, named above: mend them in the mirror")
    (tmp_path / "cut/cc12m-train-0000.tar").unlink()
    status, output = build(tmp_path, "--metadata", "cut", "--out", "none")
    last = output.splitlines()[-1]
    assert status == 2 and "no sample is left to train on (1 of 1 tars damaged" in last
    assert last.startswith("error: ") and last.endswith("then mend the mirror and give the same command")


def test_what_may_not_be_read_or_written_is_named(tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror")
    (mirror / "cc12m-train-0001.tar").chmod(0)
    status, output = build(tmp_path, "--metadata", "mirror", "--out", "data", allowed_everything=False)
    assert status == 1 and Manifest.load(tmp_path / "data").kept == 4, output
    assert "cc12m-train-0001.tar: [Errno 13] Permission denied" in output and "without 1 of 2 tars" in output
    (tmp_path / "closed").mkdir(mode=0o555)
    status, output = build(tmp_path, "--metadata", "mirror", "--out", "closed", allowed_everything=False)
    assert (status, output) == (
        2,
        "error: closed: expected a folder that this user may write; choose another, or ask for the right\n",
    )
    mirror.chmod(0)
    try:
        status, output = build(tmp_path, "--metadata", "mirror", "--out", "more", allowed_everything=False)
    finally:
        mirror.chmod(0o755)
    assert (status, output.count("\n")) == (2, 1) and "--metadata mirror: cannot be listed (Permission denied)" in output, output


def test_a_file_system_without_links_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: object, **more: object) -> None:
        raise OSError(1, "Operation not permitted")

    mirror, out = write_mirror(tmp_path / "mirror"), tmp_path / "data"
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(os, "symlink", refused)
    with pytest.raises(UserError, match="neither a hard nor a symbolic link .*not permitted.*put the tars into .*/data/shards"):
        adopt(str(mirror), out)
    for tar in mirror.iterdir():
        tar.rename(out / "shards" / tar.name)
    assert AdoptCommand(tars=str(out / "shards"), out=out, processes=1).run() == 0 and Manifest.load(out).kept == 7


def test_a_folder_that_was_adopted_before_lines_were_captions_loads_as_it_did(tmp_path: Path) -> None:
    """Its indices have no column for them; the whole text is one caption."""
    mirror, out = write_mirror(tmp_path / "mirror", tars=1), tmp_path / "data"
    AdoptCommand(tars=str(mirror), out=out, processes=1).run()
    index = Manifest.load(out).shards[0].index_path
    assert "captions" not in pq.read_schema(index).names
    assert Manifest.load(out).index(0, ["captions", "key"]).to_pylist()[0] == {"captions": 1, "key": "000000000"}
    assert Manifest.load(out).index(0).column_names == INDEX_SCHEMA.names


def write_lines(folder: Path, captions: int = 5, pictures: int = 6, more: list = ()) -> Path:
    """As CLIP_benchmark writes COCO and Flickr: sNNNNNNN.jpg, and a .txt with a caption a line."""
    texts = ["\n".join(f"caption {place} of picture {number}" for place in range(captions)) + "\n" for number in range(pictures)]
    samples = [parts(f"s{number:07d}", jpg=picture(50, 40), txt=text.encode()) for number, text in enumerate(texts)]
    write_tar(folder / "0.tar", [*(member for sample in samples for member in sample), *more])
    return folder


def test_captions_a_line_each_are_all_evaluated_and_trained_on_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "data"
    for _ in range(2):  # also of what was checked before
        assert AdoptCommand(tars=str(write_lines(tmp_path / "m") if not out.exists() else tmp_path / "m"), out=out).run() == 0
        said = "6 pictures have several captions, a line each: evaluation takes all of them, training one an epoch, in turn"
        assert said in capsys.readouterr().err
    collection = Collection(out, 32)
    assert len(collection) == 6 and len(collection.captions) == 30
    assert collection.captions_of_image[4] == [f"caption {place} of picture 4" for place in range(5)]
    assert collection.image_of_text_T.tolist() == [number for number in range(6) for _ in range(5)]
    reader = ShardReader(Sources.load([out]))
    assert [reader.read(0, 2, epoch)[1] for epoch in range(7)] == [f"caption {epoch % 5} of picture 2" for epoch in range(7)]


def test_every_line_of_an_evaluation_set_is_looked_for_in_training(tmp_path: Path) -> None:
    training, evaluation = tmp_path / "training", tmp_path / "evaluation"
    write_mirror(tmp_path / "mirror")
    AdoptCommand(tars=str(tmp_path / "mirror"), out=training, processes=1).run()
    more = parts("t", jpg=picture(50, 40), txt=b"something else\nCaption 2, of 1!\n")
    lines = write_lines(tmp_path / "m", more=more)
    AdoptCommand(tars=str(lines), out=evaluation, processes=1).run()
    counts = mark([training], [evaluation], duplicate_bits=-1, evaluation_bits=0)
    assert counts == {training: {"caption of an evaluation set": 1}}
    assert Manifest.load(training).kept == 6


@pytest.mark.parametrize("name", ["a\\b.tar", "caf\u00e9.tar", "\u00e9" * 98 + ".tar"])
def test_odd_names_of_tars_are_taken(name: str, tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror", tars=1)
    (mirror / "cc12m-train-0000.tar").rename(mirror / name)
    assert AdoptCommand(tars=str(mirror), out=tmp_path / "data", processes=1).run() == 0
    manifest = Manifest.load(tmp_path / "data")
    assert [shard.path.name for shard in manifest.shards] == [name] and manifest.kept == 4


@pytest.mark.parametrize("name", [b"caf\xe9.tar", b"a" * 197 + b".tar", b"\xc3\xa9" * 99 + b".tar"])
def test_names_of_tars_that_fit_into_no_record_are_refused(name: bytes, tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / "mirror", tars=1)
    (mirror / "cc12m-train-0000.tar").rename(mirror / os.fsdecode(name))
    said = f"{os.fsdecode(name)!r}: expected a name in UTF-8 of 200 bytes at most"
    with pytest.raises(UserError, match=re.escape(said)):
        adopt(str(mirror), tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["cc12m [v1]", "status=done", "a*b?c", "a::b"])
def test_a_mirrors_folder_may_have_any_name(name: str, tmp_path: Path) -> None:
    mirror = write_mirror(tmp_path / name)
    write_mirror(tmp_path / "a1bxc")  # what a pattern would take it for
    wanted = ["cc12m-train-0000.tar", "cc12m-train-0001.tar"]
    for pattern in (mirror, mirror / "*.tar", mirror / "**/*.tar"):
        assert [(tar.parent, tar.name) for tar in find_tars(str(pattern))] == [(mirror, tar) for tar in wanted]
    assert AdoptCommand(tars=f"{mirror}/*.tar", out=tmp_path / "data" / name, processes=1).run() == 0
    assert Manifest.load(tmp_path / "data" / name).kept == 7

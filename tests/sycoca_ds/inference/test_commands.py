"""`caption` and `search`: what they print, what is looked at again, what happens to pictures that cannot be read."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import tyro
from PIL import Image

import sycoca_ds
from data_pipeline.command_line import parse_command
from data_pipeline.errors import UserError, run_command
from data_pipeline.files import sha256_file
from data_pipeline.local.captions import read_captions
from data_pipeline.pictures import decode_apart
from sycoca_ds.eval.collection import Collection
from sycoca_ds.inference import index as indices
from sycoca_ds.inference.__main__ import main as inference_main
from sycoca_ds.inference.caption import CaptionCommand, field
from sycoca_ds.inference.model import Model
from sycoca_ds.inference.search import SearchCommand
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run

PICTURES = 6


def run(kind: type, *words: object) -> int:
    return parse_command(Annotated[kind, tyro.conf.OmitArgPrefixes], list(map(str, words)), "test").run()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and pictures of which two lie in a folder of the folder."""
    folder = tmp_path_factory.mktemp("commands")
    make_run(folder / "run")
    collection = Collection(make_data(folder / "data", images=PICTURES), SMALL.image.image_size)
    (folder / "photos" / "more").mkdir(parents=True)
    for number in range(PICTURES):
        Image.fromarray(collection.pixels(number)).save(folder / "photos" / ("more" if number > 3 else "") / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(world: Path) -> Model:
    return sycoca_ds.load(world / "run", device="cpu")


@pytest.fixture
def photos(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world / "photos", tmp_path / "photos"))


ASKED = ("--device", "cpu", "--batch-size", "2")


def test_a_line_for_each_picture_and_a_name_for_each_that_cannot_be_read(
    world: Path, photos: Path, model: Model, capsys: pytest.CaptureFixture
) -> None:
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xffnothing")
    words = (photos / "bad.jpg", photos / "more", photos / "1.png", "--checkpoint", world / "run", *ASKED)
    assert run(CaptionCommand, *words) == 1
    files = [str(photos / name) for name in ("more/4.png", "more/5.png", "1.png")]
    expected = model.caption(files)
    said = capsys.readouterr()
    assert said.out.rstrip("\n").split("\n") == [f"{file}\t{field(caption)}" for file, caption in zip(files, expected, strict=True)]
    assert f"{photos / 'bad.jpg'}: no picture that can be read (truncated image)" in said.err

    assert run(CaptionCommand, *words[1:], "--json", "--beams", "2") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines == [{"image": f, "caption": c} for f, c in zip(files, model.caption(files, beams=2), strict=True)]

    assert run(CaptionCommand, *words[1:], "--dry-run") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("caption: 3 pictures, 2 at once, by <sycoca") and str(world / "run") in line


def test_a_folder_that_cannot_be_read_is_named(
    world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its two pictures are missing, which nobody would see among thousands."""
    scandir = os.scandir

    def refused(path: str) -> object:
        if os.fspath(path) == str(photos / "more"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    said = f"{photos / 'more'}: a folder that cannot be read (Permission denied)"
    assert run(CaptionCommand, photos, "--checkpoint", world / "run", *ASKED) == 1
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 4 and f"{said}: passed over" in out.err
    assert search(world, photos, tmp_path / "cache", "a scene") == 0
    out = capsys.readouterr()
    assert len(out.out.splitlines()) == 4 and f"{said}: passed over" in out.err
    with pytest.raises(UserError, match=re.escape(f"{said}; ask for the right, or move it away")):
        read_captions(photos, None, None, None)


def test_what_cannot_be_done_is_said_before_a_model_is_opened(photos: Path, tmp_path: Path) -> None:
    there = ("--checkpoint", "nowhere")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.png").mkdir()
    for kind, words, said in (
        (CaptionCommand, there, "expected at least one picture"),
        (CaptionCommand, (photos / "9.png", *there), "9.png: no such file"),
        (CaptionCommand, (tmp_path / "empty", *there), "no file in it is called like a picture"),
        (CaptionCommand, (photos, "--beams", 0, *there), "--beams 0: expected at least 1"),
        (CaptionCommand, (photos, "--beams", 101, *there), "--beams 101: expected at most 100"),
        (SearchCommand, (photos, "x", "--like", photos / "1.png", *there), "a text or --like PICTURE, not both"),
        (SearchCommand, (photos, "x", "--sheet", "a.gif", *there), r"--sheet a.gif: expected a name that ends with .png or .html"),
        (SearchCommand, (tmp_path / "gone", "x", *there), "gone: no such folder"),
        (
            SearchCommand,
            (photos / "1.png", "x", *there),
            "1.png is a file: expected the folder of pictures to search in; .* --like",
        ),
        (SearchCommand, (photos, "a", "red", "circle", *there), r"3 words behind \S+: expected one text; quote it: 'a red circle'"),
        (SearchCommand, (photos, "", *there), "the text is empty"),
        (SearchCommand, (photos, " ", *there), "the text is empty"),
        (SearchCommand, (photos, "x", "--top", 0, *there), "--top 0"),
        (SearchCommand, (photos, "x", "--cache", "/dev/null/x", *there), "--cache /dev/null/x: no file can be written there"),
        (SearchCommand, (photos, "x", "--cache", photos / "0.png", *there), r"0.png: no file can be written there"),
        (SearchCommand, (photos, "x", "--sheet", "/proc/x.png", *there), "--sheet /proc/x.png: no file can be written there"),
        (SearchCommand, (photos, "x", "--sheet", tmp_path / "folder.png", *there), r"folder.png: .* \(Is a directory\)"),
    ):
        with pytest.raises(UserError, match=said):
            run(kind, *words)


def search(world: Path, photos: Path, cache: Path, *words: object) -> int:
    return run(SearchCommand, photos, *words, "--checkpoint", world / "run", "--cache", cache, *ASKED)


def found(out: str, photos: Path) -> list[tuple[str, float]]:
    rows = [line.split("\t") for line in out.splitlines()]
    return [(os.path.relpath(path, photos), float(cosine)) for cosine, path in rows]


def test_a_search_lists_the_nearest_pictures_and_looks_at_each_once(
    world: Path, photos: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    names = ["0.png", "1.png", "2.png", "3.png", "more/4.png", "more/5.png"]
    cosines = model.similarity([photos / name for name in names], "a red circle")[:, 0]
    expected = [names[place] for place in np.argsort(-cosines)]
    assert search(world, photos, tmp_path / "cache", "--dry-run") == 0 and not (tmp_path / "cache").exists()
    said = capsys.readouterr().out
    assert (
        said.startswith(f"search: {photos}: 6 pictures, 6 new; 6 pictures to look at, 2 at once, by <sycoca") and str(world) in said
    )
    assert search(world, photos, tmp_path / "cache", "a red circle", "--top", 4) == 0
    said = capsys.readouterr()
    assert [name for name, _ in found(said.out, photos)] == expected[:4] and "6 new, 6 looked at" in said.err
    assert np.allclose([cosine for _, cosine in found(said.out, photos)], np.sort(cosines)[::-1][:4], atol=1e-4)

    assert search(world, photos, tmp_path / "cache", "--like", photos / "3.png", "--json") == 0
    said = capsys.readouterr()
    first = json.loads(said.out.splitlines()[0])
    assert first["image"] == str(photos / "3.png") and first["cosine"] == pytest.approx(1, abs=1e-5)
    assert "none changed, 0 looked at" in said.err and len(said.out.splitlines()) == 6

    assert search(world, photos, tmp_path / "cache", "a red circle", "--dry-run") == 0
    assert "6 pictures, none changed; 0 pictures to look at" in capsys.readouterr().out

    # changed, new, removed, renamed, touched, unreadable
    shutil.copyfile(photos / "0.png", photos / "1.png")
    Image.new("RGB", (40, 40), "red").save(photos / "new.png")
    (photos / "2.png").unlink()
    (photos / "more/4.png").rename(photos / "renamed.png")
    os.utime(photos / "3.png")
    (photos / "bad.webp").write_bytes(b"RIFF")
    assert search(world, photos, tmp_path / "cache", "a red circle") == 0
    said = capsys.readouterr()
    assert "6 pictures, 2 new, 3 moved, 1 removed, 2 looked at" in said.err and "bad.webp: no picture that can be read" in said.err
    now = {name: cosine for name, cosine in found(said.out, photos)}
    assert now.keys() == {"0.png", "1.png", "3.png", "new.png", "renamed.png", "more/5.png"} and now["0.png"] == now["1.png"]
    assert now["renamed.png"] == pytest.approx(cosines[4], abs=1e-4)
    (photos / "0.png").write_bytes((photos / "new.png").read_bytes() + b" ")
    assert search(world, photos, tmp_path / "cache") == 0
    said = capsys.readouterr()
    assert "1 changed, 1 looked at" in said.err and said.out == ""


def test_copies_are_looked_at_once_and_a_renamed_picture_is_not_removed(
    photos: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("copy.png", "more/copy.png"):
        shutil.copyfile(photos / "0.png", photos / name)
    shown = []
    encode = Model.encode_image
    monkeypatch.setattr(Model, "encode_image", lambda self, images, size: shown.append(len(images)) or encode(self, images, size))
    first = indices.update(model, photos, tmp_path / "cache", 4)
    assert (first.counts.new, first.counts.looked_at, shown) == (PICTURES + 2, PICTURES, [4, 2])
    vectors = dict(zip(first.names, first.vectors, strict=True))
    assert np.array_equal(vectors["copy.png"], vectors["0.png"]) and np.array_equal(vectors["more/copy.png"], vectors["0.png"])
    (photos / "1.png").rename(photos / "renamed.png")
    (photos / "copy.png").unlink()
    counts = indices.update(model, photos, tmp_path / "cache", 4).counts
    assert (counts.moved, counts.removed, counts.new, counts.looked_at) == (1, 1, 0, 0)


def test_other_weights_are_another_index_and_a_damaged_one_is_made_again(
    world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cache = tmp_path / "cache"
    make_run(tmp_path / "other", seed=9)
    search(world, photos, cache, "a scene")
    assert run(SearchCommand, photos, "a scene", "--checkpoint", tmp_path / "other", "--cache", cache, *ASKED) == 0
    assert "6 looked at" in capsys.readouterr().err.splitlines()[-1]
    files = sorted(cache.glob("*/*.npz"))
    assert len(files) == 2
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    search(world, photos, cache, "a scene")
    assert "is damaged" in (said := capsys.readouterr().err) and "6 looked at" in said


def test_an_interrupted_index_keeps_what_it_had(world: Path, photos: Path, model: Model, tmp_path: Path) -> None:
    class Interrupted(Model):
        def encode_image(self, images, batch_size=64):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            return super().encode_image(images, batch_size)

    broken = Interrupted(model.loaded, model.device, model.precision)
    broken.left = 2
    with pytest.raises(KeyboardInterrupt):
        indices.update(broken, photos, tmp_path / "cache", 2)
    done = indices.update(model, photos, tmp_path / "cache", 2)
    assert done.counts.looked_at == 2 and done.counts.same == 4 and len(done.names) == 6


@pytest.mark.parametrize("cache, kept", [("off", False), ("cache", True)])
def test_what_an_interrupt_keeps_of_a_search_is_said(
    cache: str,
    kept: bool,
    world: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(indices, "best", interrupted)
    words = [str(photos), "a scene", "--checkpoint", str(world / "run"), "--device", "cpu"]
    words += ["--cache", cache if cache == "off" else str(tmp_path / cache)]
    monkeypatch.setattr(sys, "argv", ["sycoca search", "search", *words])
    assert run_command(inference_main) == 130
    assert ("kept: the vectors of the pictures that were looked at" in capsys.readouterr().err) == kept


def test_only_what_bytes_prove_is_remembered_of_a_picture_that_cannot_be_read(
    photos: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails while a file is hashed, one that is gone when it is read, a decoder that is not given the time."""
    names = ("0.png", "1.png", "slow.tif")
    Image.effect_noise((3000, 3000), 50).convert("RGB").save(photos / "slow.tif", compression="tiff_lzw")  # a tenth of a second
    (photos / "cut.png").write_bytes((photos / "3.png").read_bytes()[:-20])
    facts = (photos / "1.png").stat()

    def hashed(path: Path) -> str:
        if path.name == "0.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        digest = sha256_file(path)
        if path.name == "1.png":
            path.rename(tmp_path / "away")
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(indices, "sha256_file", hashed)
        patch.setattr(decode_apart, "SECONDS", 0.0)
        first = indices.update(model, photos, tmp_path / "cache", 2)
    (tmp_path / "away").rename(photos / "1.png")
    assert (photos / "1.png").stat().st_mtime_ns == facts.st_mtime_ns
    why = ("Input/output error", "No such file or directory", "decoder took too long", "truncated image")
    assert all(said in first.problems[name] for name, said in zip((*names, "cut.png"), why, strict=True))
    again = indices.update(model, photos, tmp_path / "cache", 2)
    assert list(again.problems) == ["cut.png"] and (again.counts.looked_at, again.counts.same) == (3, 5)
    assert np.allclose(again.vectors, model.encode_image([photos / name for name in again.names]), atol=2e-6)
    once_more = indices.update(model, photos, tmp_path / "cache", 2)
    assert list(once_more.problems) == ["cut.png"] and (once_more.counts.looked_at, once_more.counts.same) == (0, 8)


def test_contact_sheets_hold_the_pictures(world: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "0.png").rename(photos / "<b>&.png")
    for name in ("sheet.png", "sheet.html"):
        assert search(world, photos, tmp_path / "cache", "<i>text", "--top", 3, "--sheet", tmp_path / name) == 0
    assert Image.open(tmp_path / "sheet.png").size[0] > 3 * 48
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "&lt;i&gt;text" in page and "<i>text" not in page and "<b>&" not in page


def test_a_picture_that_was_damaged_since_is_crossed_out_on_the_sheet(
    world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    search(world, photos, tmp_path / "cache", "a scene")
    expected, facts = capsys.readouterr().out, (photos / "1.png").stat()
    (photos / "1.png").write_bytes(b"x" * facts.st_size)
    os.utime(photos / "1.png", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    for name in ("sheet.png", "sheet.html"):
        assert search(world, photos, tmp_path / "cache", "a scene", "--sheet", tmp_path / name) == 0
        said = capsys.readouterr()
        assert said.out == expected and f"{photos / '1.png'}: no picture that can be read any more (not an image)" in said.err
    assert Image.open(tmp_path / "sheet.png").size[0] > 3 * 224
    assert (tmp_path / "sheet.html").read_text().count("data:image/jpeg;base64,") == PICTURES


def test_results_come_where_vectors_cannot_be_kept(
    world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that is none, and a disk that is full when all is done."""
    search(world, photos, tmp_path / "cache", "a scene")
    expected = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.delenv("XDG_CACHE_HOME", raising=False)
        patch.setenv("HOME", "/dev/null")
        assert run(SearchCommand, photos, "a scene", "--checkpoint", world / "run", *ASKED) == 0
    said = capsys.readouterr()
    assert said.out == expected and "damaged" not in said.err
    assert "/dev/null/.cache/sycoca_ds/search: no file can be written there (Not a directory)" in said.err

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(indices.np, "savez", full)
    assert search(world, photos, tmp_path / "other", "a scene") == 0
    said = capsys.readouterr()
    assert said.out == expected and "cannot be written (No space left on device): vectors are not kept" in said.err


def test_names_that_are_not_utf_8_and_names_with_tabs_are_a_line_each(
    world: Path, photos: Path, model: Model, tmp_path: Path, capfdbinary: pytest.CaptureFixture
) -> None:
    names = [b"1\\2.png", b"caf\xe9.png", b"new\nline.png", b"r\xc3\xa9d.png", b"tab\t\x1b.png"]
    told = [b"1\\\\2.png", b"caf\xe9.png", b"new\\nline.png", b"r\xc3\xa9d.png", b"tab\\t\\x1b.png"]
    folder = tmp_path / "named"
    folder.mkdir()
    for number, name in enumerate(names):
        shutil.copyfile(photos / ("more" if number > 3 else "") / f"{number}.png", os.fsencode(folder) + b"/" + name)
    captions = model.caption([folder / os.fsdecode(name) for name in names])
    assert run(CaptionCommand, folder, "--checkpoint", world / "run", *ASKED) == 0
    lines = [line.split(b"\t") for line in capfdbinary.readouterr().out.rstrip(b"\n").split(b"\n")]
    assert lines == [[os.fsencode(folder) + b"/" + name, field(text).encode()] for name, text in zip(told, captions, strict=True)]

    assert search(world, folder, tmp_path / "cache", "a scene", "--sheet", tmp_path / "sheet.png") == 0
    assert search(world, folder, tmp_path / "cache", "a scene", "--sheet", tmp_path / "sheet.html") == 0
    lines = [line.split(b"\t") for line in capfdbinary.readouterr().out.rstrip(b"\n").split(b"\n")]
    assert sorted(os.path.basename(path) for _, path in lines) == sorted(2 * told)
    assert search(world, folder, tmp_path / "cache", "a scene", "--json") == 0
    found = [json.loads(line)["image"] for line in capfdbinary.readouterr().out.splitlines()]
    assert sorted(map(os.fsencode, found)) == [os.fsencode(folder) + b"/" + name for name in names]


def test_a_text_that_is_too_long_is_told(world: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert search(world, photos, tmp_path / "cache", "red " * 60) == 0
    assert "NOTE: 1 of 1 texts are longer than this model's 40 tokens" in capsys.readouterr().err


def test_help_comes_without_torch() -> None:
    code = (
        "import sys, sycoca_ds\nfrom sycoca_ds.inference.__main__ import main\n"
        "try:\n    sys.argv[1:] = ['search', '--help']\n    main()\n"
        "finally:\n    assert not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--sheet" in done.stdout and not done.stderr

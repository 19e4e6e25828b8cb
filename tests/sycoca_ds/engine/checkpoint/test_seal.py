"""The seal of a checkpoint: no flipped bit, no strange content, no copy of another step is taken for a whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_file
from sycoca_ds.engine.checkpoint import seal
from sycoca_ds.engine.checkpoint.seal import (
    STATE_FILE,
    damage,
    newest_whole,
    read_state,
    remove_unsealed,
    sealed,
    step_folder,
    write_seal,
)


def checkpoint(root: Path, step: int) -> Path:
    folder = step_folder(root, step)
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * step)
    files = {"weights": {"bytes": 256 * step, "sha256": sha256_file(folder / "weights")}}
    write_seal(folder, {"step": step, "extra": {"history": [0.1, 1e-30]}, "files": files})
    return folder


def test_every_flipped_bit_of_a_seal_is_found(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    path, state = folder / STATE_FILE, read_state(folder)
    content = path.read_bytes()
    assert state["extra"]["history"] == [0.1, 1e-30]
    unnoticed = 0
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                assert read_state(folder) == state
                unnoticed += 1  # one kind of blank became another
            except UserError as error:
                assert str(path) in str(error)
    assert unnoticed < 0.05 * 8 * len(content)


@pytest.mark.parametrize(
    "content", ["", "[]", "null", "7", '"state"', "{}", '{"files": null}', '{"format": 2}', "[" * 100_000, "\xff"]
)
def test_a_seal_that_is_none_is_named_and_an_older_checkpoint_taken(content: str, tmp_path: Path) -> None:
    older, newer = checkpoint(tmp_path, 4), checkpoint(tmp_path, 6)
    (newer / STATE_FILE).write_bytes(content.encode("latin-1"))
    found, problems = newest_whole(tmp_path)
    assert found == older and len(problems) == 1 and str(newer / STATE_FILE) in problems[0]
    shutil.rmtree(older)
    with pytest.raises(UserError, match=r"every checkpoint in .*: restore one$"):
        newest_whole(tmp_path)
    with pytest.raises(UserError, match=r": restore one, or start afresh$"):
        newest_whole(tmp_path, otherwise=", or start afresh")


@pytest.mark.parametrize("sealed_by_it", [False, True])
@pytest.mark.parametrize(
    "number, said",
    [(1, "format 1, this version reads 2 to 3; go on with the version that saved it, or export"), (4, "by a newer version")],
)
def test_a_seal_of_another_format_says_so(number: int, said: str, sealed_by_it: bool, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 4)
    if sealed_by_it:
        write_seal(folder, {"format": number, "step": 4, "files": {}})
    else:
        (folder / STATE_FILE).write_text(json.dumps({"format": number, "step": 4, "files": {}}))
    assert f"{folder / STATE_FILE}: format {number}" in damage(folder) and said in damage(folder)


def test_the_step_is_that_of_the_folder(tmp_path: Path) -> None:
    shutil.copytree(checkpoint(tmp_path, 4), tmp_path / "step_00000006")
    assert "is of step 4, not of its folder's" in damage(tmp_path / "step_00000006")
    shutil.copytree(tmp_path / "step_00000004", tmp_path / "best")
    assert damage(tmp_path / "best") is None and sealed(tmp_path)[1:] == [tmp_path / "step_00000004"]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_ranks_that_share_the_files_find_what_one_finds(parts: int, tmp_path: Path) -> None:
    folder = step_folder(tmp_path, 1)
    folder.mkdir()
    for number in range(7):
        (folder / f"file{number}").write_bytes(b"x" * number)
    files = {f"file{n}": {"bytes": n, "sha256": sha256_file(folder / f"file{n}")} for n in range(7)}
    write_seal(folder, {"step": 1, "files": files})
    assert [damage(folder, part, parts) for part in range(parts)] == [None] * parts
    for number in range(1, 7):
        (folder / f"file{number}").write_bytes(b"x" * (number - 1) + b"y")
        found = [damage(folder, part, parts) for part in range(parts)]
        assert [text is not None for text in found] == [part == number % parts for part in range(parts)]
        assert f"file{number} is damaged" in found[number % parts]
        (folder / f"file{number}").write_bytes(b"x" * number)
    (folder / "file3").unlink()
    assert f"{folder / 'file3'} is missing" in [damage(folder, part, parts) for part in range(parts)]


def test_what_interrupted_saves_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 4)
    for name in ("step_00000006", "step_12345678", "step_x", "mine"):
        (tmp_path / name / "shard").mkdir(parents=True)
    assert remove_unsealed(tmp_path) == [tmp_path / "step_00000006", tmp_path / "step_12345678"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "step_00000004", "step_x"] and damage(whole) is None


@pytest.mark.parametrize("number", [2, 3])
def test_a_large_file_is_sealed_by_blocks_and_was_as_one(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal, "BLOCK", 100)
    folder = step_folder(tmp_path, 1)
    folder.mkdir()
    whole = bytes(range(250))
    (folder / "weights").write_bytes(whole)
    facts = seal.digests(folder / "weights", whole=number == 2)
    assert len(facts.get("blocks", [])) == (3 if number == 3 else 0) and facts["bytes"] == 250
    write_seal(folder, {"format": number, "step": 1, "files": {"weights": facts}})
    assert damage(folder) is None
    for place in (0, 99, 100, 249):
        (folder / "weights").write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
        assert "weights is damaged" in damage(folder)

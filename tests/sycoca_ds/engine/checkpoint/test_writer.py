"""The processes that write a checkpoint beside the training: real ones, over files in memory."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

from sycoca_ds.engine.checkpoint.retention import Retention
from sycoca_ds.engine.checkpoint.saving import Writing
from sycoca_ds.engine.checkpoint.seal import BLOCK, STATE_FILE, damage, read_state, sealed, step_folder
from sycoca_ds.engine.checkpoint.writer import Job
from tests.worlds.processes.watching import wait_until


def begin(checkpoints: Path, step: int, files: dict[str, bytes], rank: int = 0, ranks: int = 1, keep: int = 3) -> Writing:
    folder, handles = step_folder(checkpoints, step), []
    folder.mkdir(parents=True, exist_ok=True)
    for data in files.values():
        handles.append(os.memfd_create("test"))
        os.write(handles[-1], data + b"left from a longer save before")
        os.lseek(handles[-1], 0, os.SEEK_SET)
    state = {"step": step, "samples": 12} if rank == 0 else None
    job = Job(str(folder), list(files), [len(data) for data in files.values()], rank, ranks, state, Retention(keep))
    writing = Writing(job, handles, step)
    for handle in handles:
        os.close(handle)  # the writer has them open
    return writing


def some_bytes(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def test_what_ranks_wrote_is_sealed_with_its_hashes(tmp_path: Path) -> None:
    files = [{"a.pt": some_bytes(2 * BLOCK + 17, 1), "empty": b"", "in/folder.pt": b"x"}, {"b.pt": some_bytes(1000, 2)}]
    first = begin(tmp_path, 4, files[0], ranks=2)
    assert wait_until(lambda: (step_folder(tmp_path, 4) / ".written_by_rank_00000.json").exists(), 20)
    assert not sealed(tmp_path) and not first.ended(), "the second rank has not written yet"
    second = begin(tmp_path, 4, files[1], rank=1, ranks=2)
    assert second.result()["error"] == "" and first.result()["error"] == ""
    folder = step_folder(tmp_path, 4)
    expected = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for part in files for name, data in part.items()
    }
    blocks = [files[0]["a.pt"][at : at + BLOCK] for at in (0, BLOCK, 2 * BLOCK)]  # a large file has a hash a block
    expected["a.pt"] = {"bytes": 2 * BLOCK + 17, "blocks": [hashlib.sha256(block).hexdigest() for block in blocks]}
    assert read_state(folder)["files"] == expected and read_state(folder)["samples"] == 12 and damage(folder) is None
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == {*expected, STATE_FILE}
    for part in files:
        for name, data in part.items():
            assert (folder / name).read_bytes() == data


def test_a_rank_that_gives_less_than_it_said_is_an_error(tmp_path: Path) -> None:
    """Its memory or its pipe ends before the file does."""
    folder, (reading, writing) = step_folder(tmp_path, 4), os.pipe()
    folder.mkdir(parents=True)
    written = Writing(Job(str(folder), ["a.pt", "b.pt"], [3, 9], 0, 1, {"step": 4}), [reading, reading], 4)
    os.close(reading)
    os.write(writing, b"123456")
    os.close(writing)
    assert written.result()["error"] == f"{folder / 'b.pt'}: the rank gave 3 of 9 bytes" and not list(tmp_path.iterdir())


def test_the_writer_of_rank_0_deletes_what_is_old(tmp_path: Path) -> None:
    for step in range(1, 5):
        assert begin(tmp_path, step, {"a": b"1"}, keep=2).result()["error"] == ""
    assert [folder.name for folder in sealed(tmp_path)] == ["step_00000004", "step_00000003"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_stays_where_an_older_one_cannot_be_deleted(tmp_path: Path) -> None:
    (step_folder(tmp_path, 1) / STATE_FILE).mkdir(parents=True)
    assert begin(tmp_path, 2, {"a": b"1"}, keep=1).result()["error"] == ""
    assert damage(step_folder(tmp_path, 2)) is None


def test_a_full_disk_of_one_rank_costs_the_save_and_gives_its_room_back(tmp_path: Path) -> None:
    begin(tmp_path, 2, {"a": b"1"}).result()
    folder = step_folder(tmp_path, 4)
    folder.mkdir()
    (folder / "b.pt").symlink_to("/dev/full")
    first, second = begin(tmp_path, 4, {"a.pt": b"x"}, ranks=2), begin(tmp_path, 4, {"b.pt": b"y" * 5000}, rank=1, ranks=2)
    assert "No space left" in second.result()["error"]
    assert "rank 1: " in (said := first.result()["error"]) and "No space left" in said
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000002"]


def test_when_the_rank_is_gone_nothing_is_sealed(tmp_path: Path) -> None:
    """Its end of the pipe closes, as it does with kill -9."""
    writing = begin(tmp_path, 4, {"a.pt": b"x"}, ranks=2)  # waits for a second rank that never writes
    assert wait_until(lambda: (step_folder(tmp_path, 4) / ".written_by_rank_00000.json").exists(), 20)
    writing.give_up()
    begin(tmp_path, 4, {"b.pt": b"y"}, rank=1, ranks=2).result()
    time.sleep(0.3)
    assert not sealed(tmp_path)


def test_stop_signals_are_not_for_the_writer(tmp_path: Path) -> None:
    writing = begin(tmp_path, 4, {"a.pt": b"x"}, ranks=2)
    assert wait_until(lambda: (step_folder(tmp_path, 4) / ".written_by_rank_00000.json").exists(), 20)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        os.kill(writing._process.pid, number)
    begin(tmp_path, 4, {"b.pt": b"y"}, rank=1, ranks=2)
    assert writing.result()["error"] == "" and len(sealed(tmp_path)) == 1


def test_a_writer_that_is_killed_is_an_error_not_a_wait(tmp_path: Path) -> None:
    writing = begin(tmp_path, 4, {"a.pt": b"x"}, ranks=2)
    writing._process.kill()
    assert "ended with status -9" in writing.result()["error"] and not sealed(tmp_path)


def test_a_writer_imports_neither_torch_nor_deepspeed() -> None:
    code = "import sys, sycoca_ds.engine.checkpoint.writer as w; print(sorted({'torch', 'deepspeed', 'numpy'} & set(sys.modules)))"
    import sys

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"

"""Locks, also where file systems have none: the kernel's answers of Lustre without -o flock and of some FUSE and NFS mounts."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from data_pipeline import lock
from data_pipeline.errors import UserError
from data_pipeline.files import atomic_path, sync, write_bytes
from data_pipeline.lock import machine_lock, only_one

HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.data_pipeline.test_lock import without_locks
without_locks(Path({folder!r}))
from data_pipeline.lock import only_one
with only_one(Path({path!r}), "taken"):
    print("held", flush=True)
    time.sleep(60)
"""

WITHOUT_LOCKS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#define ANSWER(name) int name(int fd, int command, ...) { \
    va_list more; va_start(more, command); void *value = va_arg(more, void *); va_end(more); \
    if (command == F_SETLK || command == F_SETLKW) { errno = CODE; return -1; } \
    return ((int (*)(int, int, ...)) dlsym(RTLD_NEXT, #name))(fd, command, value); }
ANSWER(fcntl)
ANSWER(fcntl64)
"""
PROGRAM = """
import sys
from pathlib import Path
import duckdb
from data_pipeline.duck import Duck
folder = Path(sys.argv[1])
try:
    duckdb.connect(str(folder / "other.duckdb"))
    print("has locks")
except duckdb.IOException:
    print("has none")
database = Duck(folder, "100MB", on_disk=True).connection
database.execute("SET enable_progress_bar = false")
database.execute("CREATE TABLE a AS SELECT range AS i, md5(range::varchar) AS s FROM range(2000000)")
print(*database.execute("SELECT count(*), count(DISTINCT s) FROM a").fetchone())
print(sum(path.stat().st_size for path in folder.iterdir()) > 30 << 20)
"""


def without_locks(folder: Path, code: int = errno.ENOSYS) -> None:
    """flock on files of `folder` answers as its file system does; the rest of the machine has locks."""
    flock = fcntl.flock

    def answer(handle: int, operation: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{handle}")).is_relative_to(folder):
            raise OSError(code, os.strerror(code))
        flock(handle, operation)

    fcntl.flock = answer


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on a file system without locks, and a temporary folder of this machine beside it."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "shared").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.5)
    monkeypatch.setattr(fcntl, "flock", fcntl.flock)  # what the test puts there goes again
    return tmp_path / "shared"


def holder(path: Path, folder: Path) -> subprocess.Popen:
    program = HOLD.format(tests=str(Path(__file__).parents[2]), folder=str(folder), path=str(path))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("code", lock.NO_LOCKS)
def test_without_locks_there_is_still_only_one(shared: Path, code: int) -> None:
    without_locks(shared, code)
    path = shared / "ds/.lock"
    for _ in range(2):  # again after it was given back
        with only_one(path, "taken"), pytest.raises(UserError, match="^taken$"), only_one(path, "taken"):
            raise AssertionError("two at a time")
    assert [entry.name for entry in path.parent.iterdir()] == [".lock"]


@pytest.mark.timeout(60)
def test_another_process_is_waited_for_and_a_killed_one_leaves_nothing(shared: Path) -> None:
    path = shared / ".lock"
    process = holder(path, shared)
    without_locks(shared)
    with pytest.raises(UserError, match="^taken$"), only_one(path, "taken"):
        pass
    process.kill()
    process.wait()
    assert (shared / ".lock.owner").exists()
    with only_one(path, "taken"):
        pass
    assert not (shared / ".lock.owner").exists()


def test_another_machine_is_refused_by_name(shared: Path) -> None:
    without_locks(shared)
    for said, named in (("node17 0000 1:2", "node17"), ("", "another machine")):
        (shared / ".lock.owner").write_text(said)
        with (
            pytest.raises(UserError, match=f"^taken .*/.lock.owner says: {named}; .* delete that file"),
            only_one(shared / ".lock", "taken"),
        ):
            pass
        assert (shared / ".lock.owner").read_text() == said, "what is not ours stays"


def test_no_locks_anywhere_says_what_to_set(shared: Path) -> None:
    without_locks(shared.parent)
    with (
        pytest.raises(UserError, match="knows file locks; set TMPDIR to a folder on a local disk"),
        only_one(shared / ".lock", "taken"),
    ):
        pass


def test_a_lock_that_is_waited_for_comes(shared: Path) -> None:
    without_locks(shared)
    order = []

    def wait() -> None:
        with machine_lock(shared / "room"):
            order.append("second")

    with machine_lock(shared / "room") as (_, elsewhere):
        assert elsewhere
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_other_errors_of_flock_are_errors(shared: Path) -> None:
    without_locks(shared, errno.EIO)
    with pytest.raises(OSError, match="Input/output"), only_one(shared / ".lock", "taken"):
        pass


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EIO])
def test_a_file_is_whole_where_folders_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fsync = os.fsync

    def answer(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", answer)
    if code == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            write_bytes(tmp_path / "a", b"whole")
        return
    write_bytes(tmp_path / "a", b"whole")
    with atomic_path(tmp_path / "b") as temporary:
        temporary.write_bytes(b"too")
    sync(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"whole", "b": b"too"}


@pytest.mark.parametrize("code", [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_tables_beyond_memory_fit_with_and_without_locks(tmp_path: Path, code: int | None) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    if code is not None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        (tmp_path / "answer.c").write_text(WITHOUT_LOCKS)
        library = tmp_path / "answer.so"
        subprocess.run([compiler, "-shared", "-fPIC", f"-DCODE={code}", "-o", library, tmp_path / "answer.c", "-ldl"], check=True)
        environment["LD_PRELOAD"] = str(library)
    (tmp_path / "scratch").mkdir()
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "scratch")]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert said.stdout.splitlines() == ["has locks" if code is None else "has none", "2000000 2000000", "True"], said.stderr


def test_a_folder_that_cannot_be_made_is_an_error_of_the_user(tmp_path: Path) -> None:
    """As of a data set folder that is a file: curation and download lock theirs first."""
    (tmp_path / "file").write_text("x")
    for folder, why in ((tmp_path / "file", "File exists"), (tmp_path / "file/data", "Not a directory")):
        with pytest.raises(UserError, match=f"{folder}: expected a folder, or a place for one .{why}.; choose another"):
            with only_one(folder / ".lock", "busy"):
                pass

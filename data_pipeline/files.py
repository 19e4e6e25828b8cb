"""Files that appear whole or not at all: written beside their place, fsynced, renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError

CHUNK_BYTES = 1 << 20
NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EISDIR, errno.EBADF)
"""What fsync, and opening a folder for it, answers where the file system has none (folders on CIFS, some FUSE mounts)."""


def make_folder(folder: Path) -> None:
    """Makes it, with those above it, if it is not there. Raises `UserError`: something else is there, or it may not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_place(folder, error) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: expected a folder that this user may write; choose another, or ask for the right")


def no_folder(path: str | Path) -> str:
    """What to say of a path that is no folder."""
    return "it is a file, not a folder" if Path(path).exists() else "no such folder"


def check_folder(folder: Path) -> None:
    """Raises the `UserError` that `make_folder` would, before hours of work say, and leaves nothing."""
    try:
        tempfile.TemporaryDirectory(prefix=".", dir=_nearest(folder)).cleanup()
    except OSError as error:
        raise _no_place(folder, error) from None


def check_no_run(out: Path) -> None:
    """Raises `UserError` for the folder of a training, among whose files a data set has no place."""
    if (out / "run_status.json").exists() or (out / "checkpoints").is_dir():
        raise UserError(f"--out {out}: holds a training (run_status.json, checkpoints/); choose another folder")


def _nearest(folder: Path) -> Path:
    """What there is of it and of the folders above it."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))


def _no_place(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: expected a folder, or a place for one ({error.strerror}); choose another")


def check_place(path: Path, given: str) -> None:
    """Holds, before the work that ends in it, that a file can be written at `path`, and leaves nothing.

    Args:
        given: the option that names it, with its value, for the error.

    Raises:
        UserError: a folder is there, or no file can be made.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        probe = _nearest(path.parent) / _temporary(path).name
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{given}: no file can be written there ({error.strerror}); choose another place") from None


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`; when the block ends well that file is fsynced and renamed to
    `path`. Raises `OSError`, which a run in its middle takes for a disk's, and a command's end for a place's (errors.py)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Makes a file's content, or the renames inside a folder, durable, where the file system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise


def sync_folder(folder: Path) -> None:
    """Makes a rename inside `folder` durable."""
    sync(folder)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any) -> None:
    """Plain JSON (no NaN), indented, ends with a newline."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True) + "\n").encode())


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def image_id(url: str) -> str:
    """16 hex digits that name a picture: captions of one URL share it."""
    return sha256_text(url)[:16]

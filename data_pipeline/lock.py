"""One command at a time in a folder, also where the file system knows no locks: Lustre without -o flock, some FUSE and NFS."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from data_pipeline.errors import UserError
from data_pipeline.files import make_folder

LOCK_SECONDS = 10.0
"""Granted to the processes of a killed command to be gone."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
"""What flock answers where there are none."""


@contextmanager
def only_one(path: Path, refusal: str) -> Iterator[int]:
    """Holds a lock file, made with its folder if missing, and gives its handle. A process that inherits the handle keeps the lock
    until it is gone, too: what is started right after a kill waits for the dying.

    Where the file system knows no locks, a file in this machine's temporary folder is locked, and a file beside `path` says which
    machine it is: its own commands wait for each other, those of another one are refused.

    Raises:
        UserError: `refusal`, if another command holds it, or may hold it on another machine; no locks anywhere; no such folder can
            be made, or not be written.
    """
    make_folder(path.parent)
    with machine_lock(path, LOCK_SECONDS, refusal) as (handle, elsewhere):
        with _claimed(path, refusal) if elsewhere else nullcontext():
            yield handle


@contextmanager
def machine_lock(path: Path, seconds: float | None = None, refusal: str = "") -> Iterator[tuple[int, bool]]:
    """(handle of the locked file, whether that lies in the temporary folder since that of `path` knows no locks). Held by one
    process, or one thread of one, at a time; the kernel lets go of a killed one's.

    Args:
        seconds: how long it is waited for; None: for ever.

    Raises:
        UserError: `refusal`, after that time; no locks anywhere.
    """
    handle, elsewhere = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC), False
    try:
        if not _flock(handle, seconds, refusal):
            own = _stand_in(path)
            other = os.open(own, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            os.close(handle)
            handle, elsewhere = other, True
            if not _flock(handle, seconds, refusal):
                raise UserError(f"neither {path.parent} nor {own.parent} knows file locks; set TMPDIR to a folder on a local disk")
        yield handle, elsewhere
    finally:
        os.close(handle)


def _flock(handle: int, seconds: float | None, refusal: str) -> bool:
    """Whether there are locks; then it is held."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if deadline is None else fcntl.LOCK_NB))
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(refusal) from None
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False


def _stand_in(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"sycoca-{os.getuid()}-{name}.lock"


@contextmanager
def _claimed(path: Path, refusal: str) -> Iterator[None]:
    """Holds a file that names this machine, for those of others. One that names it already is of a command that is gone, since its
    lock is ours. Raises `UserError`: another machine's is there."""
    place = _stand_in(path).stat()  # containers of one machine may have temporary folders of their own
    boot = Path("/proc/sys/kernel/random/boot_id")
    own = f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''} {place.st_dev}:{place.st_ino}"
    owner = path.with_name(f"{path.name}.owner")
    try:
        with open(owner, "x") as file:
            file.write(own)
    except FileExistsError:
        found = owner.read_text(errors="replace")
        if found != own:
            raise UserError(
                f"{refusal} ({owner} says: {found.split(' ')[0] or 'another machine'}; locks are unknown here, so if nothing runs "
                "there any more, delete that file)"
            ) from None
    try:
        yield
    finally:
        owner.unlink(missing_ok=True)

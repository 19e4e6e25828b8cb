"""One command at a time in a folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UserError

LOCK_SECONDS = 10.0
"""Granted to the processes of a killed command to be gone."""


@contextmanager
def only_one(path: Path, refusal: str) -> Iterator[int]:
    """Holds a lock file, made with its folder if missing, and gives its handle. A process that inherits the handle keeps the lock
    until it is gone, too: what is started right after a kill waits for the dying.

    Raises:
        UserError: `refusal`, if another command holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(refusal) from None
                time.sleep(0.1)
        yield handle
    finally:
        os.close(handle)

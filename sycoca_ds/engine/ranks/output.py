"""Standard output and error that nobody may read any more: a launcher that is gone must not end the ranks."""

from __future__ import annotations

import contextlib
import errno
import os
import sys

FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk may have room again later."""


def never_fatal() -> None:
    """From now on what cannot be written is dropped: into the pipe of a launcher that was killed, of `| head`, a closed terminal.

    The descriptors stay; when one breaks it is turned to /dev/null, also for what other libraries write.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, Lossy):
            setattr(sys, name, Lossy(stream))


class Lossy:
    """A text stream without errors."""

    def __init__(self, stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        if getattr(error, "errno", None) in FULL:
            return
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

"""What a program draws on a terminal of a given width, and what a Ctrl-C there does to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.worlds.processes.watching import wait_until

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def drawn(code: str, width: int) -> list[str]:
    """Every line that Python code leaves on a terminal of `width` columns, in order, each redrawing of a line counted anew."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "SYCOCA_PROGRESS_FILE")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm"}
    )
    os.close(theirs)
    output = b""
    try:
        while block := os.read(ours, 65536):
            output += block
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, output.decode(errors="replace")
    return [line for line in re.split(r"[\r\n]+", CONTROLS.sub("", output.decode())) if line.strip()]


class OnTerminal:
    """A program in the foreground of a terminal of its own: a Ctrl-C reaches it and all that it has started."""

    def __init__(self, words: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execvpe(words[0], list(words), dict(environment))
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(self._terminal, 1 << 16):
                self._said.extend(piece)

    @property
    def said(self) -> str:
        return bytes(self._said).decode(errors="replace")

    def ctrl_c(self) -> None:
        os.write(self._terminal, b"\x03")

    def finish(self, seconds: float) -> int:
        """The exit status as a shell tells it; kills the program and all that it has started where it does not end in time."""
        ended: list[int] = []

        def over() -> bool:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            ended.extend([os.waitstatus_to_exitcode(status)] * (pid == self.pid))
            return bool(ended)

        in_time = wait_until(over, seconds)
        if not in_time:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._listener.join()
        os.close(self._terminal)
        assert in_time, self.said[-3000:]
        return ended[0] if ended[0] >= 0 else 128 - ended[0]

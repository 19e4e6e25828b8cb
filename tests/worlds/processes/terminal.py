"""What a program draws on a terminal of a given width."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

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

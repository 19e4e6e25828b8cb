"""Runs a command that must not outlive its starter, however that one ends. Started by processes.py, never by hand:

    python -I guard.py COMMAND...

Its standard input is a pipe whose other end the starter holds and never writes to: when the starter is gone, even by `kill -9`,
that end closes, and the guard ends its whole process group, the command's children and theirs included. SIGTERM is handed on to the
command. Imports nothing of the project: -I leaves this folder off the module path, where `display` or `processes` would answer.
"""

import os
import signal
import subprocess
import sys
import threading


def end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main(command: list[str]) -> int:
    """The command's exit status, or 128 + the signal that ended it."""
    if os.getpgrp() != os.getpid():
        print("error: guard.py needs a process group of its own, since it ends the whole group", file=sys.stderr)
        return 2
    threading.Thread(target=end_with_starter, daemon=True).start()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

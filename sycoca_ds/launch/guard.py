"""Runs a command that must not outlive its starter, however that one ends. Started by others of this project, never by hand:

    python -I guard.py COMMAND...
    python -I guard.py --mark VARIABLE=VALUE --patience SECONDS COMMAND...

Its standard input is a pipe whose other end the starter holds and never writes to: when the starter is gone, even by `kill -9`,
that end closes, and the guard ends its whole process group, the command's children and theirs included. In the second form it first
asks a training to save: ranks with that mark in their environment, or the command if there are none here, are given SIGTERM and so
many seconds. SIGTERM is handed on to the command. Imports nothing of the project: -I leaves this folder off the module path, where
`display` or `processes` would answer.
"""

import os
import signal
import subprocess
import sys
import threading
import time


def marked_ranks(mark: bytes) -> list[int]:
    """Processes of this machine with a mark, and a rank's place, in their environment."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if mark in words and any(word.startswith(b"LOCAL_RANK=") for word in words):
            found.append(int(name))
    return found


def ask_to_save(child: subprocess.Popen, mark: bytes, patience: float) -> None:
    """Returns when the ranks have ended, or the patience."""
    until, asked = time.monotonic() + patience, set()
    while time.monotonic() < until:
        ranks = marked_ranks(mark)
        for pid in set(ranks or [child.pid]) - asked:
            asked.add(pid)
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                pass
        if not ranks and child.poll() is not None:
            return
        time.sleep(0.5)


def main(words: list[str]) -> int:
    """The command's exit status, or 128 + the signal that ended it."""
    if os.getpgrp() != os.getpid():
        print("error: guard.py needs a process group of its own, since it ends the whole group", file=sys.stderr)
        return 2
    mark, patience = b"", 0.0
    if words[0] == "--mark":
        mark, patience, words = words[1].encode(), float(words[3]), words[4:]
    child, alone = subprocess.Popen(words, stdin=subprocess.DEVNULL), threading.Event()

    def end_with_starter() -> None:
        while os.read(0, 1):
            pass
        alone.set()
        if patience:
            ask_to_save(child, mark, patience)
            for pid in marked_ranks(mark):  # in groups of their own, where a launcher wants it so
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        os.killpg(os.getpgrp(), signal.SIGKILL)

    thread = threading.Thread(target=end_with_starter, daemon=True)
    thread.start()
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    status = child.wait()
    if alone.is_set():  # a launcher may be gone before its ranks are
        thread.join()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

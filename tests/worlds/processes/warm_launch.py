"""A launcher for what supervises launchers: ranks are forked from a warm process, so that a start takes a second.

    python -m tests.worlds.processes.warm_launch RANKS SCRIPT OPTIONS...

connects to the socket that a test opened (`listening`), hands over its output, and stands for the ranks until they have ended: a
signal to it reaches them, its exit status is theirs. They are no children of it, and the mark of a supervisor is in their
`os.environ` only, where nobody else sees it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.worlds import REPOSITORY
from tests.worlds.processes import warm
from tests.worlds.processes.launching import free_port

SOCKET = "TESTS_WARM_SOCKET"
"""Variable with the socket's path."""


@contextlib.contextmanager
def listening(folder: Path) -> Iterator[dict[str, str]]:
    """Hands requests on to this process's warm server; the variables that launchers need."""
    with socket.socket(socket.AF_UNIX) as door, contextlib.suppress(OSError):
        path = folder / "warm"
        path.unlink(missing_ok=True)  # of an earlier one
        door.bind(str(path))
        door.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    visitor, _ = door.accept()
                    with visitor:
                        message, descriptors, _, _ = socket.recv_fds(visitor, 1 << 20, 1)
                        warm.pass_on(json.loads(message), descriptors[0], visitor.fileno())
                    for descriptor in descriptors:
                        os.close(descriptor)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield {SOCKET: str(path), "PYTHONPATH": str(REPOSITORY)}
        door.shutdown(socket.SHUT_RDWR)
        thread.join()


def main(ranks: int, script: str, options: list[str]) -> int:
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(os.environ[SOCKET])
        request = {"script": str(Path(script).absolute()), "options": options, "ranks": ranks, "port": free_port()}
        request |= {"environment": dict(os.environ), "folder": os.getcwd(), "swept": True}
        socket.send_fds(own, [json.dumps(request).encode()], [1])
        answers = own.makefile()
        pid = int(answers.readline())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda *_: os.kill(pid, signal.SIGTERM))
        status = answers.readline()
    return int(status) if status else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))

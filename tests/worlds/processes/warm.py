"""Ranks that start in a tenth of a second: forked from a process that has imported torch, DeepSpeed and the trainer already.

Importing costs a rank five seconds of a core, and DeepSpeed's launcher twice that again. What a test says of training, resuming and
being killed does not depend on it; what it says of launching does, and goes through the real launcher (launching.start).

    python tests/worlds/processes/warm.py DOOR      the server, on a descriptor that listens; one for all test processes

The first test process that needs it starts it, others find it by the name of their run. A request is one message: JSON with the
script, its options, ranks, environment and folder, and two descriptors, for the output and for the answers: the process's number,
later its exit status. The process leads a group, in which all its ranks are.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[3]
PATIENCE = 10.0
"""For ranks to end after one of them has failed."""


class WarmProcess:
    """As much of subprocess.Popen as tests use; its output is text, standard error in it."""

    def __init__(self, server: socket.socket, request: dict, args: list[str]) -> None:
        self.args, self.returncode = args, None
        own, theirs = socket.socketpair()
        reading, writing = os.pipe()
        socket.send_fds(server, [json.dumps(request).encode()], [writing, theirs.fileno()])
        os.close(writing)
        theirs.close()
        self._answers, self.stdout = own.makefile(), open(reading, errors="replace")
        self._own = own
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._own], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._own], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._answers.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Output to its end, that is until nobody has it open any more, and the end of the process."""
        said: list[str] = getattr(self, "_said", None) or []
        if not said:
            self._said, self._reader = said, threading.Thread(target=lambda: said.append(self.stdout.read()), daemon=True)
            self._reader.start()
        until = None if timeout is None else time.monotonic() + timeout
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(None if until is None else max(0.1, until - time.monotonic()))
        return said[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


_server: socket.socket | None = None


def start(script: Path, options: list[str], ranks: int, port: int, environment: dict[str, str]) -> WarmProcess:
    """Starts a script as `launching.start` does, on `ranks` ranks; 0: without a launcher's environment."""
    request = {"script": str(script), "options": options, "ranks": ranks, "port": port, "environment": environment}
    return WarmProcess(server(), {**request, "folder": str(REPOSITORY)}, [str(script), *options])


def pass_on(request: dict, output: int, answers: int) -> None:
    """Starts what another process asks for; its descriptors get output and answers."""
    socket.send_fds(server(), [json.dumps(request).encode()], [output, answers])


def server() -> socket.socket:
    """This process's connection to the server, started by whichever of the test processes side by side needs it first."""
    global _server
    if _server is None:
        name = f"\0warm {os.environ.get('PYTEST_XDIST_TESTRUNUID', os.getpid())}"  # in no folder: it is gone with its owner
        with socket.socket(socket.AF_UNIX) as door:
            try:
                door.bind(name)
            except OSError as taken:
                if taken.errno != errno.EADDRINUSE:
                    raise
            else:
                door.listen()
                start_server(door)
        own, until = socket.socket(socket.AF_UNIX), time.monotonic() + PATIENCE
        while own.connect_ex(name):  # refused between another's bind and listen
            assert time.monotonic() < until, "nobody listens for processes to start"
            time.sleep(0.01)
        _server = own
    return _server


def start_server(door: socket.socket) -> None:
    passive = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # ranks of two tests share two cores
    subprocess.Popen(
        [sys.executable, str(Path(__file__)), str(door.fileno())],
        pass_fds=[door.fileno()],
        cwd=REPOSITORY,
        env={**os.environ, **passive, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )


# ---- the server ----------------------------------------------------------------------------------------------------------------


class Child(NamedTuple):
    """A group's leader."""

    client: socket.socket
    answers: socket.socket
    swept: bool
    """Nobody looks what outlives its ranks; a loader process that was stopped, say."""


def serve(door: socket.socket) -> None:
    """Until the last test process is gone. What one of them started ends with it."""
    door.settimeout(PATIENCE)
    clients, children = [door.accept()[0]], dict[int, Child]()
    while clients:
        for ready in select.select([door, *clients], [], [], 0.02 if children else None)[0]:
            if ready is door:
                clients.append(door.accept()[0])
                continue
            message, descriptors, _, _ = socket.recv_fds(ready, 1 << 20, 2)
            if message:
                others = [door, *clients, *(child.answers for child in children.values())]
                pid, child = begin(ready, json.loads(message), *descriptors, others)
                children[pid] = child
                continue
            for pid in [pid for pid, child in children.items() if child.client is ready]:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
            clients.remove(ready)
            ready.close()
        for pid in list(children):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                child = children.pop(pid)
                if child.swept:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    child.answers.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                child.answers.close()


def begin(client: socket.socket, request: dict, output: int, answers: int, others: list[socket.socket]) -> tuple[int, Child]:
    """Forks what a client asks for: (its number, what is known of it)."""
    child = Child(client, socket.socket(fileno=answers), bool(request.get("swept")))
    pid = os.fork()
    if pid == 0:
        for other in (*others, child.answers):
            other.close()
        run(request, output)
    os.close(output)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)  # here as well as there: whoever asks next finds the group
    with contextlib.suppress(OSError):
        child.answers.sendall(f"{pid}\n".encode())
    return pid, child


def run(request: dict, output: int) -> None:
    """In the process that leads the group: the script itself, or its ranks; never returns."""
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if not request["ranks"]:
        run_script(request["script"], request["options"])
    ranks = {}
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"], "LOCAL_SIZE": request["ranks"]}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": request["port"]}
            os.environ.update({name: str(value) for name, value in place.items()})
            run_script(request["script"], [f"--local_rank={rank}", *request["options"]])
        ranks[pid] = rank
    signal.signal(signal.SIGTERM, lambda *_: [os.kill(pid, signal.SIGTERM) for pid in ranks])
    failed, until = 0, None
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ranks.pop(pid)
            failed = failed or os.waitstatus_to_exitcode(status)
            if failed and until is None:
                until = time.monotonic() + PATIENCE
                for other in ranks:
                    os.kill(other, signal.SIGTERM)
        elif until is not None and time.monotonic() > until:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
        time.sleep(0.01)
    os._exit(failed if failed >= 0 else 128 - failed)


def run_script(script: str, options: list[str]) -> None:
    """As `python -u SCRIPT OPTIONS...`; never returns."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(os.dup(number), "w", buffering=1, errors="backslashreplace", closefd=False))
    sys.argv, sys.path[0] = [script, *options], str(Path(script).parent)
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def warm_up() -> None:
    """Imports what ranks need, also what they would import on their way, and loads DeepSpeed's operators; starts no thread, which
    would not come along."""
    from sycoca_ds.engine.ranks.environment import prepare_deepspeed

    prepare_deepspeed()
    import cv2  # noqa: F401
    import deepspeed.ops
    import deepspeed.runtime.superoffload.superoffload_stage3  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo  # noqa: F401
    import torch._inductor.compile_fx  # noqa: F401
    import torch.utils.serialization.config  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from deepspeed.module_inject import auto_ep_layer  # noqa: F401
    from deepspeed.runtime.zero.muon import muon_optimizer  # noqa: F401

    import sycoca_ds.engine.loop
    import sycoca_ds.train  # noqa: F401
    from sycoca_ds.engine.operators import needed_operators
    from sycoca_ds.options import parse_options

    with contextlib.suppress(ImportError):
        import cpuinfo

        cpuinfo.get_cpu_info()  # cached by prepare_deepspeed
    assert deepspeed.ops.__compatible_ops__  # asked of compilers
    for builder, _ in needed_operators():
        builder.load(verbose=False)
    parse_options(["--preset", "tiny"])  # with all that reads a command line

    threads = {Path(f"/proc/self/task/{number}/comm").read_text().strip() for number in os.listdir("/proc/self/task")}
    others = {name for name in threads if not name.startswith("python")}
    assert others <= {"jemalloc_bg_thd"}, others  # pyarrow's allocator, which is ready for a fork
    gc.collect()
    gc.freeze()  # a collection in a rank would copy every page


if __name__ == "__main__":
    entrance = socket.socket(fileno=int(sys.argv[1]))
    warm_up()
    serve(entrance)

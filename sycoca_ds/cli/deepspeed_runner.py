"""DeepSpeed's runner, as `sycoca train` becomes it: it waits at a Ctrl-C, and ends with what became of the run.

By itself the runner dies of the Ctrl-C after which the ranks save: with a traceback among their lines, before they have saved, and
with a status that knows nothing of it; launch.py below it dies of one in its imports, with another. Here the ranks have the Ctrl-C
once they can save, and RUN/run_status.json the last word on the status; before that this process ends them. The runner of several
hosts has an answer of its own to a Ctrl-C. Started by path, from any folder.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds/cli":
    # this folder would shadow installed modules; the folder of all packages would go before Python's own
    sys.path[:1] = [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]

from data_pipeline.errors import interrupted  # noqa: E402
from sycoca_ds.engine.ranks.launcher import LAUNCH  # noqa: E402
from sycoca_ds.engine.ranks.process_table import words_of  # noqa: E402
from sycoca_ds.engine.safety.status import read_status  # noqa: E402
from sycoca_ds.train import EXIT_PREEMPTED  # noqa: E402

RUN = "SYCOCA_TRAIN_RUN"
"""Variable with the run's folder."""
INTERRUPTED = 128 + signal.SIGINT


class Waiting:
    """Answers Ctrl-C, which processes below this one have, too.

    On one machine SIGINT is blocked, and so it is in launch.py and in ranks before they can save (engine/ranks/stop.py).

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        import psutil  # of DeepSpeed's requirements; not at a Ctrl-C, in whose middle there may be another one

        self.run, self.asked, self.process = run, 0, psutil.Process()
        self.before, self.seen = read_status(run), set()
        self.thread, self.leaves, self.answering = None, False, threading.Lock()

    def begin(self) -> None:
        """Before DeepSpeed's imports: somewhere in them a bare `except` may take a Ctrl-C for a module that is not there. `sycoca
        train` has blocked it already, so that none is lost while this process starts."""
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what is to run in the background
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.thread = threading.Thread(target=self._answer, daemon=True)
        self.thread.start()

    def leave_to_the_runner(self) -> None:
        """From here on: it ends its remote shells."""
        if self.thread is not None:
            self.leaves = True
            self.thread.join()
            signal.signal(signal.SIGINT, self._count)  # not SIG_IGN, which the ranks would inherit
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _count(self, number: int, frame: object) -> None:
        if not self.process.children():
            raise KeyboardInterrupt
        self.asked += 1

    def _answer(self) -> None:
        while not self.leaves:
            found = signal.sigtimedwait({signal.SIGINT}, 0.2)
            if found is None:
                continue
            with self.answering:
                self._answer_one(by_process=found.si_code <= 0)

    def _answer_one(self, by_process: bool) -> None:
        """by_process: a process has sent it (`kill -INT`), perhaps to this one alone; a terminal sends it to all."""
        self.asked += 1
        first = [process.pid for process in self.process.children()]
        below = self._below()
        if self.asked < 3 and any(map(listens, below)):
            if by_process:  # a rank that has had it, too, saves after a SIGTERM as before it; a second SIGINT would end it
                for pid in filter(listens, self._ranks(first)):
                    _send(pid, signal.SIGTERM if self.asked == 1 else signal.SIGINT)
            return
        if not any(LAUNCH in words_of(pid) for pid in first):  # it imports, or asks something of the machine
            print(interrupted(), file=sys.stderr, flush=True)
            for pid in below:
                _send(pid, signal.SIGKILL)
            os._exit(INTERRUPTED)  # the other thread may be deep in the system, and has nothing to put away
        for pid in first:  # launch.py would tell of its end at length, and may be about to start a rank
            _send(pid, signal.SIGSTOP)
        for pid in self._below():
            _send(pid, signal.SIGTERM if self.asked == 1 and pid not in first else signal.SIGKILL)

    def _ranks(self, first: list[int]) -> list[int]:
        """Not what is below them: a loader process that ends takes its rank with it."""
        import psutil

        found = []
        for pid in first:
            with contextlib.suppress(psutil.NoSuchProcess):
                if LAUNCH in words_of(pid):
                    found += [process.pid for process in psutil.Process(pid).children()]
        return found

    def _below(self) -> list[int]:
        found = [process.pid for process in self.process.children(recursive=True)]
        self.seen |= set(found)
        return found

    def wait(self) -> None:
        """Returns when all that was asked to end has: a rank that began to listen meanwhile saves first."""
        with self.answering:
            pass
        while any(map(lives, self.seen)):
            time.sleep(0.1)


def lives(pid: int) -> bool:
    """Whether a process has not ended; one that nobody has asked for its status has."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def listens(pid: int) -> bool:
    """Whether a process answers a Ctrl-C: below the runner it is blocked until then (engine/ranks/stop.py)."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigBlk:"):
                return not int(line.split()[1], 16) >> (signal.SIGINT - 1) & 1
    return False


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def status_of(launch: int, asked: int, before: dict[str, Any], now: dict[str, Any]) -> int:
    """The exit status.

    Args:
        launch: the runner's own. asked: how often Ctrl-C came. before, now: run_status.json at the start and at the end.
    """
    if not asked:
        return launch
    ended = now.get("status") if now != before else None
    cut_off = launch if 1 < launch < 128 else INTERRUPTED  # 1, or a signal's: what a Ctrl-C makes of any
    return {"preempted": EXIT_PREEMPTED, "completed": 0, "failed": launch or 1}.get(ended, cut_off)


def several_hosts(words: list[str]) -> bool:
    """Whether the launch starts remote shells. Args: words: the runner's, from its options to the training's."""
    from sycoca_ds.launch.processes import train_script
    from sycoca_ds.supervise.job import DEFAULT_HOSTFILE, HOSTFILE, option, read_hosts

    script = train_script()
    own = ["deepspeed", *(words[: words.index(script)] if script in words else words)]
    if option(own, HOSTFILE) is None and not DEFAULT_HOSTFILE.is_file():
        return False
    return "--force_multi" in own or len(read_hosts(own, len(own))) != 1


def main() -> int:
    waiting = Waiting(Path(os.environ.pop(RUN)))
    try:
        waiting.begin()
        from deepspeed.launcher.runner import main as launch

        if several_hosts(sys.argv[1:]):
            waiting.leave_to_the_runner()
        status = launch()
    except SystemExit as stop:
        status = stop.code
    except KeyboardInterrupt:
        print(interrupted(), file=sys.stderr, flush=True)
        return INTERRUPTED
    except Exception:
        with waiting.answering:
            if not waiting.asked or read_status(waiting.run) != waiting.before:
                raise
        status = INTERRUPTED  # what it was doing before there were ranks has had the Ctrl-C, too
    if isinstance(status, str):
        print(status, file=sys.stderr, flush=True)
        status = 1
    waiting.wait()
    now = read_status(waiting.run)
    if waiting.asked and now == waiting.before:
        print(interrupted(), file=sys.stderr, flush=True)
    return status_of(status or 0, waiting.asked, waiting.before, now)


if __name__ == "__main__":
    sys.exit(main())

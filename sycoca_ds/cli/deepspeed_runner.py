"""DeepSpeed's runner, as `sycoca train` becomes it: it waits at a Ctrl-C, and ends with what became of the run.

By itself the runner dies of the Ctrl-C after which the ranks save: with a traceback among their lines, before they have saved, and
with a status that knows nothing of it. Here the ranks have the Ctrl-C, and RUN/run_status.json the last word on the status. The
runner of several hosts has an answer of its own to a Ctrl-C. Started by path, from any folder.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if sys.path and Path(sys.path[0] or os.getcwd()).resolve() == ROOT / "sycoca_ds/cli":
    # this folder would shadow installed modules; the folder of all packages would go before Python's own
    sys.path[:1] = [] if ROOT.name in ("site-packages", "dist-packages") else [str(ROOT)]

from data_pipeline.errors import interrupted  # noqa: E402
from sycoca_ds.engine.safety.status import read_status  # noqa: E402
from sycoca_ds.train import EXIT_PREEMPTED  # noqa: E402

RUN = "SYCOCA_TRAIN_RUN"
"""Variable with the run's folder."""
INTERRUPTED = 128 + signal.SIGINT


class Waiting:
    """Counts the Ctrl-C that processes below this one have, too. Where there is none yet it ends the start."""

    def __init__(self) -> None:
        import psutil  # of DeepSpeed's requirements; not at a Ctrl-C, in whose middle there may be another one

        self.asked, self.process = 0, psutil.Process()

    def __call__(self, number: int, frame: object) -> None:
        if not self.process.children():
            raise KeyboardInterrupt
        self.asked += 1


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


def main() -> int:
    run, waiting = Path(os.environ.pop(RUN)), Waiting()
    before = read_status(run)
    try:
        from deepspeed.launcher.runner import main as launch

        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as a shell starts what is to run in the background
            signal.signal(signal.SIGINT, waiting)  # not SIG_IGN, which the ranks would inherit
        status = launch()
    except SystemExit as stop:
        status = stop.code
    except KeyboardInterrupt:
        print(interrupted(), file=sys.stderr, flush=True)
        return INTERRUPTED
    if isinstance(status, str):
        print(status, file=sys.stderr, flush=True)
        status = 1
    return status_of(status or 0, waiting.asked, before, read_status(run))


if __name__ == "__main__":
    sys.exit(main())

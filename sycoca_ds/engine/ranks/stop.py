"""When a run ends before its last step: signals, and a launcher that is gone."""

from __future__ import annotations

import contextlib
import os
import signal

from sycoca_ds.engine.ranks.launcher import find_launcher
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.engine.safety.status import LAUNCHER_GONE

STOPS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)


class StopSignal:
    """SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C set a flag; the loop saves and ends at the next step, on all ranks together. A
    second Ctrl-C ends the process at once. The loop ends in the same way when DeepSpeed's launcher has died: nobody would end these
    ranks with the job.

    SIGHUP comes with a Ctrl-C in a terminal: the runner of `deepspeed` dies of it, and the kernel sends one to a process group that
    nobody's shell waits for any more and that has a stopped member, as the launcher is then.

    Attributes:
        why: the signal's name, or LAUNCHER_GONE; "" while this rank knows no reason to stop.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.why, self.leads = "", runtime.leads
        self.launcher = find_launcher() if runtime.local_rank == 0 else None
        for number in STOPS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as a shell starts what is to run in the background
                signal.signal(number, self._receive)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # by `sycoca train` until it can be answered

    @property
    def received(self) -> bool:
        """Whether this rank knows a reason to stop."""
        if not self.why and self.launcher is not None and self.launcher.is_gone():
            self.why = LAUNCHER_GONE
            with contextlib.suppress(OSError):
                os.write(2, f"\n{LAUNCHER_GONE}: saving after this step, then the end\n".encode())
        return bool(self.why)

    def hold_launcher(self) -> None:
        if self.launcher is not None:
            self.launcher.wait_for_us()

    def _receive(self, number: int, frame: object) -> None:
        self.why = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self.hold_launcher()
            if self.leads:  # unbuffered: what the signal interrupted may be in the middle of a print
                with contextlib.suppress(OSError):
                    os.write(2, b"\nCtrl-C: saving after this step, then the end; once more ends at once, unsaved\n")

"""How patient a supervisor is."""

from __future__ import annotations

from dataclasses import dataclass

from sycoca_ds.supervise.attempt import Limits
from sycoca_ds.supervise.job import Job

MARGIN_SECONDS = 60.0
"""By which the supervisor is more patient than the ranks' own watchdog."""


@dataclass(frozen=True)
class SuperviseOptions:
    """Keeps a training going: starts the command after `--` again when it fails, as long as that is of use."""

    restarts: int = 5
    """Restarts in a row without a newer checkpoint after which it stops."""
    back_off_seconds: float = 15.0
    """Pause before a restart; twice as long with every one that brought no newer checkpoint."""
    longest_back_off_seconds: float = 600.0
    """But no longer."""
    min_hosts: int | None = None
    """Go on without hosts that fail, down to so many of the hostfile; not given: never."""
    grace_seconds: float = 45.0
    """From the first failure that a rank records, or the run's last word, to the end of the command; then it is ended."""
    silent_seconds: float | None = None
    """Without a sign of life of some rank for so long, a job that does not end is ended; default: a minute more than the
    --watch.silent-seconds after which the ranks' own watchdog should have."""
    first_sign_minutes: float = 20.0
    """From the start to the first sign of life of a rank: imports, the meeting of all ranks, and compiling DeepSpeed's operators if
    that was not done before."""
    save_minutes: float | None = None
    """For ranks that were asked to save; default: what --watch.save-minutes and --watch.step-seconds allow together."""
    dry_run: bool = False
    """Say what would be started, where, and from which checkpoint; start nothing."""

    def limits(self, job: Job) -> Limits:
        watch = job.config.watch
        return Limits(
            first_sign=60 * self.first_sign_minutes,
            silent=watch.silent_seconds + MARGIN_SECONDS if self.silent_seconds is None else self.silent_seconds,
            grace=self.grace_seconds,
            save=60 * watch.save_minutes + watch.step_seconds if self.save_minutes is None else 60 * self.save_minutes,
            look=max(1.0, watch.beat_seconds / 2),
        )

    def pause(self, without_progress: int) -> float:
        """Seconds before the next start."""
        doubled = min(max(0, without_progress - 1), 60)  # of a thousand no float could hold the product
        return min(self.longest_back_off_seconds, self.back_off_seconds * 2**doubled)

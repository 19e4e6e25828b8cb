"""Nobody waits for a rank that is gone: silent and stuck ranks are named within a minute, and the job ends.

Every rank has three threads. One gives a beat every few seconds into the store that the ranks met in, over the network, and reads
those of others: rank 0 all, the others rank 0's. The second leaves it in the run folder, too, for who looks from outside; on a disk
that hangs it waits alone, and nobody is taken for silent. The third does nothing that could block: it compares clocks, and when a
limit has passed it has the stacks of all threads written and ends the process, however the others are doing.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from data_pipeline.progress import format_seconds
from sycoca_ds.config import WatchConfig
from sycoca_ds.engine.ranks.process_table import whoami
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE, EXIT_HANG, HEARTBEATS, record_failure

STACKS = "stacks"
"""Folder of the run with a file a rank."""
LAST_WORDS_SECONDS = 10.0
"""For writing stacks and the verdict, on a disk that may hang; then the process ends without."""
COLLECTIVES = os.path.join("torch", "distributed", "distributed_c10d.py")
MARGIN_SECONDS = 60.0
"""By which collectives outlast the watchdog, which can say more about the end than they can."""
ORDER = ("start", "data", "step", "save", "validation", "end")
"""Phases of a step in their order: of ranks that wait for each other, one in an earlier phase keeps the others."""


@dataclass
class Place:
    """Where a rank is in the run."""

    phase: str = "start"
    step: int = 0
    since: float = 0.0
    """time.monotonic() of its begin."""


class Watchdog:
    """Told by the loop where it is; `with watchdog.at("save", step):` for a phase within another."""

    def __init__(self, run: Path, runtime: Runtime, config: WatchConfig) -> None:
        self.run, self.runtime, self.config = run, runtime, config
        self.place = Place(since=time.monotonic())
        self.host, self._who = socket.gethostname(), whoami()
        self._limits = {
            "start": 60 * config.start_minutes,
            "data": config.step_seconds,
            "step": config.step_seconds,
            "save": 60 * config.save_minutes,
            "validation": 60 * config.validation_minutes,
            "end": 60 * config.save_minutes,
        }
        self._first_step = True
        self._first: int | None = None
        self._spent = dict.fromkeys((*self._limits, "first_step"), 0.0)
        self._done, self._pen = threading.Event(), threading.Lock()
        self._verdict: str | None = None
        self._heard = time.monotonic()
        """When rank 0 was last heard; on rank 0 always now."""
        self._seen: dict[int, tuple[int, float, dict[str, Any]]] = {}
        """Rank -> (number of its last beat, when that came, what it said); on rank 0."""
        self._threads = [
            threading.Thread(target=work, daemon=True, name=name)
            for name, work in (
                ("watchdog beat", self._beat),
                ("watchdog file", self._leave_beats),
                ("watchdog clock", self._watch),
            )
        ]

    def __enter__(self) -> Watchdog:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._write()
        self._done.set()

    def enter(self, phase: str, step: int) -> None:
        """From now on this rank is in a phase; plain assignments, nothing that takes time."""
        now, before = time.monotonic(), self.place
        first = self._first_step and before.phase in ("data", "step")
        self._spent["first_step" if first else before.phase] += now - before.since
        if phase == "data":
            if before.phase not in ("start", "data"):
                self._first_step = False
            if self._first is None:
                self._first = step
        self.place = Place(phase, step, now)
        self.runtime.wait_at_most(self.limit(self.place) + MARGIN_SECONDS)

    @contextlib.contextmanager
    def at(self, phase: str, step: int):
        before = self.place
        self.enter(phase, step)
        try:
            yield
        finally:
            self.enter(before.phase, before.step)

    def limit(self, place: Place) -> float:
        """Seconds that a phase may take; the first step compiles, allocates and connects."""
        first = self._first_step and place.phase in ("data", "step")
        return 60 * self.config.first_step_minutes if first else self._limits[place.phase]

    # ---- the threads that may block ---------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        store, number, last = self._connect(), 0, time.monotonic()
        while not self._done.wait(self.config.beat_seconds):
            now = time.monotonic()
            if now - last > 3 * self.config.beat_seconds + 1:  # this process, or the machine, stood still: nobody else did
                self._heard, self._seen = now, {}
            last, number = now, number + 1
            if store is None:
                continue
            try:
                store.set(f"beat/{self.runtime.rank}", json.dumps([number, self._say()]))
                if self.runtime.leads:
                    self._hear_all(store)
                else:
                    store.get("beat/0")
                self._heard = time.monotonic()
                if store.check(["verdict"]):
                    self._verdict = store.get("verdict").decode()
                elif self._verdict is not None:
                    store.set("verdict", self._verdict)
            except (
                RuntimeError,
                ValueError,
                OSError,
            ):  # rank 0 is gone, or the network: the clock's thread decides when it is enough
                continue

    def _say(self) -> dict[str, Any]:
        place = self.place
        seconds = round(time.monotonic() - place.since, 1)
        return {"phase": place.phase, "step": place.step, "seconds": seconds, "host": self.host, "waits": waits_for_others()}

    def _leave_beats(self) -> None:
        while not self._done.wait(self.config.beat_seconds):
            self._write()

    def _write(self) -> None:
        """Leaves a beat for those who look from outside: who gives it, where it is, and how long it was in each phase before."""
        said = {
            **self._say(),
            **self._who,
            "time": time.time(),
            "world_size": self.runtime.world_size,
            "first": self._first,
            "attempt": os.environ.get(ATTEMPT_VARIABLE),
            "spent": {phase: round(seconds, 3) for phase, seconds in self._spent.items()},
        }
        with self._pen, contextlib.suppress(OSError):
            folder = self.run / HEARTBEATS
            folder.mkdir(exist_ok=True)
            (folder / f"rank_{self.runtime.rank:05d}.json").write_text(json.dumps(said))

    def _connect(self):
        if self.runtime.world_size == 1:
            return None
        from datetime import timedelta

        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = timedelta(seconds=self.config.silent_seconds)
        try:
            store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=wait)
        except (RuntimeError, ValueError) as error:
            print(f"rank {self.runtime.rank}: no watchdog, its store is not reached: {error}", file=sys.stderr, flush=True)
            return None
        return dist.PrefixStore("sycoca_ds_watchdog", store)

    def _hear_all(self, store) -> None:
        names = [f"beat/{rank}" for rank in range(self.runtime.world_size)]
        now = time.monotonic()
        for rank, name in enumerate(names):
            if not store.check([name]):
                self._seen.setdefault(rank, (0, now, {"phase": "start", "step": 0, "host": "?"}))
                continue
            number, said = json.loads(store.get(name))
            if rank not in self._seen or self._seen[rank][0] != number:
                self._seen[rank] = (number, now, said)

    # ---- the thread that never blocks -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._done.wait(1.0):
            now = time.monotonic()
            if now - last > 10:  # stopped and continued: our own clocks mean nothing
                self._heard = now
            last = now
            verdict = self._verdict or self._judge(now)
            if verdict is not None and not self._done.is_set():
                self._finish(verdict)

    def _judge(self, now: float) -> str | None:
        """What is wrong, or nothing."""
        silent = self.config.silent_seconds
        if self.runtime.leads:
            gone = {rank: seen for rank, seen in list(self._seen.items()) if rank and now - seen[1] > silent}
            if gone:
                rank, (_, when, said) = min(gone.items(), key=lambda item: (item[1][1], item[0]))
                more = f" (and {len(gone) - 1} more)" if len(gone) > 1 else ""
                return (
                    f"rank {rank}{more} on {said['host']} gives no sign of life for {now - when:.0f} s, last in {said['phase']} of "
                    f"step {said['step']}: it was stopped, its machine is down, or the network to it"
                )
        elif self.runtime.world_size > 1 and now - self._heard > silent:
            return (
                f"rank 0 at {os.environ['MASTER_ADDR']} is not reached from rank {self.runtime.rank} on {self.host} for "
                f"{now - self._heard:.0f} s: it was stopped, its machine is down, or the network to it"
            )
        place, taken = self.place, now - self.place.since
        # rank 0 knows where all are: the others leave it the time to say who keeps them
        if taken > self.limit(place) + (0 if self.runtime.leads else 4 * self.config.beat_seconds):
            return self._who_keeps(place, taken)
        return None

    def _who_keeps(self, place: Place, taken: float) -> str:
        """Rank 0 has heard where all are; one that is behind keeps the others."""
        spent = f"{place.phase} of step {place.step} takes longer than its limit of {format_seconds(self.limit(place))}"
        places = {rank: said for rank, (_, _, said) in list(self._seen.items())}
        places[self.runtime.rank] = {"phase": place.phase, "step": place.step, "host": self.host, "waits": waits_for_others()}
        behind = {rank: (said["step"], ORDER.index(said["phase"])) for rank, said in places.items()}
        first = min(behind.values())
        late = sorted(rank for rank, where in behind.items() if where == first)
        late = [rank for rank in late if not places[rank].get("waits")] or late
        if self.runtime.leads and len(late) < self.runtime.world_size:
            rank, said = late[0], places[late[0]]
            more = f" (and {len(late) - 1} more)" if len(late) > 1 else ""
            return (
                f"rank {rank}{more} on {said['host']} is stuck in {said['phase']} of step {said['step']}, the others wait: {spent}"
            )
        return f"{spent} on rank {self.runtime.rank} on {self.host}, and no rank is known to be behind the others: see the stacks"

    def _finish(self, verdict: str) -> None:
        """Ends this process; what is written first is given LAST_WORDS_SECONDS."""
        self._verdict = verdict
        writer = threading.Thread(target=self._last_words, args=(verdict,), daemon=True)
        writer.start()
        writer.join(LAST_WORDS_SECONDS)
        if self.runtime.world_size > 1 and self.runtime.leads:
            self._done.wait(2 * self.config.beat_seconds)  # the others take the verdict from this rank's store
        if not self._done.is_set():
            os._exit(EXIT_HANG)

    def _last_words(self, verdict: str) -> None:
        print(f"rank {self.runtime.rank} on {self.host}: {verdict}; ending", file=sys.stderr, flush=True)
        place = self.place
        more = {"phase": place.phase, "step": place.step}
        record_failure(self.run, self.runtime.rank, "hang", verdict, **more)
        folder = self.run / STACKS
        folder.mkdir(exist_ok=True)
        with open(folder / f"rank_{self.runtime.rank:05d}.txt", "w") as file:
            print(
                f"rank {self.runtime.rank} on {self.host}, {place.phase} of step {place.step}: {verdict}\n", file=file, flush=True
            )
            faulthandler.dump_traceback(file, all_threads=True)


def waits_for_others() -> bool:
    """Whether a thread of this process is inside a collective, as far as its Python frames show it."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if COLLECTIVES in frame.f_code.co_filename:
                return True
            frame = frame.f_back
    return False

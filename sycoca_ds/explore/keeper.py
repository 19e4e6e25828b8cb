"""The newest model of a run, and what it makes of the pictures it is compared with.

A newer checkpoint is opened and looks at everything while the older one answers; then they change places at once. An answer that
has begun is finished by the model it began with. The next one is opened only when the older one is given up: two at most are in
memory.
"""

from __future__ import annotations

import copy
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError, one_line
from sycoca_ds.engine.checkpoint.exported import is_exported
from sycoca_ds.engine.checkpoint.seal import STATE_FILE, sealed, step_of
from sycoca_ds.engine.safety.status import read_status
from sycoca_ds.evaluation.watch import digest_of
from sycoca_ds.explore.samples import Samples, Vectors, amount, look_at
from sycoca_ds.inference.index import Index, update
from sycoca_ds.inference.model import Model

WATCH_SECONDS = 3.0
"""Between looks at the run's checkpoints."""
BUSY_SECONDS = 20.0
"""An answer waits so long for the one before it."""
ENDING_SECONDS = 10.0
"""At the end a batch in the background is waited for so long; what hashes the files of a folder, before any batch, is not."""


class Busy(Exception):
    """Another answer is being computed."""


class Ended(BaseException):
    """The server ends."""


@dataclass(frozen=True)
class Compared:
    """What is compared with, the same for every model."""

    samples: Samples | None = None
    why: str = ""
    """Why there are no samples, in a sentence."""
    folder: Path | None = None
    """Of pictures beside the samples, with `cache` where their vectors are kept."""
    cache: Path | None = None
    batch_size: int = 32


@dataclass
class Held:
    """A model and what it makes of what is compared with."""

    model: Model
    version: int
    vectors: Vectors | None = None
    index: Index | None = None
    done: int = 0
    """Of what the stage looks at."""
    total: int = 0
    """The samples' pictures and captions; 0 of a folder, of which it is not known how many are new."""
    stage: str = "open"
    """`samples` and `index` while these are looked at, then `ready`."""
    problems: dict[str, str] = field(default_factory=dict)
    """By stage, why the samples or the folder cannot be looked at."""


class Keeper:
    """Keeps the newest model of `path`.

    Args:
        model: the first one, opened from `path`.
        opened: a checkpoint's folder -> its model, as a newer one is opened.
    """

    def __init__(
        self,
        path: Path,
        model: Model,
        opened: Callable[[Path], Model],
        compared: Compared,
        watch_seconds: float = WATCH_SECONDS,
        busy_seconds: float = BUSY_SECONDS,
    ):
        self.opened, self.compared, self.watch_seconds, self.busy_seconds = opened, compared, watch_seconds, busy_seconds
        self.held = Held(model, 1)
        self.name = path.resolve().name
        self.newer: dict[str, Any] | None = None
        """The checkpoint that is being opened: step, stage, done, total."""
        self.problem = ""
        """Why a newer checkpoint was left out."""
        self.unseen = ""
        """Why it could not be seen at the last look whether there is a newer one."""
        self.gone = False
        """Whether the held one is no longer on disk."""
        alone = is_exported(path) or (path / STATE_FILE).is_file()
        self.checkpoints = None if alone else path / "checkpoints" if (path / "checkpoints").is_dir() else path
        """Where newer ones appear."""
        self._turn, self._ending = threading.Lock(), threading.Event()
        self._left_out: set[str] = set()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Returns when no batch is computed in the background any more."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(ENDING_SECONDS)

    @contextmanager
    def lent(self) -> Iterator[Held]:
        """The newest model, for one answer at a time. Raises `Busy`."""
        if not self._turn.acquire(timeout=self.busy_seconds):
            raise Busy
        try:
            yield self.held
        finally:
            self._turn.release()

    def training(self) -> dict[str, Any] | None:
        """How the run says it stands: status, step, steps."""
        status = read_status(self.checkpoints.absolute().parent) if self.checkpoints is not None else {}
        return {name: status.get(name) for name in ("status", "step", "steps")} if status else None

    # ---- in the background ----

    def _watch(self) -> None:
        try:
            self._prepare(self.held, excused=Exception)  # out of memory, say: the page answers what needs no comparison
            while self.checkpoints is not None and not self._ending.wait(self.watch_seconds):
                self._try_to_look()
        except Ended:
            pass

    def _try_to_look(self) -> None:
        """Looks, and where that fails says so: a network disk may answer at the next look."""
        try:
            self._look()
            self.unseen = ""
        except Exception as error:
            self._say("unseen", f"{self.checkpoints}: no look at its checkpoints ({told_of(error)}); it is tried again")

    def _say(self, name: str, said: str) -> None:
        """Keeps it for the page; on stderr it stands once."""
        if said != getattr(self, name):
            print(said, file=sys.stderr, flush=True)
        setattr(self, name, said)

    def _look(self) -> None:
        """Takes the newest checkpoint that is newer than the held one and can be opened."""
        held, newer = self.held.model.loaded, []
        for folder in sealed(self.checkpoints):
            digest = digest_of(folder)
            if digest == held.digest or step_of(folder) < self.held.model.step:  # older ones, where the held one is gone
                break
            if digest is not None and digest not in self._left_out:
                newer.append((folder, digest))
        self.gone = not (held.folder / STATE_FILE).is_file()
        for folder, digest in newer:
            if self._take(folder, digest):
                return

    def _take(self, folder: Path, digest: str) -> bool:
        self.newer = {"step": step_of(folder), "stage": "open", "done": 0, "total": 0}
        try:
            held = Held(self.opened(folder), self.held.version + 1)
            self._prepare(held, excused=(UserError, OSError))
        except Exception as error:  # the page goes on with what it has, whatever is wrong with this one
            if digest_of(folder) == digest:
                if not isinstance(error, OSError):  # a disk may answer at the next look
                    self._left_out.add(digest)
                self._say("problem", f"step {step_of(folder)} cannot be opened: {one_line(error)}")
            return False
        finally:
            self.newer = None
        self.held, self.problem, self.gone = held, "", False
        print(f"step {held.model.step} is taken", file=sys.stderr, flush=True)
        while not self._ending.is_set():  # whoever still has the older one is done before another one is opened
            if self._turn.acquire(timeout=0.1):
                self._turn.release()
                break
        return True

    def _prepare(self, held: Held, excused: type[Exception] | tuple[type[Exception], ...]) -> None:
        """Looks at what is compared with; pauses while an answer is computed. What keeps it from the samples, if `excused`, does
        not keep it from the folder."""
        compared = self.compared

        def told(done: int) -> None:
            held.done = done
            if self.newer is not None:
                self.newer |= {"stage": held.stage, "done": held.done, "total": held.total}
            while self._turn.locked() and not self._ending.is_set():
                time.sleep(0.02)
            if self._ending.is_set():
                raise Ended

        if compared.samples is not None:
            held.stage, held.total = "samples", amount(held.model, compared.samples)
            with _told_in(held.problems, "samples", excused):
                held.vectors = look_at(held.model, compared.samples, compared.batch_size, told)
        if compared.folder is not None:
            held.stage, held.total = "index", 0
            told(0)
            with _told_in(held.problems, "index", excused):
                asked = asked_in_batches(held.model, told)
                held.index = update(asked, compared.folder, compared.cache, compared.batch_size, lambda: told(0))
        held.done, held.stage = held.total, "ready"


@contextmanager
def _told_in(problems: dict[str, str], stage: str, excused: type[Exception] | tuple[type[Exception], ...]) -> Iterator[None]:
    """What is raised in the block ends it alone, and stands in `problems`."""
    try:
        yield
    except excused as error:
        problems[stage] = told_of(error)


def told_of(error: Exception) -> str:
    """In a line."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {one_line(error)}"


def asked_in_batches(model: Model, told: Callable[[int], None]) -> Model:
    """The model for `update`, which asks it for a batch's vectors at a time.

    Args:
        told: called before each with how many pictures it has been asked for; it may wait, or raise to end this.
    """
    asked, done = copy.copy(model), 0

    def encode_image(images: list[np.ndarray], batch_size: int) -> np.ndarray:
        nonlocal done
        told(done)
        done += len(images)
        return model.encode_image(images, batch_size)

    asked.encode_image = encode_image
    return asked

"""Checkpoints that are whole or do not exist, and that cost the training only a copy in memory, where there is room for it.

`<run>/checkpoints/step_00001000/` holds DeepSpeed's shards, each rank's random state and part of the EMA, tokenizer.json and the
seal, state.json (see seal.py). A save copies the state to this host's memory; a process of its own on every rank writes and hashes
it while the training goes on (writer.py), and rank 0's seals it when all ranks have written. The next save, and the end of the run,
wait for the last. Where the copy does not fit the same process is given the same bytes straight from the weights, and the training
waits (snapshot.py).
A save that fails, on a full disk say, costs that save: the run goes on, and the last whole checkpoint stays.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.own_package import import_path
from data_pipeline.progress import format_seconds
from sycoca_ds.engine.checkpoint.contents import Contents, Files, measure
from sycoca_ds.engine.checkpoint.retention import Retention, delete, retire
from sycoca_ds.engine.checkpoint.seal import remove_unsealed, sealed, step_folder, step_of
from sycoca_ds.engine.checkpoint.snapshot import InMemory, Straight, choose_way
from sycoca_ds.engine.checkpoint.writer import GIVEN_UP, Job, describe
from sycoca_ds.engine.policy import FLAT_ORDER
from sycoca_ds.engine.ranks.runtime import random_state
from sycoca_ds.engine.start import Session

SPARE_BYTES = 64 << 20
"""Left free on the disk: for the curves, the log and other runs."""


class Writing:
    """A save on its way to the disk."""

    def __init__(self, job: Job, handles: Sequence[int], step: int) -> None:
        """Starts to write what is behind the descriptors `handles`, one for each of the job's files."""
        self.step, self.folder = step, Path(job.folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sycoca_ds.engine.checkpoint.writer", *map(str, handles)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=set(handles),
            start_new_session=True,  # a Ctrl-C is for the training, which waits for this process
            env=os.environ | import_path(),
        )
        self._process.stdin.write(describe(job))
        self._process.stdin.flush()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def result(self) -> dict[str, Any]:
        """Waits for the end: `error` ("" if there is none), and of a save that succeeded `bytes`, `seconds`, `deleted`."""
        said = self._process.stdout.read()
        status = self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()
        if status == GIVEN_UP:
            return {"error": "given up"}
        try:
            return json.loads(said)
        except ValueError:
            return {"error": f"the process that writes it ended with status {status}"}

    def give_up(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Saver:
    """Saves a run. Every rank has one and calls `save` and `finish` at the same steps.

    Attributes:
        last_sealed: step of the newest checkpoint that is known to be whole; None: there is none yet.
        stalled: seconds that the training stood still for the last save.
        failure: why the last save failed; "" if it did not.
    """

    def __init__(self, session: Session) -> None:
        self.session, self.runtime = session, session.runtime
        self.run = Path(session.config.run.out)
        self.checkpoints = self.run / "checkpoints"
        self.last_sealed = None if session.state is None else session.position.step
        self.stalled, self.failure = 0.0, ""
        self._way: InMemory | Straight | None = None  # chosen at the first save: now the run has all it needs
        self._writing, self._last = None, time.monotonic()

    def is_late(self) -> bool:
        """Whether the last save is longer ago than the configuration wants."""
        return time.monotonic() - self._last > 60 * self.session.config.run.checkpoint_minutes

    def save(self, guard: dict[str, Any], best: Callable[[], int | None]) -> None:
        """Hands the state of all ranks over to be written; a save before it is waited for.

        Args:
            guard: what the guard wants to find again.
            best: asked for the step of a checkpoint that must stay, when the save before is over, which may be of that very step.
        """
        began, session, position = time.monotonic(), self.session, self.session.position
        self.finish()
        files: Files = Contents(session.engine).files
        files |= {f"random_rank_{self.runtime.rank:05d}.pt": random_state(), **session.ema.files()}
        if self.runtime.leads:
            files["tokenizer.json"] = (self.run / "tokenizer.json").read_bytes()
        measures = {name: measure(content) for name, content in files.items()}
        folder, keep = step_folder(self.checkpoints, position.step), self._retention(best())
        incoming = sum(self.runtime.gather(sum(one.size for one in measures.values())))
        problem = self.runtime.agree(make_room(folder, keep, incoming) if self.runtime.leads else "")
        if problem:
            self._failed(position.step, problem)
        else:
            state = {
                "step": position.step,
                "samples": position.data_step * session.batches.global_batch_size,
                "world_size": self.runtime.world_size,
                "zero_stage": session.stage,
                "flat_order": FLAT_ORDER,
                "manifest_digest": session.sources.digest,
                "config": dataclasses.asdict(session.config),
                "extra": {**position.extra(), "guard": guard},
                "versions": {name: version(name) for name in ("torch", "deepspeed", "numpy")},
            }
            job = Job(
                folder=str(folder),
                names=list(files),
                sizes=[one.size for one in measures.values()],
                rank=self.runtime.rank,
                world_size=self.runtime.world_size,
                state=state if self.runtime.leads else None,
                retention=keep,
            )
            self._way = self._way or choose_way(self.runtime, list(measures.values()))
            self._writing = self._way.hand_over(files, lambda handles: Writing(job, handles, position.step))
        self._last = time.monotonic()
        self.stalled = self._last - began

    def go_back(self) -> None:
        """The session is back at the newest checkpoint that is whole, perhaps not at the last one that was sealed."""
        self.last_sealed = self.session.position.step

    def look(self) -> None:
        """Rank 0 says when a save has come to its end; no rank waits."""
        if self.runtime.leads and self._writing is not None and self._writing.ended():
            self._say(self._writing, self._writing.result())
            self._writing = None

    def finish(self) -> None:
        """Waits for the save that is being written, on all ranks."""
        writing, self._writing = self._writing, None
        error = ""
        if writing is not None and not self.runtime.leads:
            error = writing.result()["error"]
        errors = [f"rank {rank}: {text}" for rank, text in enumerate(self.runtime.gather(error)) if text]
        if writing is not None and self.runtime.leads:
            if errors:  # its own would wait for theirs
                writing.give_up()
                shutil.rmtree(writing.folder, ignore_errors=True)
            self._say(writing, {"error": "; ".join(errors)} if errors else writing.result())
        self.last_sealed, self.failure = self.runtime.agree((self.last_sealed, self.failure))

    def check(self) -> None:
        """Raises `UserError` if the run's state, at its end, could not be saved."""
        step = self.session.position.step
        if self.last_sealed != step:
            since = "nothing is saved" if self.last_sealed is None else f"the last checkpoint is of step {self.last_sealed}"
            raise UserError(
                f"step {step} could not be saved: {self.failure}; {since}: mend that, the same command goes on from there"
            )

    def _retention(self, best: int | None) -> Retention:
        run = self.session.config.run
        budget = None if run.checkpoints_gib is None else int(run.checkpoints_gib * 2**30)
        return Retention(max(1, run.keep_checkpoints), run.keep_checkpoint_every, best, budget)

    def _say(self, writing: Writing, result: dict[str, Any]) -> None:
        if result["error"]:
            self._failed(writing.step, result["error"])
            return
        self.last_sealed, self.failure = writing.step, ""
        print(
            f"saved {writing.folder} (written in {format_seconds(result['seconds'])}, the training stood {self.stalled:.2f} s)",
            flush=True,
        )

    def _failed(self, step: int, reason: str) -> None:
        self.failure = reason
        kept = "there is no checkpoint yet" if self.last_sealed is None else f"the one of step {self.last_sealed} stays"
        self.runtime.say(f"step {step} is NOT saved: {reason}; {kept}; the run goes on")


def make_room(folder: Path, retention: Retention, incoming: int) -> str:
    """Prepares a step's folder; what is against it, or nothing. Older checkpoints make way, never the newest.

    Args:
        incoming: bytes that will be written into it.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_unsealed(folder.parent)
        for later in sealed(folder.parent):  # damaged ones that the run went back behind: none of them is its newest
            if step_of(later) >= step_of(folder):
                delete(later)
        free = shutil.disk_usage(folder.parent).free
        if free < incoming + SPARE_BYTES:  # room for one more is more important than what is there for comfort
            retire(folder.parent, dataclasses.replace(retention, keep=1))
            free = shutil.disk_usage(folder.parent).free
        else:
            retire(folder.parent, retention, incoming)
        if free < incoming + SPARE_BYTES:
            kept = ", ".join(str(step_of(path)) for path in sealed(folder.parent)) or "none"
            return f"{folder.parent} has {free / 2**30:.2f} GiB free, a checkpoint takes {incoming / 2**30:.2f} (there: {kept})"
        folder.mkdir()
    except OSError as error:
        return str(error)
    return ""

"""Where a run writes down what it measures: metrics.jsonl and TensorBoard's event files, each step once."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np

from data_pipeline.files import write_text
from sycoca_ds.engine.monitoring.curves import layout, tag_of

log = logging.getLogger(__name__)

EVENTS = "events.out.tfevents."
"""How TensorBoard's files begin; then ten digits of seconds since 1970, by which they are read in order."""


class Journal:
    """Writes the records of rank 0; on other ranks every method does nothing.

    A run that goes back to an earlier step, by resuming or by rewinding, drops what it had written of later ones: lines of
    metrics.jsonl are cut, and a mark in TensorBoard's new file purges what the older ones hold. So a curve has one point a step.
    What cannot be written (a full disk) is lost, never the run.

    Args:
        step: what is kept of an earlier start: everything up to this step; at 0 nothing, the run begins anew.
        regions, unasked, answers: what the board shows of what only some runs have (`curves.layout`).
    """

    def __init__(
        self,
        run: Path,
        step: int,
        enabled: bool,
        regions: bool = False,
        unasked: Collection[str] = (),
        answers: bool = False,
    ):
        self.layout = layout(regions, unasked, answers)
        self.path, self.folder, self.enabled = run / "metrics.jsonl", run / "tensorboard", enabled
        self._file = self._board = None
        self._told = False
        self._open(step if step > 0 else -1)

    def _open(self, keep: int) -> None:
        if not self.enabled:
            return
        try:
            kept = [line for line in self.path.read_text().splitlines() if _step(line) <= keep] if self.path.is_file() else []
            write_text(self.path, "".join(line + "\n" for line in kept))
            self._file = open(self.path, "a")
            self._board = self._new_board(keep + 1)
        except OSError as error:
            self._lose(error)

    def _new_board(self, first: int):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import custom_scalars

        self.folder.mkdir(parents=True, exist_ok=True)
        put_behind(self.folder, time.time())
        board = SummaryWriter(str(self.folder), purge_step=first, flush_secs=10)
        # at a step of its own, so that the next start from the same step purges it as well
        board.file_writer.add_summary(custom_scalars(self.layout), first)
        return board

    def _lose(self, error: OSError) -> None:
        self._board = None
        if not self._told:
            self._told = True
            log.warning("what the run measures cannot be written to %s (%s): TensorBoard stands still until the next start, "
                        "training goes on", self.path.parent, error)  # fmt: skip

    def at(self, step: int) -> dict[str, float]:
        """The numbers of one step that were written before this start."""
        lines = self.path.read_text().splitlines() if self.path.is_file() else []
        return {name: value for line in lines if _step(line) == step for name, value in json.loads(line).items() if name != "step"}

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step: what was written of later ones is dropped."""
        self.close()
        self._open(step)

    def scalars(self, step: int, record: dict[str, float]) -> None:
        """One line in metrics.jsonl and a point in each curve. A number that is not finite is null in the line."""
        if not self.enabled:
            return
        try:
            finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
            if self._file is not None:
                self._file.write(json.dumps({"step": step, **finite}) + "\n")
                self._file.flush()
            if self._board is not None:
                for name, value in record.items():
                    self._board.add_scalar(tag_of(name), value, step)
        except OSError as error:
            self._lose(error)

    def show(self, step: int, images: dict[str, np.ndarray] | None = None, texts: dict[str, str] | None = None) -> None:
        """uint8 (H, W, 3) pictures and Markdown texts by tag."""
        if self._board is None:
            return
        try:
            for tag, image_HWC in (images or {}).items():
                self._board.add_image(tag, image_HWC, step, dataformats="HWC")
            for tag, text in (texts or {}).items():
                self._board.add_text(tag, text, step)
            self._board.flush()
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        try:
            if self._file is not None:
                self._file.close()
            if self._board is not None:
                self._board.close()
        except OSError as error:
            self._lose(error)
        self._file = self._board = None


def _step(line: str) -> float:
    """The step of a line of metrics.jsonl; a half-written last line counts as later than any."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def put_behind(folder: Path, now: float) -> None:
    """Renames event files whose names say that they are from now or later, as after a clock was set back: read after a file that
    begins now, they would bring back what it purges. Their order stays."""
    files = sorted(path for path in folder.glob(f"{EVENTS}*") if path.name[len(EVENTS) :].split(".")[0].isdigit())
    if files and int(files[-1].name[len(EVENTS) :].split(".")[0]) >= int(now):
        for place, path in enumerate(files):
            rest = path.name[len(EVENTS) :].split(".", 1)[1]
            path.rename(folder / f"{EVENTS}{int(now) - len(files) + place:010d}.{rest}")

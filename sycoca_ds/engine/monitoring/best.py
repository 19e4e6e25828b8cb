"""Which checkpoint is the best one, by a number of the validations: best.json in the run folder."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from sycoca_ds.config import TrainConfig
from sycoca_ds.engine.monitoring.curves import RECALLS

log = logging.getLogger(__name__)

FILE = "best.json"
LARGER = tuple(f"validation/{name}" for name in (*RECALLS, "i2t_accuracy", "t2i_accuracy", "vqa_accuracy"))
SMALLER = tuple(f"validation/{name}" for name in ("loss", "itc", "ic", "mim", "vqa"))
OF_ANSWERS = ("validation/vqa_accuracy", "validation/vqa", "validation/loss")
"""All that a validation on questions has."""


def check_best_metric(config: TrainConfig) -> None:
    """Raises `UserError` for a metric that no validation of this model has."""
    lacks = {"validation/ic": not config.model.captions, "validation/mim": not config.model.reconstructs}
    known = [name for name in (*LARGER, *SMALLER) if not lacks.get(name) and "vqa" not in name]
    known = OF_ANSWERS if config.model.fusion else known
    metric = config.run.best_metric
    if metric is not None and metric not in known:
        raise UserError(
            f"run.best-metric = {metric}: no validation of this model has it{nearest(metric, known)} (expected one of "
            f"{', '.join(known)}, or None)"
        )


def best_step(run: Path) -> int | None:
    """Step of the best checkpoint so far, or None. It was sealed when it was named; whoever deletes checkpoints must spare it."""
    found = _read(run)
    return None if found is None else found["step"]


def _read(run: Path) -> dict | None:
    try:
        found = json.loads((run / FILE).read_text())
        return found if isinstance(found["step"], int) and found["metric"] and math.isfinite(found["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Best:
    """Keeps best.json: step, metric and value of the best step that was both validated and saved. Only rank 0 has one.

    Args:
        step: where the run starts from; a best one after it is no checkpoint of this run any more.
        numbers: what was measured at that step, which is saved: the run may have been killed before it could say so.
    """

    def __init__(self, run: Path, metric: str | None, step: int, numbers: dict[str, float] | None = None):
        self.run, self.metric, self._values = run, metric, {}
        found = _read(run)
        if found is not None and (found["metric"] != metric or found["step"] > step):
            (run / FILE).unlink(missing_ok=True)
        if step > 0 and numbers:
            self.validated(step, numbers)
            self.saved(step)

    def validated(self, step: int, numbers: dict[str, float]) -> None:
        """The numbers of a validation, which may come before or after the save of the same step."""
        value = numbers.get(self.metric)
        if value is not None and math.isfinite(value):
            self._values[step] = value

    def saved(self, step: int) -> bool:
        """After a checkpoint was sealed; whether it is the best one now. Of equal ones the first stays; so does the one before
        where the file cannot be written (a full disk)."""
        value, found = self._values.get(step), _read(self.run)
        self._values = {at: other for at, other in self._values.items() if at > step}
        if value is None:
            return False
        if found is not None and (value <= found["value"] if self.metric in LARGER else value >= found["value"]):
            return False
        try:
            write_json(self.run / FILE, {"step": step, "metric": self.metric, "value": value})
        except OSError as error:
            log.warning("step %s is the best so far, and %s cannot be written (%s)", step, self.run / FILE, error)
            return False
        return True

    def go_back(self, step: int) -> None:
        """The run goes on from an earlier step: what came after it is forgotten."""
        self._values = {at: value for at, value in self._values.items() if at <= step}
        if (best_step(self.run) or 0) > step:
            (self.run / FILE).unlink()

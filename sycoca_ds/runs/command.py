"""`python -m sycoca_ds.runs [DIR]`: a line a run, newest first; or where their configurations differ."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from data_pipeline.command_line import nearest, parse_command
from data_pipeline.errors import UserError
from data_pipeline.files import no_folder
from sycoca_ds.runs import LOSSES

if TYPE_CHECKING:
    from sycoca_ds.runs.reading import Run

PROGRAM = "python -m sycoca_ds.runs"
USUAL = ("retrieval.i2t_r1", "retrieval.t2i_r1", "classification.top1", "captioning.cider")
"""Numbers of evaluations that have a column of their own where a run has them."""
RISING = ("run", "status", "model", *LOSSES)
"""Columns that are sorted from the smallest on; others from the largest."""
Value = str | float | None
Status = Literal["running", "completed", "preempted", "failed", "gone", "silent", "unknown"]


@dataclass(frozen=True, kw_only=True)
class RunsCommand:
    """Lists the runs below a folder: status, step, losses, numbers of their newest evaluation, newest checkpoint."""

    folder: Annotated[str, tyro.conf.Positional] = "runs"
    """A run, or a folder with runs up to three folders down."""
    sort: str = "age"
    """Column by which they are sorted: names, losses and age from the smallest, others from the largest; runs
    without it last."""
    reverse: bool = False
    """The other way round."""
    metrics: tuple[str, ...] = ()
    """Columns in place of the usual ones: TASK.NUMBER of an evaluation, or validation/NAME of the run's own validation."""
    status: tuple[Status, ...] = ()
    """Only runs that stand so; gone: its process is not there any more; silent: on another machine, no sign of life."""
    differences: bool = False
    """A row for each field of their configurations in which the runs differ, in place of their numbers."""
    json: bool = False
    """Everything that is known, as JSON."""

    def run(self) -> int:
        from sycoca_ds.runs.reading import find_runs, read_run

        folder = Path(self.folder)
        if not folder.is_dir():
            raise UserError(f"{folder}: {no_folder(folder)}; expected a run, or a folder with runs")
        runs = [read_run(path) for path in find_runs(folder)]
        if not runs:
            raise UserError(f"{folder}: no run in it (no run_status.json, metrics.jsonl or checkpoints/ up to three folders down)")
        there = Counter(run.status for run in runs)
        runs = [run for run in runs if not self.status or run.status in self.status]
        if not runs:
            counts = ", ".join(f"{count} {status}" for status, count in sorted(there.items()))
            raise UserError(f"{folder}: no run is {' or '.join(self.status)}; there are {counts}")
        metrics = self.metrics or tuple(name for name in USUAL if any(name in run.metrics() for run in runs))
        table = {run.path: cells(run, folder, metrics) for run in runs}
        columns = list(next(iter(table.values())))
        if self.sort not in columns:
            raise UserError(
                f"--sort {self.sort}: no such column{nearest(self.sort, columns)} (expected one of {', '.join(columns)})"
            )
        unknown = [name for name in self.metrics if all(table[run.path][name] is None for run in runs)]
        if unknown:
            there = sorted({name for run in runs for name in (*run.metrics(), *(f"validation/{v}" for v in run.validation))})
            raise UserError(f"--metrics {unknown[0]}: no run has it{nearest(unknown[0], there)}")
        runs = ordered(runs, {run.path: table[run.path][self.sort] for run in runs}, self.sort in RISING, self.reverse)
        if self.json:
            print(json.dumps([run.record() for run in runs], indent=1))
        elif self.differences:
            show(*differences(runs, folder))
        else:
            used = [name for name in columns if name in ("run", "status") or any(table[run.path][name] is not None for run in runs)]
            show(used, [[told(name, table[run.path][name]) for name in used] for run in runs])
        return 0


def cells(run: Run, folder: Path, metrics: Sequence[str]) -> dict[str, Value]:
    """Column -> value; None: the run has none."""
    numbers = run.metrics() | {f"validation/{name}": value for name, value in run.validation.items()}
    return {
        "run": name_of(run, folder),
        "status": run.status,
        "model": run.family or None,
        "step": run.step,
        "of": run.steps,
        **{name: run.losses.get(name) for name in LOSSES},
        **{name: numbers.get(name) for name in metrics},
        "checkpoint": run.checkpoint,
        "age": run.time or None,
    }


def name_of(run: Run, folder: Path) -> str:
    return str(run.path.relative_to(folder)) if run.path != folder else run.path.absolute().name


def ordered(runs: list[Run], value_of: dict[Path, Value], rising: bool, reverse: bool) -> list[Run]:
    """Sorted by a column; those without a value (or with NaN) stay last either way."""
    has = [run for run in runs if value_of[run.path] is not None and value_of[run.path] == value_of[run.path]]
    has.sort(key=lambda run: value_of[run.path], reverse=rising == reverse)
    return has + [run for run in runs if run not in has]


def told(column: str, value: Value) -> str:
    if value is None:
        return "-"
    if column == "age":
        return age(time.time() - value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    return str(value)


def age(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h`, `5 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def differences(runs: list[Run], folder: Path) -> tuple[list[str], list[list[str]]]:
    """(header, rows) of the fields that are not the same in all runs. Raises `UserError`: fewer than two runs."""
    if len(runs) < 2:
        raise UserError(f"--differences: {len(runs)} run in {folder}: expected at least two")
    from sycoca_ds.options import flat

    fields = [{name.replace("_", "-"): json.dumps(value) for name, value in flat(run.config).items()} for run in runs]
    names = list(dict.fromkeys(name for values in fields for name in values))
    rows = [[name, *(values.get(name, "-") for values in fields)] for name in names]
    return ["field", *(name_of(run, folder) for run in runs)], [row for row in rows if len(set(row[1:])) > 1]


def show(columns: Sequence[str], rows: list[list[str]]) -> None:
    """A table as wide as it is: a pipe or a narrow terminal cuts nothing. Names to the left, numbers to the right."""
    widths = [max(len(row[place]) for row in [list(columns), *rows]) for place in range(len(columns))]
    for row in [list(columns), *rows]:
        words = [
            word.ljust(width) if place == 0 or columns[place] in ("status", "model") else word.rjust(width)
            for place, (word, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(words).rstrip())


def main() -> int:
    return parse_command(Annotated[RunsCommand, tyro.conf.OmitArgPrefixes], sys.argv[1:], PROGRAM).run()

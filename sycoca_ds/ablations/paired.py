"""Rows against one of them, over the same pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.ablations.report import METRICS, column_of
from sycoca_ds.ablations.runs import EvaluationSet, Run, finished_evaluation, sets_of
from sycoca_ds.ablations.tables import Row, trained_as
from sycoca_ds.eval.comparison.numbers import Additive, additive_numbers
from sycoca_ds.eval.comparison.testing import over_seeds
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.stats.paired import KEY, read_each


def values_of(run: Run, sets: Sequence[EvaluationSet]) -> dict[str, Additive]:
    """{column: how pictures make it} of the evaluations that are finished."""
    found: dict[str, Additive] = {}
    for chosen in sets_of(run, sets):
        results = finished_evaluation(run, chosen)
        for task in chosen.tasks if results is not None else ():
            if results["tasks"][task]["status"] != "done" or not TASKS[task].each:
                continue
            each = read_each(run.folder / "eval" / chosen.name, task)
            order = np.argsort(each.pop(KEY))
            made = additive_numbers(task, {name: array[order] for name, array in each.items()}, METRICS[task])
            found |= {column_of(chosen.title, metric): number for metric, number in made.items()}
    return found


def compare(rows: Sequence[Row], runs: Sequence[Run], sets: Sequence[EvaluationSet], against: str) -> dict[str, Any]:
    """{row: {column: what `over_seeds` says}} of every row against the one named, for the seeds that both have; columns that one of
    them lacks are left out.

    Raises:
        UserError: the row is none of them.
    """
    named = next((row for row in rows if row.name == against), None)
    if named is None:
        raise UserError(f"--against {against}: expected one of the rows of this command: {', '.join(row.name for row in rows)}")
    values: dict[str, dict[int, dict[str, Additive]]] = {}
    for run in runs:
        values.setdefault(run.row, {}).setdefault(run.seed, {}).update(values_of(run, sets))
    found: dict[str, Any] = {}
    first = values.get(trained_as(named), {})
    for row in rows:
        second, columns = values.get(trained_as(row), {}), {}
        for column in dict.fromkeys(column for by_column in second.values() for column in by_column):
            seeds = [seed for seed in first if column in first[seed] and column in second.get(seed, {})]
            told = over_seeds([first[seed][column] for seed in seeds], [second[seed][column] for seed in seeds]) if seeds else None
            if told is not None:
                columns[column] = told
        if row.name != against and columns:
            found[row.name] = columns
    return found

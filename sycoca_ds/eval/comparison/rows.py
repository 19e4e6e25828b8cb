"""The table's rows: a number a row, the first checkpoint against each of the others."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.comparison.dropped import Dropped, reason
from sycoca_ds.eval.comparison.folders import Evaluation, refuse_other_questions
from sycoca_ds.eval.comparison.numbers import Additive, additive_numbers
from sycoca_ds.eval.comparison.testing import difference
from sycoca_ds.eval.registry import METRICS, TASKS
from sycoca_ds.eval.stats.paired import KEY

SAME = {KEY: "pictures", "class": "classes of pictures", "domain": "domains of pictures"}
"""What stands beside the numbers of pictures and is the same for every model."""


def numbers_of(each: dict[str, np.ndarray] | None, task: str) -> dict[str, Additive]:
    """{number: how pictures make it} of what a task has left, if anything."""
    return additive_numbers(task, {name: array for name, array in (each or {}).items() if name != KEY}, METRICS[task])


def refuse_other_pictures(task: str, folders: tuple[Any, Any], first: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Raises `UserError`. Args: first, other: what both folders have of each picture."""
    for name, what in SAME.items():
        if name in first and name in other:
            nan = first[name].dtype.kind == other[name].dtype.kind == "f"  # texts know no NaN
            if not np.array_equal(first[name], other[name], equal_nan=nan):
                raise UserError(f"{folders[1]}: {task} is of other {what} than in {folders[0]}: evaluate both on the same data")


def same_benchmarks(each: list[dict[str, np.ndarray] | None]) -> list[dict[str, np.ndarray] | None]:
    """Of compositions the pictures of those benchmarks that all evaluations have, and what these have of them."""

    def kinds(own: dict[str, np.ndarray]) -> np.ndarray:
        return np.array([name.split(" ", 1)[0] for name in own[KEY].tolist()])

    common = set.intersection(*(set(kinds(own)) if own is not None else set() for own in each))
    found: list[dict[str, np.ndarray] | None] = []
    for own in each:
        if own is not None and common:
            there_I = np.isin(kinds(own), sorted(common))
            own = {name: array[there_I] for name, array in own.items()}
            own = {name: array for name, array in own.items() if array.dtype.kind != "f" or not np.isnan(array).all()}
        found.append(own)
    return found


def rows_of(
    evaluations: list[Evaluation],
    names: tuple[str, ...],
    chosen: str,
    task: str,
    wanted: tuple[str, ...],
    seed: int,
    permutations: int,
) -> tuple[list[dict[str, Any]], list[Dropped]]:
    """(a row a number that the first checkpoint and another one have, what is wanted and missing).

    Raises:
        UserError: pictures, or what is right of them, are others.
    """
    each = [evaluation.each(task) for evaluation in evaluations]
    if task == "compositionality":
        each = same_benchmarks(each)
    for evaluation, own in zip(evaluations[1:], each[1:], strict=True):
        refuse_other_questions(task, evaluations[0], evaluation)
        refuse_other_pictures(task, (evaluations[0].folder, evaluation.folder), each[0] or {}, own or {})
    found = [numbers_of(own, task) for own in each]
    rows, missing = [], []
    for number in wanted:
        lack = [place for place, numbers in enumerate(found) if number not in numbers]
        why = {place: reason(evaluations[place], task, number) for place in lack}
        if len(lack) == len(found) and len(set(why.values())) == 1:
            missing.append(Dropped(chosen, task, number, "", why[0]))
            continue
        missing += [Dropped(chosen, task, number, names[place], why[place]) for place in lack]
        if 0 in lack:
            continue
        first, against = found[0][number], []
        for place, numbers in enumerate(found[1:], 1):
            tested = difference(first, numbers[number], seed, permutations) if place not in lack else None
            if tested is None and place not in lack:
                missing.append(Dropped(chosen, task, number, names[place], "no picture has it in both"))
            own_images = [int(of[number].there_I.sum()) for of in (found[0], numbers) if number in of]
            against.append(None if tested is None else tested.as_json() | {"own_images": own_images})
        if any(against):
            wording = TASKS[task].numbers[number]
            rows.append(
                {
                    "set": chosen,
                    "task": task,
                    "number": number,
                    "label": wording.label,
                    "unit": wording.unit,
                    "chance": evaluations[0].results["tasks"][task]["chance"].get(number),
                    "values": [numbers[number].value if number in numbers else None for numbers in found],
                    "against": against,
                }
            )
    return rows, missing


def partly_common(rows: list[dict[str, Any]], names: tuple[str, ...]) -> list[str]:
    """A line for all numbers that two checkpoints have on the same few of their pictures."""
    found: dict[tuple[str, int, int, int], list[str]] = {}
    for row in rows:
        for name, against in zip(names[1:], row["against"], strict=True):
            if against is not None and max(against["own_images"]) > against["images"]:
                place = f"{row['set']}: " if row["set"] else ""
                key = (name, against["images"], *against["own_images"])
                found.setdefault(key, []).append(f"{place}{row['task']}.{row['number']}")
    return [
        f"{', '.join(numbers)}: over the {common:,} pictures that have it in both, of {own:,} in {names[0]} and {its:,} in {name}"
        for (name, common, own, its), numbers in found.items()
    ]

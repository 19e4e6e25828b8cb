"""Numbers and families in words, for the terminal table and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sycoca_ds.eval.task import Task

MANY = 8
"""Numbers that are told one by one."""
FAMILIES = {"clip": "CLIP", "coca": "CoCa", "sycoca": "SyCoCa"}


def show(value: float | None, unit: str = "") -> str:
    """A number for people: one decimal for percent, three digits otherwise, a dash for null."""
    if value is None:
        return "-"
    shown = f"{value:.3f}" if unit != "%" and abs(value) < 10 else f"{value:.1f}"
    shown = shown[1:] if float(shown) == 0 and shown.startswith("-") else shown
    return f"{shown} %" if unit == "%" else shown


def told_first(task: Task, record: Mapping[str, Any]) -> list[str]:
    """The headlines of a task. Of those that share their reason for being null with many others only the reason is told."""
    reasons = record["null_reasons"]
    shared = Counter(reasons.values())
    return [name for name in task.headlines if shared[reasons.get(name)] <= MANY and not passed_over(task, record, name)]


def passed_over(task: Task, record: Mapping[str, Any], name: str) -> bool:
    """Whether a number is null and not worth a word."""
    return task.numbers[name].quiet and record["metrics"].get(name) is None


def reasons_told(task: Task, record: Mapping[str, Any]) -> dict[str, str]:
    """{reason: which numbers of the task it keeps from being measured}, in words."""
    names: dict[str, list[str]] = {}
    for name, reason in record["null_reasons"].items():
        if record["status"] != "done" or not task.numbers[name].quiet:
            names.setdefault(reason, []).append(name)
    if record["status"] != "done":
        return dict.fromkeys(names, task.title)
    return {
        reason: ", ".join(task.numbers[name].label for name in them)
        if len(them) <= MANY
        else f"{task.title}, {len(them)} of {len(task.numbers)} numbers"
        for reason, them in names.items()
    }


def meaning(task: Task, metric: str, details: Mapping[str, Any]) -> str:
    """The meaning with this run's counts in it."""
    known = {name: details.get(name, "all") for name in ("images", "captions", "classes")}
    return task.numbers[metric].meaning.format(
        **{name: f"{value:,}" if isinstance(value, int) else value for name, value in known.items()}
    )

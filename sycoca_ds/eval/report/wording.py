"""Numbers and families in words, for the terminal table and the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sycoca_ds.eval.task import Task

FAMILIES = {"clip": "CLIP", "coca": "CoCa", "sycoca": "SyCoCa"}


def show(value: float | None, unit: str = "") -> str:
    """A number for people: one decimal for percent, three digits otherwise, a dash for null."""
    if value is None:
        return "-"
    shown = f"{value:.3f}" if unit != "%" and abs(value) < 10 else f"{value:.1f}"
    shown = shown[1:] if float(shown) == 0 and shown.startswith("-") else shown
    return f"{shown} %" if unit == "%" else shown


def meaning(task: Task, metric: str, details: Mapping[str, Any]) -> str:
    """The meaning with this run's counts in it."""
    known = {name: details.get(name, "all") for name in ("images", "captions", "classes")}
    return task.numbers[metric].meaning.format(
        **{name: f"{value:,}" if isinstance(value, int) else value for name, value in known.items()}
    )

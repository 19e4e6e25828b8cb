"""What a task of the evaluation is, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sycoca_ds.eval.runner.bench import Bench, Inputs


@dataclass(frozen=True)
class Wording:
    """How one number is told. `meaning` may use {images}, {captions}, {classes}."""

    label: str
    unit: str
    meaning: str
    quiet: bool = False
    """Terminal and page do not speak of it where it is null: hardly any data has it."""
    control: bool = False
    """It says what other numbers are worth, not what a model can do: `compare` tests it only where it is asked for."""


class NotApplicable(Exception):
    """The task cannot be run on this model or data; the message says why and becomes the reason beside the nulls."""


@dataclass
class Outcome:
    """What a task leaves."""

    numbers: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    """{number that is null: why}."""
    chance: dict[str, float] = field(default_factory=dict)
    """{number: what a model that knows nothing would get}."""
    details: dict[str, Any] = field(default_factory=dict)
    """Counts and choices behind the numbers, and examples for the report."""
    files: dict[str, Any] = field(default_factory=dict)
    """{file name: JSON value or dict of arrays (.npz)} to be written beside the results."""
    each: dict[str, np.ndarray] = field(default_factory=dict)
    """{number: what each picture alone comes to, (I,), NaN where it has nothing}, for comparisons over the same pictures; what
    beside them makes the number (weights, counts): comparison/numbers.py. Other pictures than the data's have their names under
    `paired.KEY`."""
    again: bool = False
    """Something that numbers are made by failed, and may not another time: the next start computes the task anew."""


@dataclass(frozen=True)
class Task:
    """One task: what it is called, which numbers it leaves, and how."""

    name: str
    title: str
    meaning: str
    numbers: Mapping[str, Wording]
    """Every number, in the order of results.json."""
    headlines: tuple[str, ...]
    """What is shown first; the rest stands under "all numbers"."""
    run: Callable[[Bench], Outcome]
    """Raises `NotApplicable`, or `UserError` for what a user can mend."""
    files: tuple[str, ...] = ()
    """What it always leaves in samples/."""
    each: bool = False
    """Whether it leaves some numbers picture by picture."""
    depends: Callable[[Inputs], dict[str, Any]] = lambda inputs: {}
    """What its numbers depend on beside weights, data, precision and seed."""


def with_bounds(numbers: Mapping[str, Wording], bounded: Callable[[str], bool] = lambda name: True) -> dict[str, Wording]:
    """The numbers, and behind each of the bounded ones NAME_low and NAME_high, its 95 % interval."""
    found: dict[str, Wording] = {}
    for name, wording in numbers.items():
        found[name] = wording
        for bound, side, quantile in (("low", "lower", 2.5), ("high", "upper", 97.5)) if bounded(name) else ():
            meaning = f"{quantile} % quantile over resampled images"
            found[f"{name}_{bound}"] = Wording(f"{wording.label}, {side} bound", wording.unit, meaning)
    return found

"""Requirements on results, as given to `--require`: `retrieval.i2t_r1>=40`. A small pure parser."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_pipeline.errors import UserError

OPERATORS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
PATTERN = re.compile(r"\s*([a-z]\w*)\.([A-Za-z]\w*)\s*(>=|<=|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Requirement:
    """One bound on one number of one task."""

    task: str
    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.task}.{self.metric} {self.comparison} {self.bound:g}"

    def met(self, value: float | None) -> bool:
        """False for a number that is missing or not finite: what was not measured is not passed."""
        return value is not None and bool(OPERATORS[self.comparison](value, self.bound))


@dataclass(frozen=True)
class Verdict:
    """A requirement with the number it was held against (None: not measured)."""

    requirement: Requirement
    value: float | None

    @property
    def passed(self) -> bool:
        return self.requirement.met(self.value)

    def __str__(self) -> str:
        measured = "not measured" if self.value is None else f"{self.value:.4g}"
        return f"{'pass' if self.passed else 'SHORT'}  {self.requirement}  measured {measured}"


def parse_requirement(text: str) -> Requirement:
    """`task.metric>=number`, also `<=`, `>`, `<`. UserError shows the form."""
    match = PATTERN.fullmatch(text)
    if not match:
        raise UserError(
            f"--require {text!r}: expected TASK.METRIC>=NUMBER, such as retrieval.i2t_r1>=40 (also <=, >, <; quote it "
            f"for the shell)"
        )
    task, metric, comparison, bound = match.groups()
    return Requirement(task, metric, comparison, float(bound))


def check_names(requirements: Sequence[Requirement], metrics: Mapping[str, Sequence[str]], tasks: Sequence[str]) -> None:
    """UserError for a requirement on an unknown task or metric, or on a task that is not run: found before hours are
    spent."""
    for requirement in requirements:
        if requirement.task not in metrics:
            raise UserError(f"--require {requirement}: no task '{requirement.task}'; there are {', '.join(metrics)}")
        if requirement.metric not in metrics[requirement.task]:
            raise UserError(
                f"--require {requirement}: task '{requirement.task}' has no number '{requirement.metric}'; it has "
                f"{', '.join(metrics[requirement.task])}"
            )
        if requirement.task not in tasks:
            raise UserError(f"--require {requirement}: task '{requirement.task}' is not among --tasks {' '.join(tasks)}")


def judge(requirements: Sequence[Requirement], numbers: Mapping[str, Mapping[str, float | None]]) -> list[Verdict]:
    """numbers: {task: {metric: value}}; a missing one judges as not measured."""
    return [Verdict(requirement, numbers.get(requirement.task, {}).get(requirement.metric)) for requirement in requirements]

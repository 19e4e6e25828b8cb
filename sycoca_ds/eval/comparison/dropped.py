"""Which numbers a comparison is without, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sycoca_ds.eval.comparison.folders import Evaluation
from sycoca_ds.eval.registry import METRICS
from sycoca_ds.eval.report.numbers import BOUNDS
from sycoca_ds.eval.report.wording import MANY

NOT_RUN = "the task was not run"
NOT_BY_PICTURE = "not made of what single pictures add, and so not tested over them"


@dataclass(frozen=True)
class Dropped:
    """A number without a comparison."""

    chosen: str
    """Set, "" where there is one."""
    task: str
    number: str
    whose: str
    """Checkpoints that lack it; "": all do."""
    why: str


def is_bound(task: str, number: str) -> bool:
    """Whether it is an end of another number's interval."""
    return number.endswith(BOUNDS) and number.rsplit("_", 1)[0] in METRICS[task]


def reason(evaluation: Evaluation, task: str, number: str) -> str:
    """Why an evaluation has nothing to compare a number by."""
    record = evaluation.results["tasks"].get(task)
    if record is None:
        return NOT_RUN
    if is_bound(task, number):
        return "the end of an interval; its number is compared with an interval of the difference"
    return record["null_reasons"].get(number, NOT_BY_PICTURE)


def told_dropped(dropped: Iterable[Dropped]) -> list[str]:
    """A line for all numbers of one reason."""
    found: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for one in dropped:
        found.setdefault((one.chosen, one.whose, one.why), {}).setdefault(one.task, []).append(one.number)
    lines = []
    for (chosen, whose, why), numbers in found.items():
        named = []
        for task, own in numbers.items():
            many = f"{len(own)} of {len(METRICS[task])} numbers of {task}"
            named.append(many if len(own) > MANY else ", ".join(f"{task}.{name}" for name in own))
        begin = f"{whose} has nothing to compare of" if whose else "not compared:"
        lines.append(f"{f'{chosen}: ' if chosen else ''}{begin} {', '.join(named)} ({why})")
    return lines

"""`python -m sycoca_ds.eval compare A B [C ...]`: checkpoints side by side, with paired tests over the same pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from data_pipeline.files import write_json, write_text
from data_pipeline.progress import Progress
from sycoca_ds.eval.comparison import PERMUTATIONS
from sycoca_ds.eval.comparison.dropped import Dropped, is_bound, told_dropped
from sycoca_ds.eval.comparison.folders import Evaluation, common_sets, different_settings
from sycoca_ds.eval.comparison.rows import partly_common, rows_of
from sycoca_ds.eval.comparison.testing import LEVEL, POWER, holm
from sycoca_ds.eval.registry import METRICS, TASKS
from sycoca_ds.eval.report.wording import show
from sycoca_ds.eval.stats.intervals import HOW


def compare_folders(
    folders: tuple[Path, ...],
    numbers: tuple[str, ...] = (),
    names: tuple[str, ...] = (),
    out: Path | None = None,
    seed: int = 0,
    permutations: int = PERMUTATIONS,
) -> int:
    """Prints the table, and writes it where that was asked for. Raises `UserError`."""
    if len(folders) < 2:
        raise UserError(f"compare: expected two folders or more, got {len(folders)}")
    if names and len(names) != len(folders):
        raise UserError(f"--names: {len(names)} names for {len(folders)} folders; expected one each")
    if permutations < 1:
        raise UserError(f"--permutations {permutations}: expected at least 1")
    wanted = wanted_numbers(numbers)
    evaluations, left = common_sets(list(folders))
    comparison = compare(evaluations, names or short_names(folders), wanted, seed, permutations, bool(numbers))
    comparison["notes"] = [*left, *comparison["notes"]]
    if not comparison["rows"]:
        why = "; ".join(comparison["notes"]) or "no task has been run in two of them"
        raise UserError(f"compare: no number that can be compared ({why}); evaluate again with the same --tasks")
    if out is not None:
        write_json(out / "comparison.json", comparison)
        write_text(out / "comparison.md", markdown(comparison))
    print_comparison(comparison)
    if out is not None:
        print(f"numbers: {out / 'comparison.json'}\ntable:   {out / 'comparison.md'}", flush=True)
    return 0


def short_names(folders: tuple[Path, ...]) -> tuple[str, ...]:
    """The parts of the paths in which they differ."""
    parts = [folder.resolve().parts for folder in folders]
    differing = [depth for depth in range(max(map(len, parts))) if len({part[depth : depth + 1] for part in parts}) > 1]
    named = tuple(
        "/".join(part[depth] for depth in differing if depth < len(part)) or str(folder)
        for part, folder in zip(parts, folders, strict=True)
    )
    return named if len(set(named)) == len(named) else tuple(map(str, folders))


def wanted_numbers(asked: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """{task: numbers}. Raises `UserError` for one that there is not."""
    if not asked:
        return {
            name: tuple(number for number in task.headlines if not task.numbers[number].control) for name, task in TASKS.items()
        }
    found: dict[str, list[str]] = {}
    for text in asked:
        task, _, number = text.partition(".")
        if task not in TASKS:
            raise UserError(f"--numbers {text}: no such task{nearest(task, TASKS)} (there are {' '.join(TASKS)})")
        if number and number not in METRICS[task]:
            raise UserError(f"--numbers {text}: {task} has no such number{nearest(number, METRICS[task])}")
        found.setdefault(task, []).extend([number] if number else (name for name in METRICS[task] if not is_bound(task, name)))
    return {task: tuple(dict.fromkeys(numbers)) for task, numbers in found.items()}


def compare(
    evaluations: list[dict[str, Evaluation]],
    names: tuple[str, ...],
    wanted: dict[str, tuple[str, ...]],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    asked: bool = False,
) -> dict[str, Any]:
    """What comparison.json holds.

    Args:
        evaluations: of each checkpoint {set: evaluation}, the same sets.
        asked: the numbers were asked for, and each that is missing is told; else only those that some checkpoint has.
    """
    rows: list[dict[str, Any]] = []
    dropped: list[Dropped] = []
    places = [(chosen, task) for chosen in evaluations[0] for task in wanted]
    with Progress("compare", total=len(places), unit="tasks") as bar:
        for chosen, task in places:
            found, missing = rows_of([each[chosen] for each in evaluations], names, chosen, task, wanted[task], seed, permutations)
            rows += found
            dropped += [number for number in missing if asked or number.whose]
            bar.advance()
    notes = [*told_dropped(dropped), *partly_common(rows, names)]
    tested = [against for row in rows for against in row["against"] if against is not None]
    for against, p in zip(tested, holm([against["p"] for against in tested]), strict=True):
        against["p_holm"] = p
    if len(tested) / (permutations + 1) > LEVEL:
        notes.append(
            f"{permutations} exchanges are too few for {len(tested)} tests: none by permutation can fall below {LEVEL:g} after Holm"
        )
    for number, other in enumerate(evaluations[1:], 1):
        for chosen, evaluation in other.items():
            settings = different_settings(evaluations[0][chosen], evaluation, wanted)
            if settings:
                notes.append(
                    f"{names[number]}{f', {chosen}' if chosen else ''}: not only the weights differ, also {'; '.join(settings)}"
                )
    checkpoints = [
        {"name": name, **next(iter(each.values())).results["checkpoint"], "evaluation": str(next(iter(each.values())).folder)}
        for name, each in zip(names, evaluations, strict=True)
    ]
    data = {chosen: evaluation.results["data"] for chosen, evaluation in evaluations[0].items()}
    how = {"interval": HOW, "level": LEVEL, "power": POWER, "correction": "Holm", "tests": len(tested), "seed": seed}
    return {"checkpoints": checkpoints, "data": data, "how": {**how, "permutations": permutations}, "rows": rows, "notes": notes}


def verdict(against: dict[str, Any]) -> str:
    if against["p_holm"] < LEVEL:
        return "higher" if against["difference"] > 0 else "lower"
    return "-"


HEADS = ("difference", "95 %", "p", "Holm", "could show", "test", "says")


def cells(against: dict[str, Any] | None, unit: str) -> list[str]:
    """What stands under `HEADS`."""
    if against is None:
        return ["-"] * len(HEADS)

    def bare(value: float | None) -> str:
        return show(value, unit).removesuffix(" %")

    signed = [("+" if value > 0 else "") + bare(value) for value in (against["difference"], against["low"], against["high"])]
    p = [f"{against[name]:.4f}" if against[name] >= 0.0001 else "<0.0001" for name in ("p", "p_holm")]
    return [signed[0], f"{signed[1]} to {signed[2]}", *p, bare(against["smallest"]), against["test"], verdict(against)]


def lines_of(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """(heads, rows): a row a comparison, with both values over the pictures that both have."""
    names = [checkpoint["name"] for checkpoint in comparison["checkpoints"]]
    several, many = len(comparison["data"]) > 1, len(names) > 2
    heads = [*(["set"] if several else []), "number", *names, *(["of"] if many else []), *HEADS]
    rows = []
    for row in comparison["rows"]:
        for place, against in enumerate(row["against"]):
            begin = [*([row["set"]] if several else []), f"{row['task']}.{row['number']}"]
            if place > 0:
                begin = [""] * len(begin)
            values = [""] * len(names) if many else ["-"] * len(names)
            if against is not None:
                values[0], values[place + 1] = (show(against[which], row["unit"]) for which in ("first", "second"))
            begin += values
            rows.append([*begin, *([names[place + 1]] if many else []), *cells(against, row["unit"])])
    return heads, rows


def told(comparison: dict[str, Any]) -> list[str]:
    how, first = comparison["how"], comparison["checkpoints"][0]["name"]
    return [
        f"Differences are from {first}, with intervals: {how['interval']}. p: two-sided; of a permutation test by "
        f"{how['permutations']:,} exchanges. Holm: corrected for all {how['tests']} tests of this table; below {how['level']:g} a "
        "difference is called one.",
        "Could show: the smallest difference that so many pictures would have shown in 80 of 100 draws of them, by one test at "
        f"{how['level']:g}; - where no picture tells the two apart. This is about other pictures, not about other trainings.",
        *comparison["notes"],
    ]


def print_comparison(comparison: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    heads, rows = lines_of(comparison)
    images = ", ".join(f"{name or 'data'}: {data['images']:,} images" for name, data in comparison["data"].items())
    table = Table(title=escape(f"Checkpoints side by side ({images})"), title_justify="left")
    for head in heads:
        table.add_column(
            escape(head),
            justify="left" if head in ("set", "number", "test", "says") else "right",
            overflow="fold",
            no_wrap=head == "95 %",
        )
    for row in rows:
        table.add_row(*map(escape, row))
    wide = Console(width=10_000)
    console = Console(width=max(Console().width, wide.measure(table).maximum))  # a cut number would be another one
    console.print(table)
    console = Console()
    for line in told(comparison):
        console.print(line, highlight=False, markup=False)


def markdown(comparison: dict[str, Any]) -> str:
    heads, rows = lines_of(comparison)
    lines = ["# Checkpoints side by side", ""]
    lines += [
        f"- {checkpoint['name']}: {checkpoint['path']}, step {checkpoint['step']}, digest {checkpoint['digest'][:12]}"
        for checkpoint in comparison["checkpoints"]
    ]
    lines += [
        "",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (heads, ["---"] * len(heads), *rows)),
        "",
    ]
    return "\n".join([*lines, *("\n" + line for line in told(comparison))]) + "\n"

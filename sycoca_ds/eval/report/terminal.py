"""An evaluation's numbers on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sycoca_ds.eval.compositions.wording import HOWS
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.report.galleries import composition_rows
from sycoca_ds.eval.report.wording import reasons_told, show, told_first


def print_table(results: dict, verdicts: list) -> None:
    """Headline numbers on the terminal: value, chance, requirement."""
    averaged = "" if results["checkpoint"]["ema_decay"] is None else ", average of its weights"
    required = {(v.requirement.task, v.requirement.metric): v for v in verdicts}
    table = Table(
        title=f"Checkpoint at step {results['checkpoint']['step']}{averaged}, {results['data']['images']:,} images",
        title_justify="left",
    )
    columns = [("task", "left"), ("number", "left"), ("value", "right"), ("chance", "right"), ("required", "left")]
    for name, side in columns if required else columns[:-1]:
        table.add_column(name, justify=side)
    for name, record in results["tasks"].items():
        task = TASKS[name]
        first = told_first(task, record)
        asked = [metric for owner, metric in required if owner == name and metric not in first]
        for position, metric in enumerate([*first, *asked]):
            wording, value = task.numbers[metric], record["metrics"][metric]
            verdict = required.get((name, metric))
            mark = (
                ""
                if verdict is None
                else f"{verdict.requirement.comparison} {verdict.requirement.bound:g} "
                + ("[green]pass[/]" if verdict.passed else "[bold red]SHORT[/]")
            )
            table.add_row(
                task.title if position == 0 else "",
                wording.label,
                show(value, wording.unit),
                show(record["chance"].get(metric), wording.unit) if metric in record["chance"] else "",
                *([mark] if required else []),
            )
        table.add_section()
    console = Console()
    console.print(table if table.row_count else table.title)
    masking = results["tasks"].get("masking", {}).get("details", {})
    if "told" in masking:
        console.print(f"masks: {masking['told']}", highlight=False, markup=False)
    similarities = masking.get("similarities", {})
    if len(similarities) > 1:
        Console(width=max(console.width, 120)).print(similarity_table(similarities))
    for similarity, reason in masking.get("similarities_left_out", {}).items():
        console.print(f"{similarity}: not measured, {reason}", highlight=False, markup=False)
    compositions = results["tasks"].get("compositionality", {})
    if compositions.get("status") == "done":
        Console(width=max(console.width, 120)).print(compositions_table(results))
        for line in compositions["details"]["told"]:
            console.print(line, highlight=False, markup=False)
    for task in ("alignment", "linear_probe", "vqa"):
        for line in results["tasks"].get(task, {}).get("details", {}).get("told", ()):
            console.print(line, highlight=False, markup=False)
    for name, record in results["tasks"].items():
        for reason, told in reasons_told(TASKS[name], record).items():
            console.print(f"{told}: not measured, {reason}", highlight=False, markup=False)


COMPARED = {
    "ignored": "caption_ignored",
    "higher": "own_caption_higher",
    "named": "named_over_unnamed",
    "other's": "other_named_over_unnamed",
    "no text": "no_text_named_over_unnamed",
    "untrained": "untrained_named_over_unnamed",
    "objects": "objects_over_background",
    "pointing": "pointing",
    "IoU": "word_iou",
}
"""Heads of the table of masking scores, and their numbers."""


def similarity_table(similarities: dict[str, dict[str, float]]) -> Table:
    """A row a masking score: its numbers beside those of the controls."""
    heads = {head: name for head, name in COMPARED.items() if any(name in numbers for numbers in similarities.values())}
    told = "named: over unnamed objects, then the same under another picture's caption, no text, of untrained weights"
    table = Table(title="Masking scores", title_justify="left", caption=told if "named" in heads else None, caption_justify="left")
    table.add_column("score", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for similarity, numbers in similarities.items():
        table.add_row(similarity, *(show(numbers.get(name)) for name in heads.values()))
    return table


def compositions_table(results: dict) -> Table:
    """A row a subset of a benchmark, a column a score."""
    table = Table(title="Compositions, % right", title_justify="left")
    table.add_column("benchmark", no_wrap=True)
    for head in (*HOWS, "chance"):
        table.add_column(head, justify="right", no_wrap=True)
    for label, values, chance in composition_rows(results):
        table.add_row(label, *values, chance)
    return table

"""DataComp's suite: which files stand for each of its 38 sets, and their average."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sycoca_ds.eval.datasets.registry import ASSOCIATION, CLASSIFICATION, Count, OfficialSet
from sycoca_ds.eval.exports.finding import exports_in, sets_of
from sycoca_ds.eval.exports.published import Published, mean
from sycoca_ds.eval.exports.tasklist import JACCARD, LISTED, METRICS, RECALL, Listed

SUITE = "datacomp"
CAPTIONED = {"Flickr": "flickr30k", "MSCOCO": "mscoco"}
"""Its two sets with captions, which it reads from Hugging Face; Karpathy's files and CLIP_benchmark's tars have these pictures."""
SAME = {"cifar10": "vtab-cifar10"}
"""Exports of CLIP_benchmark under another name with the same pictures."""
MISSING = "not here"
"""Status of a set whose files are not in the data root."""


def suite_of(data_root: Path) -> dict[str, tuple[OfficialSet, Listed]]:
    """{name: the set as this data root has it, its row}."""
    found, there = {}, exports_in(data_root)
    for row in LISTED:
        if row.primary == JACCARD:
            (entry,) = sets_of(("parquet:winogavil",), data_root, there)
            page = "https://huggingface.co/datasets/nlphuji/winogavil, as parquet"
            found[entry.name] = (dataclasses.replace(entry, title=row.title, tasks=ASSOCIATION, page=page), row)
            continue
        name = f"wds:{row.name}"
        if name not in there and f"wds:{SAME.get(row.name)}" in there:
            name = f"wds:{SAME[row.name]}"
        (entry,) = sets_of((CAPTIONED.get(row.title, name),), data_root, there)
        tasks = ("retrieval",) if row.primary == RECALL else CLASSIFICATION
        entry = dataclasses.replace(entry, tasks=tasks)
        if row.primary != RECALL and "test" in entry.counts:
            page = f"https://huggingface.co/datasets/djghosh/wds_{row.name}_test"
            entry = dataclasses.replace(entry, counts=entry.counts | {"test": Count(*row.counts)}, page=page)
        found[entry.name] = (entry, row)
    return found


def value_of(row: Listed, metrics: dict[str, dict[str, float | None]]) -> float | None:
    """Percent: the set's main metric from its tasks' numbers."""
    if row.primary == RECALL:
        both = [metrics.get("retrieval", {}).get(name) for name in ("i2t_r1", "t2i_r1")]
        return None if None in both else sum(both) / 2
    return metrics.get("association" if row.primary == JACCARD else "classification", {}).get(row.primary)


def summary(records: dict[str, dict[str, Any]], rows: dict[str, Listed], name: str, beside: Sequence[Published]) -> dict[str, Any]:
    """What OUT/datacomp.json holds.

    Args:
        records: of sets.json, by name of the set. rows: the row of each. name: of this model.

    Returns:
        average, percent, the mean of the main metrics of the sets that have one; sets (how many), of (38); rows; and of each
        published model its average over the same sets, `difference` over those that both have.
    """
    by_title = {row.title: own for own, row in rows.items()}
    found = []
    for row in LISTED:
        record = records.get(by_title.get(row.title, ""))
        value = value_of(row, record["metrics"]) if record else None
        reason = None
        if value is None:
            reasons = [why for of_task in (record or {}).get("null_reasons", {}).values() for why in of_task.values()]
            reason = (record or {}).get("reason") or next(iter(reasons), "not run")
        found.append(
            {
                "key": row.key,
                "title": row.title,
                "set": by_title.get(row.title),
                "metric": METRICS[row.primary],
                "value": value,
                "status": record["status"] if record else "not run",
                "reason": reason,
                "not_as_published": (record or {}).get("not_as_published", []),
            }
        )
    numbers = {row["title"]: row["value"] for row in found if row["value"] is not None}
    return {
        "name": name,
        "average": mean(numbers.values()),
        "sets": len(numbers),
        "of": len(LISTED),
        "numbers": numbers,
        "rows": found,
        "beside": [_beside(numbers, published) for published in beside],
    }


def _beside(numbers: dict[str, float], published: Published) -> dict[str, Any]:
    both = [title for title in numbers if title in published.percent]
    theirs = mean(published.percent[title] for title in both)
    return {
        "name": published.name,
        "numbers": published.percent,
        "sets": len(both),
        "average": theirs,
        "difference": None if theirs is None else mean(numbers[title] for title in both) - theirs,
        "average_of_its_own": mean(published.percent.values()),
        "sets_of_its_own": len(published.percent),
    }


def print_summary(content: dict[str, Any]) -> None:
    """A row a set that has a number, the average, and what has none."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    def shown(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.1f}"

    table = Table(title=f"DataComp: {content['sets']} of {content['of']} sets, percent", title_justify="left")
    table.add_column("set", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    table.add_column("here", justify="right", no_wrap=True)
    for published in content["beside"]:
        table.add_column(escape(published["name"]), justify="right", overflow="fold")
        table.add_column("here - it", justify="right", no_wrap=True)
    there = [row for row in content["rows"] if row["value"] is not None]
    for row in there:
        cells = []
        for published in content["beside"]:
            theirs = published["numbers"].get(row["title"])
            cells += [shown(theirs), shown(None if theirs is None else row["value"] - theirs, "+")]
        table.add_row(row["title"] + (" *" if row["not_as_published"] else ""), row["metric"], shown(row["value"]), *cells)
    table.add_section()
    cells = [cell for p in content["beside"] for cell in (shown(p["average"]), shown(p["difference"], "+"))]
    table.add_row("average of these", "", shown(content["average"]), *cells, style="bold")
    console = Console()
    Console(width=max(console.width, 100)).print(table)
    for row in there:
        if row["not_as_published"]:
            print(f"* {row['title']}: {'; '.join(row['not_as_published'])}")
    gone: dict[str, list[str]] = {}
    for row in content["rows"]:
        if row["value"] is None:
            gone.setdefault(row["reason"] if row["status"] != MISSING else MISSING, []).append(row["title"])
    for why, titles in gone.items():
        print(f"no number, {why}: {', '.join(titles)}")
    for published in content["beside"]:
        whole = f"{published['average_of_its_own']:.1f} over its {published['sets_of_its_own']} sets"
        print(f"{published['name']}: {published['sets']} of these {content['sets']}, averaged above; {whole}")
    if content["sets"] < content["of"]:
        print(f"DataComp's own average is over all {content['of']} sets: the one above is another number")

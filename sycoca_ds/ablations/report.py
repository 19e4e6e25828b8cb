"""Numbers of many runs to the paper's tables: means and spreads over seeds, rank agreement, differences between neighbours.

`tables` and `markdown` are pure functions of the record that ablations.json holds (record.py makes it). Of a run they read its
"numbers", {column: value or None}, and "missing", {column: why}; percent everywhere but CIDEr.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sycoca_ds.ablations.tables import ORDER_NOTE, PAPER_COLUMNS, PAPER_TITLES, ROWS, SOURCE, TITLES, Row, trained_as

METRICS = {
    "retrieval": ("mTR", "mIR"),
    "classification": ("top1",),
    "captioning": ("cider",),
    "compositionality": tuple(
        f"sugarcrepe_{subset}_{how}" for subset in ("swap_att", "swap_obj", "replace_rel") for how in ("cosine", "gain")
    ),
    "vqa": ("accuracy", "accuracy_other_picture"),
    "masking": tuple("named_over_unnamed other_named_over_unnamed caption_ignored pointing word_iou gap_named gap_unnamed".split()),
}
"""What is taken from each task of evaluate.py."""
LABELS = {"top1": "top-1", "cider": "CIDEr"} | {
    name: name.replace("_", " ") for task in ("compositionality", "vqa", "masking") for name in METRICS[task]
}
"""How the tables call a metric of evaluate.py, where not by its own name."""
NOT_AVERAGED = ("CIDEr", *(LABELS[name] for task in ("compositionality", "vqa", "masking") for name in METRICS[task]))
"""In another unit than percent, no measure of the model, or none of the paper's ablations: shown, but no part of avg."""
PAPER_MODELS = (
    "The paper's: models of CoCa-Base's size trained on CC3M, printed without a spread; its avg is the mean of eight columns."
)
FEWEST_RANKED = 3
"""Rows below which a rank correlation says nothing."""


def column_of(name: str, metric: str) -> str:
    """`flickr30k mTR`, `imagenet1k top-1`."""
    return f"{name} {LABELS.get(metric, metric)}"


def columns_of(name: str, tasks: Iterable[str]) -> list[str]:
    """Our columns of one evaluation set."""
    return [column_of(name, metric) for task in tasks for metric in METRICS[task]]


def averaged(columns: Sequence[str]) -> list[str]:
    """The columns that avg is the plain mean of."""
    return [column for column in columns if not column.endswith(NOT_AVERAGED)]


def paper_number(row: Row, column: str) -> float | None:
    """The paper's number of a column of ours with the same evaluation set and metric."""
    if not row.paper:
        return None
    named = {f"{name} {metric}": value for (name, metric), value in zip(PAPER_COLUMNS, row.paper, strict=True)}
    return named.get(column)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """n, mean and sample standard deviation (n - 1; None for one value); the mean of no values is None."""
    mean = statistics.fmean(values) if values else None
    return {"n": len(values), "mean": mean, "sd": statistics.stdev(values) if len(values) > 1 else None}


def ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, smallest first; equal values share the mean of theirs."""
    return [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation (Pearson's of the ranks); None where one side has only equal values, or too few rows."""
    if len(first) < FEWEST_RANKED or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return statistics.correlation(ranks(first), ranks(second))


def pooled_error(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Standard error of the difference of two means, from the pooled variance of both (n1 + n2 - 2 degrees of freedom); None
    where one side has fewer than two values."""
    if min(len(first), len(second)) < 2:
        return None
    degrees = len(first) + len(second) - 2
    squares = (len(first) - 1) * statistics.variance(first) + (len(second) - 1) * statistics.variance(second)
    return math.sqrt(squares / degrees * (1 / len(first) + 1 / len(second)))


def averages(runs: dict[str, Any], columns: Sequence[str]) -> list[float]:
    """avg of each seed that has all its columns."""
    rows = [[run["numbers"].get(column) for column in averaged(columns)] for run in runs.values()]
    return [statistics.fmean(row) for row in rows if row and None not in row]


def tables(record: dict[str, Any]) -> dict[str, Any]:
    """{"5": {"rows": [...], "rank_agreement": ..., "neighbours": [...]}, ...} of the rows in `record["rows"]`."""
    columns, found = record["columns"], {}
    chosen = [ROWS[name] for name in record["rows"]]
    for table in sorted({row.table for row in chosen}):
        rows = [row for row in chosen if row.table == table]
        runs = {row.name: record["runs"][trained_as(row)] for row in rows}
        avg = {row.name: averages(runs[row.name], columns) for row in rows}

        def cell(row: Row, column: str, runs: dict = runs) -> dict[str, Any]:
            values = [run["numbers"].get(column) for run in runs[row.name].values()]
            return spread([value for value in values if value is not None])

        lines = [
            {
                "row": row.name,
                "title": row.title,
                "trained_as": trained_as(row),
                "ours": {column: cell(row, column) for column in columns},
                "avg": spread(avg[row.name]),
                "paper": {column: number for column in columns if (number := paper_number(row, column)) is not None},
                "paper_avg": row.paper_avg,
            }
            for row in rows
        ]
        # a configuration that stands in a table more than once (Table 6's default) is one point of the correlation
        points = {trained_as(row): (statistics.fmean(avg[row.name]), row.paper_avg) for row in rows if avg[row.name] and row.paper}
        found[table] = {
            "rows": lines,
            "rank_agreement": {"rows": len(points), "spearman": spearman(*zip(*points.values(), strict=True)) if points else None},
            "neighbours": [
                {
                    "from": first.name,
                    "to": second.name,
                    "difference": statistics.fmean(avg[second.name]) - statistics.fmean(avg[first.name]),
                    "standard_error": pooled_error(avg[first.name], avg[second.name]),
                }
                for first, second in zip(rows, rows[1:], strict=False)
                if first.group == second.group and avg[first.name] and avg[second.name]
            ],
        }
    return found


def show(value: dict[str, Any], seeds: int, digits: int = 1) -> str:
    """`42.6 +- 0.3`; the number of seeds behind it where it is not `seeds`; a dash for nothing."""
    if value["mean"] is None:
        return "-"
    text = f"{value['mean']:.{digits}f}" + ("" if value["sd"] is None else f" +- {value['sd']:.{digits}f}")
    return text if value["n"] == seeds else f"{text} (n = {value['n']})"


def markdown_table(lines: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """One table, as Markdown: ours, the paper's number beside it where there is one, and both averages."""
    beside = lines[0]["paper"]
    header = ["row", "", "n"]
    for column in columns:
        header += [column, "(paper)"] if column in beside else [column]
    ours = lines[0]["paper_avg"] is None
    header += ["avg"] if ours else ["avg", "paper's avg"]
    text = ["| " + " | ".join(header) + " |", "|---|---|" + "---:|" * (len(header) - 2)]
    for line in lines:
        seeds = max([cell["n"] for cell in line["ours"].values()], default=0)
        cells = [f"`{line['row']}`", line["title"], str(seeds)]
        for column in columns:
            cells.append(show(line["ours"][column], seeds, digits=2 if column.endswith(NOT_AVERAGED) else 1))
            if column in beside:
                cells.append(f"{line['paper'][column]:.1f}")
        cells += [show(line["avg"], seeds), *([] if ours else [f"{line['paper_avg']:.1f}"])]
        text.append("| " + " | ".join(cells) + " |")
    return text


def neighbour_line(pair: dict[str, Any]) -> str:
    """One difference, against its standard error."""
    error, difference = pair["standard_error"], pair["difference"]
    text = f"- `{pair['from']}` to `{pair['to']}`: {difference:+.2f}"
    if error is None:
        return f"{text}; fewer than two seeds on one side, so no spread to compare it with"
    verdict = "exceeds it" if abs(difference) > error else "does not exceed it"
    return f"{text}, standard error {error:.2f}: {verdict}"


def paired_table(found: Mapping[str, Any], against: str, columns: Sequence[str], rows: Sequence[str]) -> list[str]:
    """A table of the rows that have something."""
    shown = [column for column in columns if any(column in found.get(row, {}) for row in rows)]
    lines = ["| row | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(shown)]
    for row in rows:
        if row in found:
            lines.append("| " + " | ".join([f"`{row}`", *(paired_cell(found[row].get(column)) for column in shown)]) + " |")
    if len(lines) == 2:
        return []
    return [
        f"Each row less `{against}` on the same pictures, mean over the seeds that both have: difference, its 95 % interval over "
        "resampled pictures (of these trainings; another seed may lie outside), and in how many of the seeds it is above 0.",
        "",
        *lines,
    ]


def paired_cell(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "-"
    return f"{told['difference']:+.2f} ({told['low']:+.2f} to {told['high']:+.2f}), {told['seeds_above']} of {told['seeds']}"


def missing_lines(record: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Why numbers are missing, equal reasons together."""
    places: dict[str, dict[str, list[str]]] = {}
    for name in names:
        for seed, run in record["runs"][trained_as(ROWS[name])].items():
            for reason in dict.fromkeys(run["missing"].values()):
                of = [column for column, why in run["missing"].items() if why == reason]
                what = f"`{name}`" if len(of) == len(record["columns"]) else f"`{name}` ({', '.join(of)})"
                places.setdefault(reason, {}).setdefault(what, []).append(seed)
    return [
        f"- {reason}: " + "; ".join(f"{what} seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}" for what, seeds in where.items())
        for reason, where in places.items()
    ]


def markdown(record: dict[str, Any]) -> str:
    """ablations.md: the paper's tables with ours beside. Depends on the numbers alone, not on when they were made."""
    columns, made = record["columns"], record["tables"]
    papers, own = ([table for table in made if (table in PAPER_TITLES) == printed] for printed in (True, False))
    named = [f"table{'s' * (len(papers) > 1)} {', '.join(papers)} of {SOURCE}"] if papers else []
    named += [f"{TITLES[table]}, a table of our own" for table in own]
    text = [
        f"# Ablations: {'; '.join(named)}",
        "",
        f"Ours: {record['training']}. A number is the mean over n seeds +- the sample standard deviation between them: recalls, "
        "accuracies and gaps in percent, CIDEr from 0 to 10, what masks and scores find as shares from 0 to 1. "
        f"mTR (image to text) and mIR (text to image) are means of R@1, R@5 and R@10; avg is the plain mean of "
        f"{', '.join(averaged(columns))}.",
        "",
        *([PAPER_MODELS, ""] if papers else []),
        *(f"- {line}" for line in record["evaluated"]),
    ]
    for table, content in made.items():
        lines, agreement = content["rows"], content["rank_agreement"]
        text += ["", f"## Table {table}: {TITLES[table]}", "", *markdown_table(lines, columns), ""]
        missing = missing_lines(record, [line["row"] for line in lines])
        if missing:
            text += ["Missing:", *missing, ""]
        if table not in PAPER_TITLES:
            pass  # nothing to agree with
        elif agreement["rows"] < FEWEST_RANKED:
            text.append(
                f"Rank agreement: too few configurations have an avg ({agreement['rows']}, at least {FEWEST_RANKED} are needed)."
            )
        elif agreement["spearman"] is None:
            text.append("Rank agreement: undefined, all averages of one side are equal.")
        else:
            text.append(
                f"Rank agreement: Spearman's correlation of our avg with the paper's over {agreement['rows']} configurations is "
                f"{agreement['spearman']:.2f}."
            )
        if table == "6":
            text += ["", ORDER_NOTE]
        if content["neighbours"]:
            text += [
                "",
                "Neighbouring rows: difference of the means of avg, and the standard error of that difference, from the variance "
                "between seeds pooled over the two rows. This is no test of significance.",
                "",
                *map(neighbour_line, content["neighbours"]),
            ]
        if "paired" in record:
            found = paired_table(record["paired"], record["against"], columns, [line["row"] for line in lines])
            text += ["", *found] if found else []
    if record["notes"]:
        text += ["", "## Notes", "", *(f"- {note}" for note in record["notes"])]
    return "\n".join([*text, "", "Every number of every seed, commands, versions, hardware and dates: ablations.json.", ""])

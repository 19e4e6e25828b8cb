"""What a run's checkpoints came to, over its steps: from a folder with an evaluation a step to curve.csv and curve.png."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

from data_pipeline.files import write_bytes
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.report.charts import INK
from sycoca_ds.eval.report.numbers import rows_of, write_csv

MOST_LINES, COLUMNS = 4, 3


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Rows of `numbers.COLUMNS`, by step, of all evaluations in FOLDER/step_*/ and FOLDER/step_*/SET/; what cannot be read is not
    there."""
    rows: list[dict[str, Any]] = []
    for place in sorted(folder.glob("step_*")):
        for path in [place / "results.json", *sorted(place.glob("*/results.json"))]:
            try:
                results = json.loads(path.read_text())
                rows += rows_of(results, "" if path.parent == place else path.parent.name)
            except (OSError, ValueError, KeyError, TypeError):
                continue
    return sorted(rows, key=lambda row: row["step"] or 0)


def write_curve(folder: Path) -> None:
    """FOLDER/curve.csv, and FOLDER/curve.png where there is a number."""
    rows = read_rows(folder)
    write_csv(folder / "curve.csv", rows)
    panels = panels_of(rows)
    if panels:
        write_bytes(folder / "curve.png", draw(panels))


def panels_of(rows: list[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """{title: {label: rows by step}}: headlines of each set and task, those of one unit in one picture, at most `MOST_LINES`."""
    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for chosen, task in dict.fromkeys((row["set"], row["task"]) for row in rows):
        own = [row for row in rows if (row["set"], row["task"]) == (chosen, task) and row["value"] is not None]
        if task not in TASKS or not own:
            continue
        there = {row["metric"] for row in own}
        names = [name for name in TASKS[task].headlines if name in there]
        for unit in dict.fromkeys(TASKS[task].numbers[name].unit for name in names):
            title = " ".join(part for part in (chosen, TASKS[task].title + (f", {unit}" if unit else "")) if part)
            shown = [name for name in names if TASKS[task].numbers[name].unit == unit][:MOST_LINES]
            panels[title] = {TASKS[task].numbers[name].label: [row for row in own if row["metric"] == name] for name in shown}
    return panels


def draw(panels: dict[str, dict[str, list[dict[str, Any]]]]) -> bytes:
    """PNG: values over steps with their intervals, chance dotted in the line's colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    high = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(4.4 * min(COLUMNS, len(panels)), 2.9 * high), dpi=130)
    FigureCanvasAgg(figure)
    for place, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(high, min(COLUMNS, len(panels)), place)
        for label, rows in lines.items():
            steps = [row["step"] for row in rows]
            (line,) = axes.plot(steps, [row["value"] for row in rows], marker="o", markersize=3, linewidth=1.3, label=label)
            bounded = [row for row in rows if row["low"] is not None]
            if bounded:
                bounds = [[row[side] for row in bounded] for side in ("low", "high")]
                axes.fill_between([row["step"] for row in bounded], *bounds, color=line.get_color(), alpha=0.12, linewidth=0)
            chance = next((row["chance"] for row in rows if row["chance"] is not None), None)
            if chance is not None:
                axes.axhline(chance, color=line.get_color(), linestyle=":", linewidth=0.9)
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=7)
        axes.grid(axis="y", color="#e8eaee", linewidth=0.7)
        axes.set_xlabel("step", fontsize=7, color=INK, loc="right")
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.legend(fontsize=6, frameon=False)
    figure.tight_layout(pad=0.8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", facecolor="white")
    return stream.getvalue()

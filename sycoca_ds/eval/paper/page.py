"""paper.json's content as a page and as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipeline.files import write_json, write_text
from sycoca_ds.eval.paper.cells import content
from sycoca_ds.eval.report.page import encodable, render, run_folder


def write_paper(out: str | Path) -> dict[str, Any]:
    """Writes OUT/paper.json, OUT/paper.md and OUT/paper.html from what is in OUT; returns the first.

    Raises:
        UserError: OUT is no folder of an evaluation on the paper's sets.
    """
    out = Path(out)
    paper = content(out)
    write_json(out / "paper.json", paper)
    write_text(out / "paper.md", encodable(markdown(paper)))
    name = run_name(paper)
    write_text(out / "paper.html", render("paper.html.j2", paper=paper, run_name=name, caveats=caveats(paper)))
    return paper


def run_name(paper: dict[str, Any]) -> str:
    run = run_folder(paper["evaluated"])
    return run.name if run else Path(paper["evaluated"]).name


def caveats(paper: dict[str, Any]) -> list[str]:
    """What makes numbers incomparable, a line each."""
    size = ""
    if paper["checkpoint"] is not None:
        size = (
            f" This checkpoint: {paper['checkpoint']['parameters'] / 1e6:,.1f} M parameters, {paper['checkpoint']['image_size']} px"
        )
        samples = paper["checkpoint"]["samples"]
        size += f", {samples:,} samples seen" if isinstance(samples, int) else ""
        size += (
            f", trained on {' '.join(paper['trained_on'])}." if paper["trained_on"] else ", trained on data that it does not name."
        )
    parts = {part["set"]: part for table in paper["tables"] for part in table["parts"]}
    other = [part["title"] for part in parts.values() if any("officially" in note for note in part["notes"])]
    lines = [
        "Size and data. A difference says something of the method only where model, data and samples seen are the paper's: "
        f"CoCa-Base at 224 px, CC12M for 20 epochs (Table 5: CC3M).{size}",
        "Intervals are ours, 95 %, over resampled test images; another training is not in them. The paper prints none.",
        "Fine-tuning. The paper's captions and answers come from models that were fine-tuned for them. Each set says what ours is.",
        "Servers. NoCaps' test split and VQA's test splits are scored by their servers alone.",
        "Classes. Accuracy is the mean over classes where papers usually report that; whether this one does is not known.",
    ]
    if other:
        lines.append(f"Other counts than the official ones: {', '.join(other)}. These are not the paper's sets.")
    return lines


def shown(value: float | None, sign: bool = False) -> str:
    return "-" if value is None else f"{value:+.1f}" if sign else f"{value:.1f}"


def markdown(paper: dict[str, Any]) -> str:
    """A table of Markdown a table of the paper, a row a number."""
    lines = [f"# {paper['family']} beside the paper ({paper['source']}): {run_name(paper)}", ""]
    lines += [f"{paper['measured']} of {paper['cells']} numbers were measured.", ""]
    lines += [f"- {line}" for line in caveats(paper)]
    for table in paper["tables"]:
        remark = f" {table['remark'][0].upper()}{table['remark'][1:]}." if table["remark"] else ""
        lines += ["", f"## Table {table['table']}: {table['title']}", "", f"The paper's models: {table['trained']}.{remark}", ""]
        heads = ["set", "number", "ours", "95 %", *(f"{model} (paper)" for model in table["models"])]
        heads += [f"difference to {table['compared']}"] if table["compared"] else []
        lines += [_line(heads), "|---|---|" + "---:|" * (len(heads) - 2)]
        for part in table["parts"]:
            lines += [_line(_cells(part["title"], row, table)) for row in part["rows"]]
        if table["average"]:
            mean = {**table["average"], "label": "mean of the columns", "low": None, "high": None}
            lines.append(_line(_cells("", mean, table)))
        notes = [f"- {part['title']}: {line}" for part in table["parts"] for line in _notes(part)]
        lines += ["", *notes] if notes else []
    lines += ["", "## The paper's other tables", ""]
    lines += [f"- {row['table']}: {row['reason']}." for row in paper["not_here"]]
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cells(title: str, row: dict[str, Any], table: dict[str, Any]) -> list[str]:
    bounds = "" if row["low"] is None or row["high"] is None else f"{shown(row['low'])} to {shown(row['high'])}"
    cells = [title, row["label"], shown(row["ours"]), bounds, *(shown(row["paper"].get(model)) for model in table["models"])]
    return [*cells, shown(row["difference"], sign=True)] if table["compared"] else cells


def _notes(part: dict[str, Any]) -> list[str]:
    notes = [*part["notes"], *([part["remark"]] if part["remark"] else [])]
    notes += [f"not measured: {part['reason']}"] if part["reason"] else []
    notes += [
        f"{row['label']} not measured: {row['reason']}" for row in part["rows"] if row["reason"] not in (None, part["reason"])
    ]
    if part["classes"]:
        told = (
            f"{side} classes: " + ", ".join(f"{row['class']} {row['right']:.0f} %" for row in part["classes"][side])
            for side in ("best", "worst")
        )
        notes += list(told)
    return notes

"""Our numbers in the cells of the paper's tables: from the results.json of the sets to paper.json's content.

Nothing is computed but differences, means of columns, and the paper's unit: a cell is a number of results.json times `Cell.scale`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.registry import SETS
from sycoca_ds.eval.paper.tables import FINE_TUNED, MODELS, NOT_HERE, PRIMARY, SOURCE, TABLES, VQA, Cell, PaperTable, Part

FORMAT = 1
CLASSES_SHOWN = 2
"""Best and worst classes of a set."""
ASK_VQA = (
    "no numbers in {}: evaluate.py --questions, or --sets vqa_v2, writes them there, with a checkpoint that was fine-tuned for "
    "questions; then python -m sycoca_ds.eval paper --out {}"
)
VQA_TYPES = ("accuracy_yes_no", "accuracy_number", "accuracy_other")
"""Numbers that VQA's questions have, and those of a drawn world have not."""
NOT_VQA = "its questions are not VQA's: none has the answer type yes/no, number or other"
VQA_QUESTIONS = 214_354
"""Of VQA v2's validation set."""


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file, or no JSON in it."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def sets_of(out: Path) -> dict[str, Any]:
    """{set: its record in sets.json}, with its results.json under `results` where it is done; empty where there is none. A
    results.json of another checkpoint than sets.json's is none of its numbers."""
    found, listed = {}, read_json(out / "sets.json") or {}
    digest = listed.get("made", {}).get("digest")
    for name, record in (listed.get("sets") or {}).items():
        if record["status"] == "done":
            path = out / record["folder"] / "results.json" if "folder" in record else None
            results = read_json(path) if path else None
            record = {**record, "results": results}
            if path and results is None:
                record |= {"status": "failed", "reason": f"{path} cannot be read"}
            elif results and digest not in (None, results["checkpoint"]["digest"]):
                record |= {"status": "failed", "reason": f"{path} is of another checkpoint; evaluate this one again"}
        found[name] = record
    return found


def content(out: Path) -> dict[str, Any]:
    """paper.json's content from the evaluations in OUT, OUT/vqa and OUT/caption.

    Raises:
        UserError: there is no sets.json in OUT.
    """
    listed = read_json(out / "sets.json")
    if listed is None or "sets" not in listed:
        raise UserError(f"{out}: no sets.json; expected a folder that evaluate.py --data-root ... --suite paper --out has left")
    own, tuned = sets_of(out), sets_of(out / FINE_TUNED)
    asked = _questions(out, own)
    results = next((record["results"] for record in own.values() if record.get("results") and record["status"] == "done"), None)
    family = results["checkpoint"]["family"] if results else "sycoca"
    tables = [_table(table, own, tuned, asked, out, family) for table in TABLES]
    rows = [row for table in tables for part in table["parts"] for row in part["rows"]]
    return {
        "format": FORMAT,
        "source": SOURCE,
        "evaluated": listed["checkpoint"],
        "trained_on": listed.get("trained_on"),
        "checkpoint": results["checkpoint"] if results else None,
        "provenance": results["provenance"] if results else None,
        "family": MODELS[family],
        "measured": sum(row["ours"] is not None for row in rows),
        "cells": len(rows),
        "sets_looked_at": len(own),
        "tables": tables,
        "not_here": [{"table": table, "reason": reason} for table, reason in NOT_HERE],
    }


def _questions(out: Path, own: dict[str, Any]) -> tuple[Path, dict] | None:
    """(folder, results.json) of answers to questions: of OUT/vqa itself, of OUT/vqa's sets and OUT's own, where sets.json says that
    they are done. The first whose questions are VQA's, else the first."""
    found = [(out / VQA, read_json(out / VQA / "results.json"))]
    for place, sets in ((out / VQA, sets_of(out / VQA)), (out, own)):
        record = sets.get("vqa_v2", {"status": "not run"})
        found.append((place / "vqa_v2", record["results"] if record["status"] == "done" else None))
    there = [(place, results) for place, results in found if results is not None]
    return next((pair for pair in there if _of_vqa(pair[1])), there[0] if there else None)


def _of_vqa(results: dict[str, Any]) -> bool:
    """Whether the questions have an answer type of VQA's: those of a drawn world have none."""
    metrics = results["tasks"].get(VQA, {}).get("metrics", {})
    return any(metrics.get(name) is not None for name in VQA_TYPES)


def _table(table: PaperTable, own: dict, tuned: dict, asked: tuple[Path, dict] | None, out: Path, family: str) -> dict[str, Any]:
    compared = MODELS[family] if MODELS[family] in table.models else "SyCoCa" if "SyCoCa" in table.models else None
    parts, place = [], 0
    for part in table.parts:
        printed = [{model: numbers[place + k] for model, numbers in table.numbers.items()} for k in range(len(part.cells))]
        place += len(part.cells)
        parts.append(_part(part, _source(part, own, tuned, asked, out), printed, compared))
    values = [row["ours"] for part in parts for row in part["rows"]]
    there = [value for value in values if value is not None]
    mean = statistics.fmean(there) if table.averaged and len(there) == len(values) else None
    return {
        "table": table.number,
        "title": table.title,
        "trained": table.trained,
        "unit": table.unit,
        "remark": table.remark,
        "models": list(table.models),
        "compared": compared,
        "parts": parts,
        "average": {
            "ours": mean,
            "paper": table.averages,
            "difference": _difference(mean, table.averages.get(compared)),
            "reason": None if mean is not None else f"{len(there)} of {len(values)} columns have a number",
        }
        if table.averaged
        else None,
    }


def _source(part: Part, own: dict, tuned: dict, asked: tuple[Path, dict] | None, out: Path) -> dict[str, Any]:
    """A record as of `sets_of`, with `page`, the set's page seen from OUT, and `notes`."""
    if part.name == VQA:
        place, asked = asked or (None, None)
        if asked is None or VQA not in asked["tasks"]:
            return {"status": "not run", "reason": ASK_VQA.format(out / VQA, out), "page": None, "notes": []}
        if not _of_vqa(asked):
            reason = asked["tasks"][VQA]["null_reasons"].get("accuracy", NOT_VQA)
            return {"status": "not run", "reason": f"{place}: {reason}", "page": None, "notes": []}
        questions = asked["tasks"][VQA]["details"].get("questions")
        other = [] if questions == VQA_QUESTIONS else [f"{questions or 0:,} questions, officially {VQA_QUESTIONS:,}"]
        notes = [f"checkpoint {asked['checkpoint']['path']}", *other]
        return {"status": "done", "results": asked, "page": f"{place.relative_to(out)}/report.html", "notes": notes}
    if part.beside and tuned.get(part.name, {}).get("status") == "done":
        record, below, notes = tuned[part.name], f"{part.beside}/", ["numbers of a fine-tuned checkpoint"]
        notes = [f"of the checkpoint {record['results']['checkpoint']['path']}, fine-tuned"]
    elif part.name in own:
        record, below = own[part.name], ""
        notes = ["of this checkpoint as it is, not fine-tuned for captions"] if part.beside else []
    else:
        return {"status": "not run", "reason": "not evaluated here so far", "page": None, "notes": []}
    if record["status"] != "done":
        return {**record, "page": None, "notes": []}
    data = record["results"]["data"]
    shared = data.get("images_in_training")
    notes += [f"from an export of the set, {data['folder']}"] if data["page"] != SETS[part.name].page else []
    notes += [f"{shared:,} of its images were trained on: too good"] if shared else []
    return {**record, "page": f"{below}{record['folder']}/report.html", "notes": [*notes, *record["not_as_published"]]}


def _part(part: Part, source: dict[str, Any], printed: list[dict[str, float]], compared: str | None) -> dict[str, Any]:
    entry, task, reason = SETS.get(part.name), None, source.get("reason")
    if source["status"] == "done":
        task = source["results"]["tasks"].get(part.task)
        reason = f"--tasks left {part.task} out" if task is None else None
        if task is not None and task["status"] != "done":
            task, reason = None, next(iter(task["null_reasons"].values()))
    rows = [
        _row(cell, task, reason, entry.primary if entry else "", paper, compared)
        for cell, paper in zip(part.cells, printed, strict=True)
    ]
    data = source["results"]["data"] if source["status"] == "done" else {}
    return {
        "set": part.name,
        "title": part.title,
        "task": part.task,
        "split": source.get("split", entry.evaluated if entry else None),
        "images": data.get("images"),
        "page": source["page"],
        "remark": part.remark,
        "notes": [*source["notes"], *how(part.task, task["details"] if task else {})],
        "reason": reason,
        "rows": rows,
        "classes": best_and_worst(task),
    }


def _row(
    cell: Cell, task: dict | None, reason: str | None, primary: str, paper: dict[str, float], compared: str | None
) -> dict[str, Any]:
    metric = primary if cell.metric == PRIMARY and not cell.kept_back else cell.metric
    label = f"{cell.label} ({metric.replace('_', ' ')})" if metric == "mean_per_class" else cell.label
    row = dict.fromkeys(("ours", "low", "high", "chance", "difference"))
    row = {"label": label, "metric": metric or None, "scale": cell.scale, "paper": paper, **row, "reason": cell.kept_back or reason}
    if task is None or cell.kept_back:
        return row
    value = task["metrics"].get(metric)
    if value is None:
        return row | {"reason": task["null_reasons"].get(metric, "this evaluation has no such number")}
    low, high = task.get("intervals", {}).get(metric) or (task["metrics"].get(f"{metric}_{side}") for side in ("low", "high"))
    chance = task["chance"].get(metric)
    ours = value * cell.scale
    return row | {
        "ours": ours,
        "low": None if low is None else low * cell.scale,
        "high": None if high is None else high * cell.scale,
        "chance": None if chance is None else chance * cell.scale,
        "difference": _difference(ours, paper.get(compared)),
    }


def _difference(ours: float | None, paper: float | None) -> float | None:
    return None if ours is None or paper is None else ours - paper


def how(task: str, details: dict[str, Any]) -> list[str]:
    """What of a task's choices numbers depend on, so that they differ from those of others; a line each."""
    if task == "classification" and "templates" in details:
        return [f"{details['classes']:,} class names in {details['templates']} template{'s' * (details['templates'] != 1)}"]
    if task == "retrieval" and details.get("captions_per_image", "all") != "all":
        return [f"the first {details['captions_per_image']} captions of each image, {details['captions']:,} in all"]
    if task == "captioning" and "decoding" in details:
        return [f"{details['decoding']}, at most {details['steps']} tokens; words split by {details['tokenizer']}"]
    return details.get("told", []) if task == "linear_probe" else []


def best_and_worst(task: dict[str, Any] | None) -> dict[str, list[dict[str, Any]]] | None:
    """{best, worst: [{class, right (percent)}]} of a task with rows a class; None without, or of too few classes."""
    rows = [row for row in (task or {}).get("details", {}).get("each_class", []) if row["right"] is not None]
    if len(rows) < 2 * CLASSES_SHOWN:
        return None
    order = sorted(rows, key=lambda row: -row["right"])  # stable: of equal ones the first class
    shown = [{"class": row["class"], "right": row["right"]} for row in order]
    return {"best": shown[:CLASSES_SHOWN], "worst": shown[: -CLASSES_SHOWN - 1 : -1]}

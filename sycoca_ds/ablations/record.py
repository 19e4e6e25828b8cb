"""ablations.json: every number of every seed, what made it, and the tables made of them. Built from what is on the disk."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from sycoca_ds.ablations.paired import compare
from sycoca_ds.ablations.report import METRICS, column_of, tables
from sycoca_ds.ablations.runs import EvaluationSet, Run, final_checkpoint, finished_evaluation, read_starts, sets_of
from sycoca_ds.ablations.tables import SOURCE, Row
from sycoca_ds.data.sources import Sources
from sycoca_ds.eval.suite import now

FORMAT = 1


def run_record(run: Run, sets: Sequence[EvaluationSet], failures: Mapping[str, str]) -> dict[str, Any]:
    """Everything known of a run: numbers, why others are missing, and what made them.

    Args:
        failures: {"training" or "evaluation on SET": reason} of this run.
    """
    trained, numbers, missing, evaluations = final_checkpoint(run) is not None, {}, {}, {}
    for chosen in sets_of(run, sets):
        results = finished_evaluation(run, chosen)
        if results is None:
            failed = failures.get("training") or failures.get(f"evaluation on {chosen.name}")
            numbers |= dict.fromkeys(chosen.columns)
            missing |= dict.fromkeys(chosen.columns, failed or ("not evaluated yet" if trained else "not trained yet"))
            continue
        tasks = {task: results["tasks"][task] for task in chosen.tasks}
        evaluations[chosen.name] = {key: results[key] for key in ("checkpoint", "data", "provenance")} | {"tasks": tasks}
        for task, record in tasks.items():
            for metric in METRICS[task]:
                column = column_of(chosen.title, metric)
                numbers[column] = record["metrics"][metric]
                if numbers[column] is None:
                    missing[column] = record["null_reasons"][metric]
    return {
        "folder": str(run.folder),
        "trained": trained,
        "numbers": numbers,
        "missing": missing,
        "starts": read_starts(run),
        "evaluations": evaluations,
    }


def make_record(
    rows: Sequence[Row],
    runs: Sequence[Run],
    sets: Sequence[EvaluationSet],
    failures: Mapping[tuple[str, int], Mapping[str, str]],
    against: str = "",
) -> dict[str, Any]:
    """The content of ablations.json.

    Args:
        failures: {(run's name, seed): as in `run_record`}.
        against: the row that the others are compared with over the same pictures; "" for none.
    """
    by_seed: dict[str, dict[str, Any]] = defaultdict(dict)
    for run in runs:
        known = run_record(run, sets, failures.get((run.name, run.seed), {}))
        if run.following:  # right behind the run that it goes on from, whose row it is part of
            first = by_seed[run.row][str(run.seed)]
            first["numbers"] |= known["numbers"]
            first["missing"] |= known["missing"]
            first[run.following.folder] = known
        else:
            by_seed[run.row][str(run.seed)] = known
    every = [record for seeds in by_seed.values() for record in seeds.values()]
    columns = list(dict.fromkeys(column for run in runs for chosen in sets_of(run, sets) for column in chosen.columns))
    for one in every:  # of what could not go on from its weights
        lacking = [column for column in columns if column not in one["numbers"]]
        one["numbers"] |= dict.fromkeys(lacking)
        one["missing"] |= dict.fromkeys(lacking, "a model without a text decoder neither captions nor answers")
    config = runs[0].config
    image, samples = config.model.image, Sources.of(config.data, check_tars=False).samples
    record: dict[str, Any] = {
        "format": FORMAT,
        "source": SOURCE,
        "date": now(),
        "command": sys.argv,
        "training": f"image encoder {image.layers} x {image.width} at {image.image_size} px, {length_line(runs)} of "
        f"{config.optim.global_batch_size} pairs from {samples} samples in {' '.join(config.data.train)}",
        "rows": [row.name for row in rows],
        "columns": columns,
        "evaluated": [evaluated_line(chosen, every) for chosen in sets],
        "notes": notes(every),
        "runs": dict(by_seed),
    }
    if against:
        record |= {"against": against, "paired": compare(rows, runs, sets, against)}
    return record | {"tables": tables(record)}


def length_line(runs: Sequence[Run]) -> str:
    """How long the rows train; at equal compute not all alike."""
    config = runs[0].config
    if config.optim.steps is None:
        return f"{config.optim.epochs:g} epochs"
    steps = {run.row: run.config.optim.steps for run in runs if run.following is None}
    least, most = min(steps.values()), max(steps.values())
    if least == most:
        return f"{most} steps"
    each = ", ".join(f"{row} {count}" for row, count in steps.items())
    return f"{least} to {most} steps at equal compute ({each})"


def evaluated_line(chosen: EvaluationSet, every: Sequence[Mapping[str, Any]]) -> str:
    """An evaluation set in words, with its size once a run has been evaluated on it."""
    text = f"{chosen.name}: {' and '.join(chosen.tasks)} on {chosen.data}"
    data = next((record["evaluations"][chosen.name]["data"] for record in every if chosen.name in record["evaluations"]), None)
    if data is not None:
        text += f", {data['images']} images, {data['captions']} captions"
    if chosen.label_set is not None:
        text += f", {len(chosen.label_set.classes)} classes"
    if data is not None and data["images_in_training"]:
        text += f"; {data['images_in_training']} of the images were trained on"
    return text


def notes(every: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before comparing rows."""
    starts, found = [start for record in every for start in record["starts"]], []
    for what, values in (
        ("commits of this repository", {start["git_sha"] or "unknown" for start in starts}),
        ("versions of torch", {str(start["versions"]["torch"]) for start in starts}),
        ("versions of DeepSpeed", {str(start["versions"]["deepspeed"]) for start in starts}),
        ("machines", {f"{start['hardware']['gpu'] or start['hardware']['cpu']}" for start in starts}),
    ):
        if len(values) > 1:
            found.append(f"The trainings were made with different {what} ({', '.join(sorted(values))}).")
    return found

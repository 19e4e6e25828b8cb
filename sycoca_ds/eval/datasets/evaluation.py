"""The tasks of the evaluation on the paper's sets: a folder a set, and sets.json with all of them, null where no number is."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from sycoca_ds.eval.bench import Bench, Inputs, SuiteOptions
from sycoca_ds.eval.datasets.names import Prompts, read_prompts
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.datasets.reading import Absent
from sycoca_ds.eval.datasets.registry import SETS, SUITES, OfficialSet, chosen, folder_of
from sycoca_ds.eval.datasets.submissions import result_rows, submit
from sycoca_ds.eval.kept import Kept
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.report.page import write_report
from sycoca_ds.eval.suite import evaluate_model, task_key
from sycoca_ds.eval.task import NotApplicable

DONE, MISSING, FAILED, UNKNOWN = "done", "not here", "failed", "not run"


@dataclass(frozen=True)
class Asked:
    """Which sets, and where."""

    data_root: Path
    entries: tuple[OfficialSet, ...]
    named: frozenset[str]
    """Those without which the evaluation is not what was asked for."""
    prompts: dict[str, Prompts]
    submissions: tuple[OfficialSet, ...] = ()
    """Those for whose server captions are written."""

    @classmethod
    def parse(
        cls, data_root: str, sets: Sequence[str], suite: str | None, prompts: str | None, submit: Sequence[str] = ()
    ) -> Asked:
        """Raises `UserError`: nothing asked for, no such set or suite, no such folder, bad prompts."""
        if suite is not None and suite not in SUITES:
            raise UserError(f"--suite {suite}: no such suite (there are {' '.join(SUITES)})")
        submissions = chosen(tuple(submit), "--submit")
        for entry in submissions:
            if not entry.submitted:
                takers = [name for name, other in SETS.items() if other.submitted]
                raise UserError(f"--submit {entry.name}: no server takes captions of it (there are {' '.join(takers)})")
        if not sets and suite is None and not submissions:
            raise UserError("--data-root: name sets by --sets, or --suite paper (python -m sycoca_ds.eval datasets shows them)")
        entries = chosen((*sets, *(SUITES[suite] if suite else ())))
        return cls(
            folder_of(data_root), tuple(entries), frozenset(sets), read_prompts(prompts) if prompts else {}, tuple(submissions)
        )


def evaluate_official(
    loaded: Any,
    checkpoint: str | Path,
    asked: Asked,
    out: str | Path,
    options: SuiteOptions,
    device: Any,
    command: Sequence[str] = (),
    shown: Callable[[dict[str, Any]], None] = lambda _: None,
    *,
    ema: bool = False,
) -> int:
    """Writes OUT/SET/ with results.json and report.html for every set that gives numbers, and OUT/sets.json after each; of captions
    for which a set has official ids also captions_SPLIT_results.json, as COCO's scorer and servers take it.

    Args:
        loaded, checkpoint, options, device, command, ema: as of `suite.evaluate_model`.
        shown: is given results.json's content of each set as it is finished.

    Returns:
        0, or 1 if a set was named and has no numbers, or is there and cannot be used.
    """
    out, records, short = Path(out), {}, False
    content = {"checkpoint": str(checkpoint), "data_root": str(asked.data_root), "sets": records}
    for entry in asked.entries:
        tasks = tuple(task for task in options.tasks if task in entry.tasks)
        if tasks:
            record = _evaluate_one(loaded, checkpoint, asked, entry, out, options, tasks, device, command, shown, ema)
        else:
            told = f"{entry.name} is for {', '.join(entry.tasks)}, which is none of --tasks {' '.join(options.tasks)}"
            record = _without(entry, UNKNOWN, told, ())
        records[entry.name] = record
        short |= record["status"] == FAILED or (record["status"] != DONE and entry.name in asked.named)
        if record["status"] != DONE:
            print(f"{entry.name}: no numbers, {record['reason']}", flush=True)
        write_json(out / "sets.json", content)
    for entry in asked.submissions:
        for split in entry.submitted:
            record = _submit(loaded, asked, entry, split, out, options, device, ema)
            content.setdefault("submissions", {})[f"{entry.name}/{split}"] = record
            short |= record["status"] != DONE
            write_json(out / "sets.json", content)
    print(f"numbers: {out / 'sets.json'}", flush=True)
    return int(short)


def _evaluate_one(
    loaded: Any,
    checkpoint: str | Path,
    asked: Asked,
    entry: OfficialSet,
    out: Path,
    options: SuiteOptions,
    tasks: tuple[str, ...],
    device: Any,
    command: Sequence[str],
    shown: Callable[[dict[str, Any]], None],
    ema: bool,
) -> dict[str, Any]:
    place = out / entry.name
    print(f"{entry.name}: {entry.title}, split {entry.evaluated}", flush=True)
    try:
        collection = OfficialCollection(entry, asked.data_root, loaded.config.model.image.image_size)
        labels = collection.labels(asked.prompts.get(entry.name))
        probe = collection.probe_data() if "linear_probe" in tasks else None
        for line in (*collection.facts["not_as_published"], *collection.facts["notes"]):
            print(f"{entry.name}: {line}", flush=True)
        results, _ = evaluate_model(
            loaded,
            checkpoint,
            collection,
            labels,
            place,
            dataclasses.replace(options, tasks=tasks),
            device,
            command,
            probe=probe,
            ema=ema,
        )
    except Absent as error:
        return _without(entry, MISSING, str(error), tasks)
    except UserError as error:  # another set may be whole
        return _without(entry, FAILED, str(error), tasks)
    if results["tasks"].get("captioning", {}).get("status") == "done" and collection.read.ids:
        written = json.loads((place / "samples/captions.json").read_text())
        rows = result_rows([row["image_id"] for row in written], [row["caption"] for row in written])
        write_json(place / f"captions_{entry.evaluated}_results.json", rows)
    write_report(place / "report.html", results, [], collection, place, checkpoint, loaded.config.data.train)
    shown(results)
    return {
        "status": DONE,
        "folder": place.name,
        "split": entry.evaluated,
        "primary": entry.primary if labels is not None else None,
        "counts": collection.facts["counts"],
        "not_as_published": collection.facts["not_as_published"],
        "metrics": {task: record["metrics"] for task, record in results["tasks"].items()},
        "null_reasons": {task: record["null_reasons"] for task, record in results["tasks"].items()},
    }


def _submit(
    loaded: Any, asked: Asked, entry: OfficialSet, split: str, out: Path, options: SuiteOptions, device: Any, ema: bool
) -> dict[str, Any]:
    """A file for the server of a set, and what is told of it."""
    place = out / entry.name
    print(f"{entry.name}: captions for its server, split {split}", flush=True)
    try:
        collection = OfficialCollection(entry, asked.data_root, loaded.config.model.image.image_size, split)
        for line in collection.facts["not_as_published"]:
            print(f"{entry.name}, split {split}: {line}", flush=True)
        bench = Bench(loaded.model, loaded.config, loaded.tokenizer, collection, device, Inputs(options))
        key = task_key("captioning", f"{loaded.digest}{' ema' if ema else ''}", collection.digest, bench.inputs)
        bench.kept = Kept(place / "kept" / f"submission_{split}", key)
        record = {"status": DONE, **submit(bench, place)}
    except (UserError, NotApplicable) as error:
        status = MISSING if isinstance(error, Absent) else FAILED
        print(f"{entry.name}, split {split}: no captions, {error}", flush=True)
        return {"status": status, "reason": str(error)}
    told = f", {record['empty']:,} of them empty" if record["empty"] else ""
    print(f"for its server: {place / record['file']}, {record['images']:,} captions{told}", flush=True)
    return record


def _without(entry: OfficialSet, status: str, reason: str, tasks: tuple[str, ...]) -> dict[str, Any]:
    """A set without numbers: each is null, with the reason."""
    return {
        "status": status,
        "reason": reason,
        "split": entry.evaluated,
        "metrics": {task: dict.fromkeys(TASKS[task].numbers) for task in tasks},
        "null_reasons": {task: dict.fromkeys(TASKS[task].numbers, reason) for task in tasks},
    }

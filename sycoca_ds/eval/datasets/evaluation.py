"""The tasks of the evaluation on the paper's sets: a folder a set, and sets.json with all of them, null where no number is."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, one_line
from data_pipeline.files import write_json
from sycoca_ds.eval.datasets.names import Prompts, read_prompts
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.datasets.reading import Absent
from sycoca_ds.eval.datasets.registry import ASSOCIATION, PAPER, SETS, SUITES, OfficialSet, chosen, folder_of
from sycoca_ds.eval.datasets.submissions import no_server_takes, result_rows, submit, submit_answers
from sycoca_ds.eval.exports.datacomp import MISSING, SUITE, print_summary, suite_of, summary
from sycoca_ds.eval.exports.finding import sets_of
from sycoca_ds.eval.exports.published import Published, read_beside
from sycoca_ds.eval.exports.tasklist import Listed
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.paper.cells import read_json
from sycoca_ds.eval.paper.cells import sets_of as sets_of_folder
from sycoca_ds.eval.paper.page import write_paper
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.report.page import write_report
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.suite import FORMAT, evaluate_model
from sycoca_ds.eval.task import NotApplicable
from sycoca_ds.eval.tasks.vqa import NO_ANSWERS
from sycoca_ds.eval.vqa.items import Request

DONE, FAILED, UNKNOWN = "done", "failed", "not run"
NO_NUMBERS = ("tasks", "batch_size", "gallery")
"""Options that change no number of a task."""
NOTHING_SAID = Request("")
"""Of how questions are asked."""


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
    listed: dict[str, Listed] = field(default_factory=dict)
    """{set: its row in DataComp's list}, where its average is asked for."""
    beside: tuple[Published, ...] = ()
    """Published numbers to stand beside."""
    suite: str | None = None
    request: Request = NOTHING_SAID
    """How questions are asked; of which files is each set's affair."""

    @classmethod
    def parse(
        cls,
        data_root: str,
        sets: Sequence[str],
        suite: str | None,
        prompts: str | None,
        submit: Sequence[str] = (),
        beside: Sequence[str] = (),
        request: Request = NOTHING_SAID,
    ) -> Asked:
        """Raises `UserError`: nothing asked for, no such set or suite, no such folder, bad prompts or published numbers."""
        if suite is not None and suite not in (*SUITES, SUITE):
            raise UserError(f"--suite {suite}: no such suite (there are {' '.join((*SUITES, SUITE))})")
        if beside and suite != SUITE:
            raise UserError(f"--beside goes with --suite {SUITE}")
        submissions = chosen(tuple(submit), "--submit")
        for entry in submissions:
            if not entry.submitted:
                takers = [name for name, other in SETS.items() if other.submitted]
                raise UserError(f"--submit {entry.name}: no server takes captions of it (there are {' '.join(takers)})")
        if not sets and suite is None and not submissions:
            shows = "python -m sycoca_ds.eval datasets shows what is there"
            raise UserError(f"--data-root: name sets by --sets, or --suite paper or datacomp ({shows})")
        root = folder_of(data_root)
        named = sets_of((*sets, *SUITES.get(suite, ())), root)
        listed = suite_of(root) if suite == SUITE else {}
        entries = {entry.name: entry for entry in named} | {name: entry for name, (entry, _) in listed.items()}
        return cls(
            root,
            tuple(entries.values()),
            frozenset(entry.name for entry in named[: len(dict.fromkeys(sets))]),
            read_prompts(prompts, tuple(entries.values())) if prompts else {},
            tuple(submissions),
            {name: row for name, (_, row) in listed.items()},
            tuple(map(read_beside, beside)),
            suite,
            request,
        )

    def requested(self, collection: OfficialCollection) -> Request | None:
        """What is asked of a set's pictures, if anything is."""
        asked = collection.read.asked
        return asked and dataclasses.replace(self.request, questions=asked.questions, answers=self.request.answers or asked.answers)


def tasks_of(entry: OfficialSet, options: SuiteOptions) -> tuple[str, ...]:
    """What is asked of a set: of what it is for what the options name; of WinoGAViL, which is for one task alone, that."""
    return tuple(task for task in options.tasks if task in entry.tasks) or (entry.tasks if entry.tasks == ASSOCIATION else ())


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
    resources: Resources | None = None,
) -> int:
    """Writes OUT/SET/ with results.json and report.html for every set that gives numbers, and OUT/sets.json after each, in which
    sets of earlier calls on the same checkpoint stay, of the suite paper also OUT/paper.html; of captions for which a set has
    official ids also captions_SPLIT_results.json, as COCO's scorer and servers take it.

    Args:
        loaded, checkpoint, options, device, command, ema, resources: as of `suite.evaluate_model`.
        shown: is given results.json's content of each set as it is finished.

    Returns:
        0, or 1 if a set was named and has no numbers, or is there and cannot be used, or something beside its numbers could not
        be written.
    """
    out, short, resources = Path(out), False, resources or Resources()
    content = {"checkpoint": str(checkpoint), "data_root": str(asked.data_root), "made": _made(loaded, options, ema)}
    content |= {"trained_on": list(loaded.config.data.train), **earlier_records(out, content)}
    records = content["sets"]
    for entry in asked.entries:
        tasks = tasks_of(entry, options)
        if tasks == ("vqa",) and entry.name not in asked.named and not loaded.config.model.fusion:
            record = _without(entry, UNKNOWN, NO_ANSWERS, tasks)
        elif tasks:
            record = _evaluate_one(loaded, checkpoint, asked, entry, out, options, tasks, device, command, shown, ema, resources)
        else:
            told = f"{entry.name} is for {', '.join(entry.tasks)}, which is none of --tasks {' '.join(options.tasks)}"
            record = _without(entry, UNKNOWN, told, ())
        records[entry.name] = record
        short |= record["status"] == FAILED or (record["status"] != DONE and entry.name in asked.named)
        short |= bool(record.get("not_written"))
        if record["status"] != DONE and not (record["status"] == MISSING and entry.name in asked.listed):
            print(f"{entry.name}: no numbers, {record['reason']}", flush=True)
        if resources.team.leads:
            write_json(out / "sets.json", content)
            if asked.suite == PAPER:
                short |= bool(_written("paper.html", lambda: write_paper(out)))
    for entry in asked.submissions:
        for split in entry.submitted:
            record = _submit(loaded, asked, entry, split, out, options, device, ema, resources)
            content.setdefault("submissions", {})[f"{entry.name}/{split}"] = record
            short |= record["status"] != DONE
            if resources.team.leads:
                write_json(out / "sets.json", content)
    if asked.listed and resources.team.leads:
        averaged = summary(records, asked.listed, str(checkpoint), asked.beside)
        write_json(out / "datacomp.json", averaged)
        print_summary(averaged)
    print(f"numbers: {out / 'sets.json'}", flush=True)
    if asked.suite == PAPER:
        print(f"beside the paper: {out / 'paper.html'}", flush=True)
    return int(short)


def _made(loaded: Any, options: SuiteOptions, ema: bool) -> dict[str, Any]:
    """What numbers of several sets have in common: those of other weights, or made otherwise, stand in no list together."""
    of_numbers = {name: value for name, value in dataclasses.asdict(options).items() if name not in NO_NUMBERS}
    return json.loads(json.dumps({"format": FORMAT, "digest": loaded.digest, "ema": ema, "options": of_numbers}))


def earlier_records(out: Path, content: dict[str, Any]) -> dict[str, Any]:
    """`sets` and `submissions` of earlier calls in OUT/sets.json, if they are of the same checkpoint, made alike, of the same
    data root; of sets with numbers those whose folder still has them."""
    listed = read_json(out / "sets.json") or {}
    if listed.get("made") != content["made"] or listed.get("data_root") != content["data_root"]:
        return {"sets": {}}
    there = {name for name, record in sets_of_folder(out).items() if record["status"] == listed["sets"][name]["status"]}
    submissions = {"submissions": listed["submissions"]} if "submissions" in listed else {}
    return {"sets": {name: record for name, record in listed["sets"].items() if name in there}, **submissions}


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
    resources: Resources,
) -> dict[str, Any]:
    place = out / entry.folder
    print(f"{entry.name}: {entry.title}, split {entry.evaluated}", flush=True)
    try:
        with resources.team.together():
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
            questions=asked.requested(collection),
            ema=ema,
            resources=resources,
        )
    except Absent as error:
        return _without(entry, MISSING, str(error), tasks)
    except UserError as error:  # another set may be whole
        return _without(entry, FAILED, str(error), tasks)
    if results is None:  # rank 0 has them
        return {"status": DONE}
    handed_in = results["tasks"].get("captioning", {}).get("status") == "done" and collection.read.ids
    unfit = no_server_takes(collection.read.ids) if handed_in else ""
    if unfit:
        print(f"{entry.name}: no captions for servers, {unfit}", flush=True)

    def hand_in() -> None:
        written = json.loads((place / "samples/captions.json").read_text())
        rows = result_rows([row["image_id"] for row in written], [row["caption"] for row in written])
        write_json(place / f"captions_{entry.evaluated}_results.json", rows)

    def write_page() -> None:
        write_report(place / "report.html", results, [], collection, place, checkpoint, loaded.config.data.train)

    not_written = _written(f"{entry.name}: captions for servers", hand_in) if handed_in and not unfit else []
    not_written += _written(f"{entry.name}: report.html", write_page)
    not_written += _written(f"{entry.name}: table or board", lambda: shown(results))
    return {
        "status": DONE,
        "folder": place.name,
        "split": entry.evaluated,
        "primary": entry.primary if labels is not None or tasks == ASSOCIATION else None,
        "counts": collection.facts["counts"],
        "not_as_published": collection.facts["not_as_published"],
        "not_written": not_written,
        "metrics": {task: record["metrics"] for task, record in results["tasks"].items()},
        "null_reasons": {task: record["null_reasons"] for task, record in results["tasks"].items()},
    }


def _written(what: str, write: Callable[[], object]) -> list[str]:
    """Nothing, or a line on why it was not written: what stands beside numbers that are on disk costs neither these nor other
    sets."""
    try:
        write()
    except Exception as error:  # of strangers' captions and names nobody knows what a page makes
        traceback.print_exc(file=sys.stderr)
        line = f"{what} not written, {one_line(error)}"
        print(line, file=sys.stderr, flush=True)
        return [line]
    return []


def _submit(
    loaded: Any,
    asked: Asked,
    entry: OfficialSet,
    split: str,
    out: Path,
    options: SuiteOptions,
    device: Any,
    ema: bool,
    resources: Resources,
) -> dict[str, Any]:
    """A file for the server of a set, and what is told of it."""
    place, team, what = out / entry.folder, resources.team, "answers" if entry.tasks == ("vqa",) else "captions"
    print(f"{entry.name}: {what} for its server, split {split}", flush=True)
    try:
        with team.together():
            collection = OfficialCollection(entry, asked.data_root, loaded.config.model.image.image_size, split)
        for line in collection.facts["not_as_published"]:
            print(f"{entry.name}, split {split}: {line}", flush=True)
        weights = f"{loaded.digest}{' ema' if ema else ''}"
        with team.together():
            request = asked.requested(collection)
            inputs = Inputs(options, questions=request and request.open(collection))
        bench = Bench(loaded.model, loaded.config, loaded.tokenizer, collection, device, inputs, resources, weights)
        if not team.leads:
            team.serve(bench)
            return {"status": DONE}
        with team.conducting():
            record = {"status": DONE, **(submit_answers if request else submit)(bench, place)}
    except (UserError, NotApplicable) as error:
        status = MISSING if isinstance(error, Absent) else FAILED
        print(f"{entry.name}, split {split}: no {what}, {error}", flush=True)
        return {"status": status, "reason": str(error)}
    told = f", {record['empty']:,} of them empty" if record["empty"] else ""
    print(f"for its server: {place / record['file']}, {record['written']:,} {what}{told}", flush=True)
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

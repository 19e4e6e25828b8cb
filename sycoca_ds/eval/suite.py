"""Runs the tasks on one checkpoint and one data set folder; finished tasks are kept and reused.

Under OUT: results.json (everything a reader needs), tasks/<task>.json (one finished task each), samples/ (captions,
rebuilt patches), each/<task>.npz (numbers picture by picture: eval/stats/paired.py). What a task has done so far is in the cache.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import time
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import atomic_path, write_json
from sycoca_ds.config import MaskingConfig
from sycoca_ds.data.sources import Sources
from sycoca_ds.eval import provenance
from sycoca_ds.eval.alignment.naming import background_of
from sycoca_ds.eval.collection import Collection, PictureSet
from sycoca_ds.eval.comparison.numbers import additive_numbers, bounds
from sycoca_ds.eval.compositions.reading import read_compositions
from sycoca_ds.eval.labels import LabelSet
from sycoca_ds.eval.options import MOST_BEAMS, SuiteOptions
from sycoca_ds.eval.probe.data import ProbeData
from sycoca_ds.eval.probe.features import FEATURES
from sycoca_ds.eval.regions.patches import read_regions
from sycoca_ds.eval.regions.segments import read_segments
from sycoca_ds.eval.registry import METRICS, TASKS
from sycoca_ds.eval.report.numbers import rows_of, write_csv
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.scorers.caption_tokens import java_version
from sycoca_ds.eval.scorers.spice import spice_jars
from sycoca_ds.eval.stats.paired import KEY, each_file
from sycoca_ds.eval.task import NotApplicable, Outcome
from sycoca_ds.eval.vqa.items import QuestionPictures, Request
from sycoca_ds.model.shapes import our_shapes

SIMILARITIES: tuple[str, ...] = typing.get_args(typing.get_type_hints(MaskingConfig)["similarity"])
WORDS: tuple[str, ...] = typing.get_args(typing.get_type_hints(MaskingConfig)["words"])
MOST_COMPARED = 20_000_000
"""Training samples above which nobody waits for the comparison with the evaluated images."""
FORMAT = 8
"""Raised when a change of this code changes numbers or the shape of results.json: older results are then computed
again."""


def task_key(task: str, checkpoint: str, data: str, inputs: Inputs) -> str:
    """Names everything the task's result depends on. Equal key, equal result.

    Args:
        checkpoint, data: digests of the weights and of the data set's manifest.
    """
    options = inputs.options
    parts: dict[str, Any] = {
        "format": FORMAT,
        "task": task,
        "checkpoint": checkpoint,
        "data": data,
        "precision": options.precision,
        "seed": options.seed,
        "gallery": options.gallery,
        "torch": torch.__version__,
        **TASKS[task].depends(inputs),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plain_number(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else float(value)


def record(task: str, key: str, outcome: Outcome, seconds: float, seed: int = 0) -> dict[str, Any]:
    """A finished task as JSON. Every number of the task is present; a null has its reason."""
    metrics = {name: plain_number(outcome.numbers.get(name)) for name in METRICS[task]}
    reasons = {name: outcome.reasons.get(name, "not finite") for name, value in metrics.items() if value is None}
    return {
        "key": key,
        "status": "done",
        "again": outcome.again,
        "metrics": metrics,
        "null_reasons": reasons,
        "chance": outcome.chance,
        "intervals": intervals(task, metrics, outcome, seed),
        "details": outcome.details,
        "seconds": round(seconds, 2),
        "finished": now(),
    }


def intervals(task: str, metrics: dict[str, float | None], outcome: Outcome, seed: int) -> dict[str, tuple[float, float]]:
    """{number: (low, high)}, 95 % over resampled pictures: those that the task has, and those of what it left by picture."""
    made = additive_numbers(task, {name: each for name, each in outcome.each.items() if name != KEY}, METRICS[task])
    own = {name: (metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for name in metrics}
    own = {name: pair for name, pair in own.items() if None not in pair}
    missing = {name: number for name, number in made.items() if name not in own and metrics[name] is not None}
    found = {**bounds(missing, seed), **own}
    return {name: found[name] for name in metrics if name in found}


def skipped(task: str, key: str, reason: str) -> dict[str, Any]:
    """A task that cannot be run here: all numbers null, with the reason."""
    return {
        "key": key,
        "status": "not run",
        "again": True,
        "metrics": dict.fromkeys(METRICS[task]),
        "null_reasons": dict.fromkeys(METRICS[task], reason),
        "chance": {},
        "intervals": {},
        "details": {},
        "seconds": 0.0,
        "finished": now(),
    }


def now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def result_files(out: Path, task: str) -> list[Path]:
    """The extra files a task leaves under `out`."""
    each = [each_file(out, task)] if TASKS[task].each else []
    return [out / "samples" / name for name in TASKS[task].files] + each


def finished_task(out: Path, task: str, key: str) -> dict[str, Any] | None:
    """The kept record of the task if it has this key, its files are there, and nothing in it failed that may not again."""
    try:
        kept = json.loads((out / "tasks" / f"{task}.json").read_text())
        if kept["key"] == key and not kept["again"] and all(path.is_file() for path in result_files(out, task)):
            return kept
    except (OSError, ValueError, KeyError, TypeError):
        pass  # unreadable is the same as absent: the task is computed again
    return None


def save_files(out: Path, task: str, outcome: Outcome, keys: Sequence[str]) -> None:
    """Args:
    keys: names of the pictures, in the order of `outcome.each`.
    """
    (out / "tasks" / f"{task}.json").unlink(missing_ok=True)  # of other settings: it would be believed beside these files
    files = {out / "samples" / name: value for name, value in outcome.files.items()}
    if TASKS[task].each:
        files[each_file(out, task)] = {KEY: np.array(keys), **outcome.each}
    for path, value in files.items():
        if path.suffix == ".npz":
            with atomic_path(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, **value)
        else:
            write_json(path, value)


def run_tasks(bench: Bench, checkpoint: str, out: Path) -> dict[str, dict[str, Any]]:
    """{task: record} in the order of `options.tasks`; each is on disk as soon as it is finished."""
    records = {}
    for task in bench.options.tasks:
        key = task_key(task, checkpoint, bench.collection.digest, bench.inputs)
        kept = finished_task(out, task, key)
        if kept is None:
            start = time.monotonic()
            try:
                outcome = TASKS[task].run(bench)
            except NotApplicable as reason:
                kept = skipped(task, key, str(reason))
            else:
                save_files(out, task, outcome, [picture.image_id for picture in bench.collection.pictures])
                kept = record(task, key, outcome, time.monotonic() - start, bench.options.seed)
            kept["reused"] = False
            write_json(out / "tasks" / f"{task}.json", kept)
        else:
            kept["reused"] = True
        records[task] = kept
    return records


def evaluate_model(
    loaded: Any,
    checkpoint: str | Path,
    data: str | Path | PictureSet | None,
    labels: LabelSet | None,
    out: str | Path,
    options: SuiteOptions,
    device: torch.device,
    command: Sequence[str] = (),
    *,
    regions: str | Path | None = None,
    compositions: Sequence[str] = (),
    probe: ProbeData | None = None,
    questions: Request | None = None,
    ema: bool = False,
    resources: Resources | None = None,
) -> tuple[dict[str, Any] | None, PictureSet]:
    """Runs the suite; writes and returns results.json's content, with the collection. On ranks other than 0 it answers what rank 0
    asks, and returns None in place of the content.

    Args:
        loaded: model, config, tokenizer, state, folder, digest and ema_decay of a checkpoint, as its opener returns them.
        checkpoint: as given by the user.
        data: a data set folder, or the pictures of another layout.
        regions: where in the pictures the objects are, for the tasks masking and alignment.
        compositions: NAME=FOLDER[,PICTURES] of benchmarks, for the task compositionality.
        probe: pictures with classes to train on, for the task linear_probe; needs `labels`.
        questions: for the task vqa; where they name a folder of pictures, these are what is evaluated on, and `data` is None.
        ema: the weights are the moving average of the checkpoint's.
        resources: default one rank, nothing kept but finished tasks.

    Raises UserError: no or damaged data, labels or regions of another data set, benchmarks that are not there.
    """
    start, out = time.monotonic(), Path(out)
    resources = resources or Resources()
    team, weights = resources.team, f"{loaded.digest}{' ema' if ema else ''}"
    with team.together():
        benchmarks = read_compositions(compositions) if "compositionality" in options.tasks else ()
        for benchmark in benchmarks:
            print(benchmark.told(), flush=True)
        if data is None:
            data = QuestionPictures(questions, loaded.config.model.image.image_size)
        collection = data if isinstance(data, PictureSet) else Collection(data, loaded.config.model.image.image_size)
        if labels is not None and {"classification", "linear_probe"} & set(options.tasks):
            labels.of([picture.url for picture in collection.pictures])  # a foreign label file is told before any work
        found = segments = None
        if regions is not None and {"masking", "alignment"} & set(options.tasks):
            image, text = loaded.config.model.image, loaded.config.model.text
            found = read_regions(regions, collection, loaded.tokenizer, image.patch_size, text.context_length)
            print(found.told(), flush=True)
        if regions is not None and "alignment" in options.tasks:
            segments = read_segments(regions, collection)
        asked = questions.open(collection) if questions is not None and "vqa" in options.tasks else None
        if asked is not None:
            print(asked.told(), flush=True)
        inputs = Inputs(options, labels, found, benchmarks, probe, segments, asked)
        bench = Bench(loaded.model, loaded.config, loaded.tokenizer, collection, device, inputs, resources, weights)
    if team.lockstep and {"masking", "alignment"} & set(options.tasks):
        _ = bench.untrained  # which all ranks have to make together
    if not team.leads:
        team.serve(bench)
        return None, collection
    threads = torch.get_num_threads() if device.type == "cpu" else None
    if device.type == "cpu" and team.size == 1:  # ranks of one machine have shared its cores among them
        sample = bench.pixels(torch.stack([collection.image(number) for number in range(min(16, len(collection)))]))
        threads = choose_threads(lambda: bench.call("image_features", image_BCHW=sample))
    with team.conducting():
        records = run_tasks(bench, weights, out)
    results = {
        "format": FORMAT,
        "checkpoint": {
            "path": str(checkpoint),
            "folder": str(loaded.folder),
            "step": loaded.state["step"],
            "samples": loaded.state["samples"],
            "digest": loaded.digest,
            "ema_decay": loaded.ema_decay,
            "family": loaded.config.model.family,
            "parameters": sum(map(math.prod, our_shapes(loaded.config.model).values())),
            "image_size": loaded.config.model.image.image_size,
        },
        "data": {
            "folder": str(collection.folder),
            "manifest_digest": collection.digest,
            "images": len(collection),
            "captions": len(collection.captions),
            "labels": labels.path if labels else None,
            "labels_digest": labels.digest if labels else None,
            "regions": str(regions) if regions else None,
            "regions_digest": found.annotations if found else None,
            "segments_digest": segments.digest if segments and segments.classes else None,
            "compositions": list(compositions),
            "questions": None if questions is None else questions.questions,
            **shared_images(collection, loaded.config.data.train),
            **collection.facts,
        },
        "tasks": records,
        "provenance": {
            "git_sha": provenance.git_sha(),
            "versions": provenance.versions(),
            "hardware": provenance.hardware(device),
            "device": device.type,
            "threads": threads,
            "precision": options.precision,
            "batch_size": options.batch_size,
            "seed": options.seed,
            "world_size": team.size,
            "weights_shared": team.lockstep,
            "cache": str(resources.cache.folder) if resources.cache.folder else None,
            "java": java_version() if "captioning" in options.tasks else None,
            "caption_tokenizer": records.get("captioning", {}).get("details", {}).get("tokenizer"),
            "command": list(command),
            "date": now(),
            "wall_seconds": round(time.monotonic() - start, 2),
        },
    }
    if results["provenance"]["git_sha"] is None:
        results["provenance"]["git_sha_reason"] = "not run from a git checkout"
    write_json(out / "results.json", results)
    write_csv(out / "results.csv", list(rows_of(results)))
    return results, collection


def shared_images(collection: PictureSet, train: Sequence[str]) -> dict[str, Any]:
    """How many of the evaluated images (by url) the run was trained on; null with the reason where that cannot be
    told."""
    name, reason = "images_in_training", None
    if not collection.compared_by_url:
        reason = "the pictures of this set have no urls to compare by"
    elif not train:
        reason = "the checkpoint does not name its training data"
    else:
        try:
            manifests = Sources.load(train).manifests
            if sum(manifest.samples for manifest in manifests) > MOST_COMPARED:
                reason = f"the training set has more than {MOST_COMPARED:,} samples"
            else:
                own, found = {picture.image_id for picture in collection.pictures}, set()
                for manifest, shard in ((m, shard) for m in manifests for shard in range(len(m.shards))):
                    found |= own.intersection(manifest.index(shard, columns=["image_id"])["image_id"].to_pylist())
                return {name: len(found)}
        except UserError as error:
            reason = f"the training data is not here ({error})"
    return {name: None, f"{name}_reason": reason}


def choose_threads(step: Callable[[], object]) -> int:
    """Sets torch to all its threads or to one, whichever runs `step` faster here; returns the number.

    Small layers on a machine that others use too: each step waits for the thread whose core is busy, and one thread alone is
    often faster.
    """
    seconds = {}
    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        torch.set_num_threads(threads)
        step()  # the first call allocates and is not timed
        times = []
        for _ in range(2):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        seconds[threads] = min(times)
    best = min(seconds, key=seconds.__getitem__)
    torch.set_num_threads(best)
    return best


def check_options(options: SuiteOptions) -> None:
    """UserError names the flag: unknown task or similarity, sizes below one."""
    for task in options.tasks:
        if task not in TASKS:
            raise UserError(f"--tasks {task}: no such task; there are {' '.join(TASKS)}")
    if not options.tasks or len(set(options.tasks)) != len(options.tasks):
        raise UserError(f"--tasks {' '.join(options.tasks)}: name each task once, at least one of {' '.join(TASKS)}")
    for name in options.similarity:
        similarity, colon, words = name.partition(":")
        if similarity not in SIMILARITIES:
            raise UserError(f"--similarity {name}: no such similarity; there are {' '.join(SIMILARITIES)}")
        if colon and words not in WORDS:
            raise UserError(f"--similarity {name}: behind the colon stands one of {' '.join(WORDS)} (model.masking.words)")
    if options.probe_features not in FEATURES:
        raise UserError(f"--probe-features {options.probe_features}: expected {' or '.join(FEATURES)}")
    background_of(options.background)
    if options.spice_dir is not None:
        spice_jars(options.spice_dir)
    for flag, value in (
        ("--batch-size", options.batch_size),
        ("--caption-tokens", options.caption_tokens),
        ("--gallery", options.gallery),
        ("--beams", options.beams),
    ):
        if value < 1:
            raise UserError(f"{flag} {value}: expected at least 1")
    if options.beams > MOST_BEAMS:
        raise UserError(f"--beams {options.beams}: expected at most {MOST_BEAMS}")
    if options.captions_per_image < 0:
        raise UserError(f"--captions-per-image {options.captions_per_image}: expected at least 0, which takes all")

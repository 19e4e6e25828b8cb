"""What a model card tells of a checkpoint: how it was trained, on what, and what its evaluations gave. Plain JSON, which an
exported folder carries along."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sycoca_ds.runs.reading import evaluations

if TYPE_CHECKING:
    from sycoca_ds.config import TrainConfig
    from sycoca_ds.engine.checkpoint.weights import Stored


def about(stored: Stored) -> dict[str, Any]:
    """training, data (a dict for each folder), results (a dict for each number). Of an exported folder what it carries; empty where
    nothing is known. Folders by their names alone: digests say which they are, and their places are the business of one machine."""
    known = dict(stored.state.get("about") or {}) if "kind" in stored.state else _of_run(stored)
    for part, name in (("data", "folder"), ("results", "data")):
        if part in known:
            known[part] = [{**one, name: os.path.basename(one[name].rstrip("/")) or one[name]} for one in known[part]]
    return known


def _of_run(stored: Stored) -> dict[str, Any]:
    config, state = stored.config, stored.state
    training = {
        "step": state["step"],
        "samples": state["samples"],
        "global_batch_size": config.optim.global_batch_size,
        "learning_rate": config.optim.lr,
        "precision": config.run.precision,
        "world_size": state["world_size"],
        "zero_stage": state["zero_stage"],
        "losses": _losses(config),
        "versions": state["versions"],
    }
    data = [data_facts(str(path)) for path in config.data.train]
    return {"training": training, "data": data, "manifest_digest": state["manifest_digest"], "results": results(stored)}


def _losses(config: TrainConfig) -> dict[str, float]:
    """{loss: weight} of those that have trained the weights."""
    if config.task == "vqa":
        return {"vqa": 1.0}
    weights = {name: getattr(config.loss, name) for name in ("itc", "late_interaction", "ic", "mim")}
    return {name: weight for name, weight in weights.items() if weight or name != "late_interaction"}


def data_facts(folder: str) -> dict[str, Any]:
    """Of a data set folder: source, samples, kept, shards, bytes, digest of its manifest; of one that is not here only its path."""
    from data_pipeline.shards.manifest import Manifest, ManifestError

    found: dict[str, Any] = {"folder": folder}
    if "://" in folder:
        return found
    try:
        manifest = Manifest.load(folder, check_tars=False)
    except ManifestError:
        return found
    found |= {name: getattr(manifest, name) for name in ("samples", "kept", "bytes", "digest")} | {"shards": len(manifest.shards)}
    try:
        found["source"] = str(json.loads((Path(folder) / "funnel.json").read_text())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # made by hand, or not reported
    return found


def results(stored: Stored) -> list[dict[str, Any]]:
    """The headlines of each task of evaluations of these weights that lie in the run folder, the newest of each data."""
    from sycoca_ds.eval.registry import TASKS

    run = stored.folder.parents[1] if stored.folder.parent.name == "checkpoints" else stored.folder.parent
    found: dict[tuple[str, str], dict[str, Any]] = {}
    newest = sorted(evaluations(run), key=lambda one: one.time)
    for evaluation in (one for one in newest if one.digest == stored.digest and one.ema_decay == stored.ema_decay):
        for name, value in evaluation.metrics.items():
            task, _, number = name.partition(".")
            if task not in TASKS or number not in TASKS[task].headlines:
                continue
            low, high = evaluation.intervals.get(name, (None, None))
            words = TASKS[task].numbers[number]
            facts = {"data": evaluation.data, "metric": name, "label": f"{TASKS[task].title}: {words.label}", "unit": words.unit}
            found[evaluation.data, name] = facts | {"value": value, "low": low, "high": high, "images": evaluation.images}
    order = {f"{task}.{name}": place for place, (task, name) in enumerate((t, n) for t in TASKS for n in TASKS[t].headlines)}
    return sorted(found.values(), key=lambda facts: (facts["data"], order[facts["metric"]]))

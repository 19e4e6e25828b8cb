"""Evaluation folders: which sets they have, and whether two of them are of the same data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError, check_format
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.stats.paired import KEY, read_each
from sycoca_ds.eval.suite import FORMAT

EXPECTED = "expected a folder that evaluate.py --out has left, with results.json, or sets.json and a folder a set"


@dataclass(frozen=True)
class Evaluation:
    """One set of one checkpoint."""

    folder: Path
    results: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Raises `UserError`."""
        try:
            results = json.loads((folder / "results.json").read_text())
            results["data"]["manifest_digest"], results["tasks"], results["checkpoint"]["path"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{folder}: {type(error).__name__}: {error}; {EXPECTED}") from None
        check_format(results.get("format"), FORMAT, folder / "results.json", "give the command that made it again")
        return cls(folder, results)

    def each(self, task: str) -> dict[str, np.ndarray] | None:
        """What pictures alone come to, in the order of their names; None where the task was not run, or leaves nothing."""
        record = self.results["tasks"].get(task)
        if record is None or record["status"] != "done" or not TASKS[task].each:
            return None
        each = read_each(self.folder, task)
        order = np.argsort(each[KEY])
        return {name: array[order] for name, array in each.items()}


def read_folder(folder: Path) -> dict[str, Evaluation]:
    """{set: evaluation}, "" for a folder of one. Raises `UserError`: it is none."""
    if (folder / "results.json").is_file():
        return {"": Evaluation.read(folder)}
    try:
        sets = json.loads((folder / "sets.json").read_text())["sets"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: {type(error).__name__}: {error}; {EXPECTED}") from None
    found = {name: Evaluation.read(folder / record["folder"]) for name, record in sets.items() if record["status"] == "done"}
    if not found:
        raise UserError(f"{folder}: none of its {len(sets)} sets has numbers; {EXPECTED}")
    return found


def common_sets(folders: list[Path]) -> tuple[list[dict[str, Evaluation]], list[str]]:
    """(of each folder {set: evaluation} of the sets that all have, lines on what is left out).

    Raises:
        UserError: no set in common, or one of them is of other data.
    """
    found = [read_folder(folder) for folder in folders]
    names = [name for name in found[0] if all(name in other for other in found)]
    everything = dict.fromkeys(name for each in found for name in each)
    if not names:
        raise UserError(
            f"{' '.join(map(str, folders))}: no set in common; they have " + "; ".join(", ".join(each) or "one" for each in found)
        )
    left = [f"{name}: left out, not all folders have it" for name in everything if name not in names]
    for name in names:
        for folder, other in zip(folders[1:], found[1:], strict=True):
            refuse_other_data(name, folders[0], found[0][name], folder, other[name])
    return [{name: each[name] for name in names} for each in found], left


def refuse_other_data(name: str, first_folder: Path, first: Evaluation, folder: Path, other: Evaluation) -> None:
    """Raises `UserError`."""
    own, its = first.results["data"], other.results["data"]
    if own["manifest_digest"] != its["manifest_digest"]:
        raise UserError(
            f"{folder}{f', {name}' if name else ''}: evaluated on {its['folder']}, {its['images']:,} images, digest "
            f"{its['manifest_digest'][:12]}; {first_folder} on {own['folder']}, {own['images']:,} images, digest "
            f"{own['manifest_digest'][:12]}: other data cannot be compared picture by picture; evaluate both on the same (a "
            "published set's files are told by name, size and time: a copy has to keep these, as `cp -a` does)"
        )


def asked(evaluation: Evaluation, task: str) -> dict[str, str]:
    """{what a task's answers are judged by, beside pictures: its digest}."""
    record, data = evaluation.results["tasks"].get(task), evaluation.results["data"]
    if record is None or record["status"] != "done":
        return {}
    if task == "compositionality":
        return {f"items of {given['title']}": given["digest"] for given in record["details"]["sets"].values()}
    found = {
        "masking": {"regions": data["regions_digest"]},
        "alignment": {"regions": data["regions_digest"], "classes of pixels": data["segments_digest"]},
        "vqa": {"questions": record["details"].get("questions_digest")},
    }.get(task, {})
    return {what: digest for what, digest in found.items() if digest is not None}


def refuse_other_questions(task: str, first: Evaluation, other: Evaluation) -> None:
    """Raises `UserError`: the same pictures, but asked something else."""
    own, its = asked(first, task), asked(other, task)
    for what in own.keys() & its.keys():
        if own[what] != its[what]:
            raise UserError(
                f"{other.folder}: {task} is of other {what} (digest {its[what][:12]}) than in {first.folder} ({own[what][:12]}): "
                "they cannot be compared picture by picture; evaluate both on the same, or choose other tasks by --numbers"
            )


SETTINGS = {
    "retrieval": ("captions_per_image",),
    "captioning": ("tokenizer", "decoding", "steps"),
    "classification": ("labels_digest",),
    "reconstruction": ("hidden_patches",),
    "masking": ("similarity", "hidden_patches"),
    "alignment": ("similarity", "named_by", "background"),
    "linear_probe": ("labels_digest", "features", "fitted_on_digest"),
    "vqa": ("answering", "ranked_to_the_end", "beams", "candidates", "candidates_digest"),
}
"""{task: details by which its numbers may differ, whatever the weights}."""


def different_settings(first: Evaluation, other: Evaluation, tasks: Iterable[str]) -> list[str]:
    """What else differs than the weights, in words: numbers may differ by it."""
    found = []
    for where, names in (("provenance", ("precision", "seed", "git_sha")),):
        for name in names:
            own, its = first.results[where].get(name), other.results[where].get(name)
            if own != its:
                found.append(f"{name} {its} in place of {own}")
    for task, name in [(of, name) for of in tasks for name in SETTINGS.get(of, ())]:
        own, its = (each.results["tasks"].get(task, {}).get("details", {}).get(name) for each in (first, other))
        if own is not None and its is not None and own != its:
            if name.endswith("_digest"):
                own, its = own[:12], its[:12]
            found.append(f"{task}'s {name} {its} in place of {own}")
    return found

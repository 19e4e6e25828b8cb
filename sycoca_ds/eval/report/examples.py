"""The report's single cases: captions and questions with their pictures, and classes one by one.

Ordinary cases lie at even distances through the data; best and worst ones are marked as such.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.report.galleries import data_uri
from sycoca_ds.eval.report.wording import show
from sycoca_ds.eval.stats.extremes import extremes
from sycoca_ds.eval.stats.paired import read_each

CAPTIONS_SHOWN = 12
EXTREMES_SHOWN = 6
"""Captions that score highest, and as many lowest."""
REFERENCES_SHOWN = 5
WORST_CLASSES, BEST_CLASSES = 20, 5
"""Rows of a table of classes, where there are more."""


def caption_groups(results: dict[str, Any], collection: PictureSet, out: Path) -> list[dict[str, Any]]:
    """Captions beside their references: of images at even distances, then the best and the worst by their own CIDEr."""
    if results["tasks"].get("captioning", {}).get("status") != "done":
        return []
    written = {row["image_id"]: row["caption"] for row in json.loads((out / "samples" / "captions.json").read_text())}
    cider_I = read_each(out, "captioning")["cider"]
    numbers = np.unique(np.linspace(0, len(collection) - 1, num=min(CAPTIONS_SHOWN, len(collection))).round().astype(int))
    best, worst = extremes(cider_I, EXTREMES_SHOWN)
    groups = (
        ("Ordinary ones", "{} images at even distances through the set; nothing is picked.", numbers, 1),
        ("Best ones", "The {} images whose captions have the highest CIDEr of their own.", best, REFERENCES_SHOWN),
        ("Worst ones", "The {} images whose captions have the lowest.", worst, REFERENCES_SHOWN),
    )
    return [
        {
            "title": title,
            "note": note.format(len(chosen)),
            "items": [
                {
                    "picture": data_uri(collection.picture(n)),
                    "references": collection.captions_of_image[n][:references],
                    "generated": written[collection.pictures[n].image_id],
                    "cider": show(None if np.isnan(cider_I[n]) else float(cider_I[n])),
                    "same": _words(written[collection.pictures[n].image_id])
                    in {_words(caption) for caption in collection.captions_of_image[n]},
                }
                for n in chosen.tolist()
            ],
        }
        for title, note, chosen, references in groups
        if len(chosen)
    ]


def _words(caption: str) -> str:
    return "".join(letter if letter.isalnum() else " " for letter in caption.lower()).strip()


def question_gallery(results: dict[str, Any], collection: PictureSet) -> list[dict[str, Any]]:
    """Questions with their pictures: what the model says, what annotators said and how many, how right that is."""
    examples = results["tasks"].get("vqa", {}).get("details", {}).get("examples", [])
    return [
        {
            "picture": data_uri(collection.picture(example["picture"])),
            "question": example["question"],
            "said": example["said"],
            "answers": [f"{answer} ({count})" if count > 1 else answer for answer, count in example["answers"].items()],
            "verdict": "right" if example["accuracy"] == 1 else "wrong" if example["accuracy"] == 0 else "partly right",
            "accuracy": show(100 * example["accuracy"], "%"),
        }
        for example in examples
    ]


def class_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A table a task that knows classes: the worst classes, then the best; all of them where they are few."""
    tables = []
    for task, name, title, heads, columns in (
        ("classification", "each_class", "Classes, zero-shot", ("right", "images"), ("right", "images")),
        ("linear_probe", "each_class", "Classes, linear probe", ("right", "tested", "trained on"), ("right", "test", "train")),
        ("alignment", "per_class", "Classes of pixels, IoU", ("IoU", "pixels"), ("iou", "pixels")),
    ):
        record = results["tasks"].get(task, {})
        given = record.get("details", {}).get(name, [])
        found = [row for row in given if row[columns[0]] is not None]
        if not found:
            continue
        worst = sorted(found, key=lambda row: row[columns[0]])
        few = len(found) <= WORST_CLASSES + BEST_CLASSES
        parts = [("", worst)] if few else [("worst", worst[:WORST_CLASSES]), ("best", worst[-BEST_CLASSES:])]
        tables.append(
            {
                "task": task,
                "title": title,
                "heads": heads,
                "classes": len(found),
                "without": len(given) - len(found),
                "parts": [
                    (part, [(row["class"], show(row[columns[0]], "%"), [f"{row[name]:,}" for name in columns[1:]]) for row in rows])
                    for part, rows in parts
                ],
            }
        )
    return tables

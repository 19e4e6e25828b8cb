"""The report's pictures of the task alignment: maps of words, classes of pixels, and its tables."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np

from sycoca_ds.eval import pictures
from sycoca_ds.eval.alignment.explaining import TARGETS
from sycoca_ds.eval.alignment.wording import NUMBERS, UNDER_CLASSES, UNDER_PHRASES, class_numbers, phrase_numbers
from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.report.galleries import data_uri
from sycoca_ds.eval.report.wording import show

NAMES = {"score": "scores of the words", **dict(zip(TARGETS, ("Grad-CAM", "Grad-CAM, log-probability"), strict=True))}
BACKGROUND, UNSAID = (33, 37, 43), (200, 204, 210)
TURN = 0.618034
"""Of the circle of hues between two classes: neighbours differ, and so do any few."""


def _record(results: dict[str, Any]) -> dict[str, Any] | None:
    record = results["tasks"].get("alignment", {})
    return record if record.get("status") == "done" else None


def word_gallery(results: dict[str, Any], collection: PictureSet, out: Path) -> list[dict[str, Any]]:
    """A row a word: picture, what it names where that is known, its scores, Grad-CAM."""
    if _record(results) is None:
        return []
    with np.load(out / "samples" / "alignment.npz", allow_pickle=False) as stored:
        kept = {name: stored[name] for name in stored.files}
    rows = []
    for row, number in enumerate(kept["number"].tolist()):
        picture, region = collection.picture(number), kept["region"][row]
        side = len(picture)
        cells = [{"name": "picture", "picture": data_uri(picture)}]
        if region.any():
            cells.append({"name": "what it names", "picture": data_uri(pictures.mask_overlay(picture, region))})
        for name, words in NAMES.items():
            if np.isfinite(kept[name][row]).all():
                cells.append({"name": words, "picture": data_uri(pictures.heat_map(kept[name][row], side, picture))})
        rows.append({"word": str(kept["word"][row]), "caption": collection.captions_of_image[number][0], "cells": cells})
    return rows


def class_gallery(results: dict[str, Any], collection: PictureSet, out: Path) -> list[dict[str, Any]]:
    """A row a picture: itself, its classes as they are annotated, as they are guessed; and which colour is which class."""
    if _record(results) is None:
        return []
    with np.load(out / "samples" / "alignment.npz", allow_pickle=False) as stored:
        if "labelled" not in stored.files:
            return []
        kept = {name: stored[name] for name in stored.files}
    rows = []
    for row, number in enumerate(kept["labelled"].tolist()):
        label, guess = kept["label"][row], kept["guess"][row]
        there = [int(k) for k in np.unique([label, guess]) if k > 0]
        cells = [("picture", collection.picture(number)), ("annotated", paint(label)), ("by names", paint(guess))]
        legend = [{"name": str(kept["class_name"][k - 1]), "colour": f"rgb{colour(k)}"} for k in there]
        rows.append({"legend": legend, "cells": [{"name": name, "picture": data_uri(picture)} for name, picture in cells]})
    return rows


def colour(label: int) -> tuple[int, int, int]:
    """Of a class, counted from 1, of the background, 0, and of what nothing is said of, -1."""
    if label <= 0:
        return UNSAID if label < 0 else BACKGROUND
    red, green, blue = colorsys.hsv_to_rgb(label * TURN % 1, 0.85 if label % 2 else 0.5, 0.95 if label % 3 else 0.7)
    return round(255 * red), round(255 * green), round(255 * blue)


def paint(label_SS: np.ndarray) -> np.ndarray:
    """uint8 (S, S, 3)."""
    found, place = np.unique(label_SS, return_inverse=True)
    return np.array([colour(int(label)) for label in found], np.uint8)[place.reshape(label_SS.shape)]


def alignment_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Of phrases and of classes a table: a row a masking score and measure, with the controls."""
    record, tables = _record(results), []
    if record is None:
        return []
    heads = {"own": "", "another caption's": "other_", "untrained": "untrained_"}
    for title, names, unders, columns in (
        ("Phrases that point", phrase_numbers(), UNDER_PHRASES, heads),
        ("Classes of pixels", class_numbers(), UNDER_CLASSES, heads | {"names shuffled": "shuffled_"}),
    ):
        shown = {head: under for head, under in columns.items() if under in unders}
        rows = [
            {
                "score": similarity,
                "label": NUMBERS[name].label,
                "cells": [show(numbers.get(f"{under}{name}"), NUMBERS[name].unit) for under in shown.values()],
                "chance": show(record["chance"].get(name), NUMBERS[name].unit),
            }
            for similarity, numbers in record["details"]["similarities"].items()
            for name in names
            if name in numbers and not name.startswith(tuple(filter(None, unders)))
        ]
        if rows:
            tables.append({"title": title, "heads": list(shown), "rows": rows})
    return tables

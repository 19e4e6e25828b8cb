"""The report's pictures: what the model wrote, rebuilt, found, as rows for the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sycoca_ds.eval import pictures
from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.compositions.wording import table_rows
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.report.wording import show


def data_uri(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) -> PNG data URI."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG", optimize=True)
    return png_uri(stream.getvalue())


def png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def reconstruction_gallery(results: dict[str, Any], collection: PictureSet, out: Path) -> list[dict[str, Any]]:
    """A row an image: original, where the caption points, hidden patches, what the model sees, rebuilt with either
    caption."""
    if results["tasks"].get("reconstruction", {}).get("status") != "done":
        return []
    rows = []
    with np.load(out / "samples" / "reconstruction.npz", allow_pickle=False) as stored:
        kept = {name: stored[name] for name in stored.files}
    for row, number in enumerate(kept["number"].tolist()):
        picture, hidden = collection.picture(number), kept["hidden"][row]
        side = picture.shape[0]
        own, other = (pictures.patches_to_picture(torch.from_numpy(kept[name][row])) for name in ("own_pixels", "other_pixels"))
        rows.append(
            {
                "caption": collection.captions_of_image[number][0],
                "other": collection.captions_of_image[int(kept["other"][row])][0],
                "own_l1": f"{kept['own_l1'][row]:.3f}",
                "other_l1": f"{kept['other_l1'][row]:.3f}",
                "cells": [
                    {"name": "original", "picture": data_uri(picture)},
                    {
                        "name": "score of each patch",
                        "picture": data_uri(pictures.heat_map(kept["score"][row], side, picture)),
                    },
                    {"name": "hidden patches", "picture": data_uri(pictures.mask_overlay(picture, hidden))},
                    {"name": "what the model sees", "picture": data_uri(pictures.hide(picture, hidden))},
                    {
                        "name": "rebuilt, own caption",
                        "picture": data_uri(pictures.paste(picture, own, hidden)),
                        "l1": f"{kept['own_l1'][row]:.3f}",
                        "better": bool(kept["own_l1"][row] < kept["other_l1"][row]),
                    },
                    {
                        "name": "rebuilt, wrong caption",
                        "picture": data_uri(pictures.paste(picture, other, hidden)),
                        "l1": f"{kept['other_l1'][row]:.3f}",
                        "better": bool(kept["other_l1"][row] < kept["own_l1"][row]),
                    },
                ],
            }
        )
    return rows


def masking_gallery(results: dict[str, Any], collection: PictureSet, out: Path) -> list[dict[str, Any]]:
    """A row an image: original, then scores, then hidden patches, each under the own caption beside another picture's."""
    if results["tasks"].get("masking", {}).get("status") != "done":
        return []
    with np.load(out / "samples" / "masking.npz", allow_pickle=False) as stored:
        kept = {name: stored[name] for name in stored.files}
    rows = []
    for row, number in enumerate(kept["number"].tolist()):
        picture = collection.picture(number)
        side, captions = picture.shape[0], (("own", "own caption"), ("other", "another picture's"))
        cells = [{"name": "original", "picture": data_uri(picture)}]
        for whose, name in captions:
            heat = pictures.heat_map(kept[f"{whose}_score"][row], side, picture)
            cells.append({"name": f"scores, {name}", "picture": data_uri(heat)})
        for whose, name in captions:
            hidden = pictures.mask_overlay(picture, kept[f"{whose}_hidden"][row])
            cells.append({"name": f"hidden, {name}", "picture": data_uri(hidden)})
        rows.append(
            {
                "caption": collection.captions_of_image[number][0],
                "other": collection.captions_of_image[int(kept["other"][row])][0],
                "same": f"{100 * kept['overlap'][row]:.0f}",
                "cells": cells,
            }
        )
    return rows


def masking_tables(results: dict[str, Any]) -> list[dict[str, Any]]:
    """A table a similarity: a row a measure, under the own caption, another picture's, none, and of untrained weights, beside
    chance."""
    record = results["tasks"].get("masking", {})
    if record.get("status") != "done":
        return []
    task, tables = TASKS["masking"], []
    measures = [name for name in task.numbers if f"untrained_{name}" in task.numbers and not name.endswith(("_low", "_high"))]
    for similarity, numbers in record["details"]["similarities"].items():
        rows = [
            {
                "label": task.numbers[name].label,
                "cells": [show(numbers.get(f"{prefix}{name}")) for prefix in ("", "other_", "no_text_", "untrained_")],
                "chance": show(record["chance"].get(name)),
            }
            for name in measures
            if name in numbers
        ]
        tables.append({"similarity": similarity, "own": similarity == record["details"]["similarity"], "rows": rows})
    return tables


def composition_rows(results: dict[str, Any]) -> list[tuple[str, list[str], str]]:
    """A row a subset of a benchmark: its name, each score's number, chance."""
    record = results["tasks"].get("compositionality", {})
    if record.get("status") != "done":
        return []
    return [(label, [show(value, "%") for value in values], show(chance, "%")) for label, values, chance in table_rows(record)]


def retrieval_groups(results: dict[str, Any], collection: PictureSet) -> list[dict[str, Any]]:
    """Query captions with their five nearest images, the right one marked: captions at even distances, then the best and the worst
    by the right image's place."""
    details = results["tasks"].get("retrieval", {}).get("details", {})
    groups = (
        ("examples", "Ordinary ones", "Captions at even distances through the set; nothing is picked."),
        ("best", "Best ones", "Captions whose own image comes first; of equal ones the first of the set."),
        ("worst", "Worst ones", "Captions whose own image comes last."),
    )
    return [
        {
            "title": title,
            "note": note,
            "rows": [
                {
                    "caption": example["caption"],
                    "rank": f"{example['rank']:,}",
                    "images": [
                        {"picture": data_uri(collection.picture(image)), "hit": image == example["own"]}
                        for image in example["images"]
                    ],
                    "own": None if example["own"] in example["images"] else data_uri(collection.picture(example["own"])),
                }
                for example in details[name]
            ],
        }
        for name, title, note in groups
        if details.get(name)
    ]

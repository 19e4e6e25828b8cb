"""The page a run leaves: report.html, one file, pictures inline, readable by somebody who has never seen the
project."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipeline.errors import UserError
from data_pipeline.files import write_bytes
from sycoca_ds.eval import pictures
from sycoca_ds.eval.charts import CURVES, draw_curve, read_metrics
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.requirements import Verdict
from sycoca_ds.eval.wording import FAMILIES, HEADLINES, TASK_MEANINGS, TASK_TITLES, WORDINGS, meaning, show

CAPTIONS_SHOWN = 12


def data_uri(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) -> PNG data URI."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="PNG", optimize=True)
    return png_uri(stream.getvalue())


def png_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def result_rows(results: dict[str, Any], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A block a task: headline rows (value, chance, requirement, meaning) and all other numbers."""
    required = {(v.requirement.task, v.requirement.metric): v for v in verdicts}
    blocks = []
    for task, record in results["tasks"].items():
        rows = []
        for metric, wording in WORDINGS[task].items():
            value, verdict = record["metrics"].get(metric), required.get((task, metric))
            if verdict is None and metric.removesuffix("_low").removesuffix("_high") in WORDINGS[task].keys() - {metric}:
                continue  # a bound stands under its number
            shown = show(value, wording.unit)
            low, high = record["metrics"].get(f"{metric}_low"), record["metrics"].get(f"{metric}_high")
            shown_range = f"{show(low, '%')[:-2]} to {show(high, '%')}" if low is not None and high is not None else None
            rows.append(
                {
                    "metric": metric,
                    "label": wording.label,
                    "value": shown,
                    "range": shown_range,
                    "chance": show(record["chance"][metric], wording.unit) if metric in record["chance"] else "",
                    "verdict": verdict,
                    "bound": f"{verdict.requirement.comparison} {verdict.requirement.bound:g}" if verdict else "",
                    "meaning": meaning(task, metric, record["details"]),
                    "reason": record["null_reasons"].get(metric),
                    "headline": metric in HEADLINES[task] or verdict is not None,
                }
            )
        rows.sort(key=lambda row, order=HEADLINES[task]: order.index(row["metric"]) if row["metric"] in order else len(order))
        blocks.append(
            {
                "task": task,
                "title": TASK_TITLES[task],
                "meaning": TASK_MEANINGS[task],
                "rows": rows,
                "has_chance": any(row["chance"] for row in rows),
                "has_required": any(row["verdict"] for row in rows),
                "done": record["status"] == "done",
                "reason": next(iter(record["null_reasons"].values()), ""),
                "details": record["details"],
            }
        )
    return blocks


def run_folder(checkpoint: str | Path) -> Path | None:
    """The run a checkpoint belongs to: the nearest folder at or above it that holds metrics.jsonl (three levels at
    most)."""
    path = Path(checkpoint).absolute()
    return next((folder for folder in [path, *path.parents][:4] if (folder / "metrics.jsonl").is_file()), None)


def curves(run: Path | None) -> tuple[list[dict[str, str]], str]:
    """(curves with picture and words, reason if there are none)."""
    if run is None:
        return [], "no metrics.jsonl was found in the checkpoint's folder or above it"
    try:
        series = read_metrics(run / "metrics.jsonl")
        drawn = []
        for key, title, note in CURVES:
            if key in series and len(series[key][0]) > 1:
                values = series[key][1]
                drawn.append(
                    {
                        "title": title,
                        "note": note,
                        "picture": png_uri(draw_curve(*series[key])),
                        "ends": f"{values[0]:.3g} at the start, {values[-1]:.3g} at the end",
                    }
                )
    except OSError as error:
        return [], f"{run / 'metrics.jsonl'} could not be read: {error}"
    except ImportError as error:
        return [], f"{error}; run: pip install -e .[eval]"
    return drawn, "" if drawn else "metrics.jsonl holds fewer than two steps"


def funnels(folders: Sequence[tuple[str, str | Path]]) -> list[dict[str, Any]]:
    """What became of the catalogue's rows, from the funnel.json beside each data set; or the reason why it cannot be
    told."""
    found = []
    for title, folder in folders:
        path = Path(folder) / "funnel.json"
        try:
            found.append(
                {
                    "title": title,
                    "folder": str(folder),
                    "stages": funnel_stages(json.loads(path.read_text())),
                    "reason": "",
                }
            )
        except FileNotFoundError:
            found.append({"title": title, "folder": str(folder), "stages": [], "reason": f"no funnel.json in {folder}"})
        except (OSError, ValueError, KeyError, TypeError) as error:
            found.append({"title": title, "folder": str(folder), "stages": [], "reason": f"{path} could not be read ({error})"})
    return found


def funnel_stages(funnel: Any) -> list[dict[str, Any]]:
    """[{name, rows, percent of the catalogue, lost: [(reason, n)]}] from a funnel.json (data_pipeline/report/command.py).
    ValueError for another layout."""
    if not isinstance(funnel, dict) or funnel.get("format") != 1:
        raise ValueError("not a funnel of format 1")
    damaged = {"in a damaged shard": funnel["in_damaged_shards"]}
    stages = [
        ("rows in the catalogue", funnel["rows_in"], {}),
        ("asked for, after curation", funnel["requested"], funnel["dropped"]),
        ("downloaded", funnel["downloaded"], funnel["failed"]),
        ("in whole tars", funnel["verified"], damaged),
        ("verified and kept", funnel["kept"], funnel["rejected"]),
    ]
    return [
        {
            "name": name,
            "rows": rows,
            "percent": 100.0 * rows / max(1, funnel["rows_in"]),
            "lost": sorted(((reason, count) for reason, count in lost.items() if count), key=lambda pair: -pair[1]),
        }
        for name, rows, lost in stages
    ]


def caption_gallery(results: dict[str, Any], collection: Collection, out: Path) -> list[dict[str, Any]]:
    """Evenly spaced images (chosen by position, not by quality) with their first reference and the generated
    caption."""
    if results["tasks"].get("captioning", {}).get("status") != "done":
        return []
    written = {row["image_id"]: row["caption"] for row in json.loads((out / "samples" / "captions.json").read_text())}
    numbers = np.unique(np.linspace(0, len(collection) - 1, num=min(CAPTIONS_SHOWN, len(collection))).round().astype(int))
    return [
        {
            "picture": data_uri(collection.picture(n)),
            "reference": collection.captions_of_image[n][0],
            "generated": written[collection.pictures[n].image_id],
            "same": _words(written[collection.pictures[n].image_id])
            in {_words(caption) for caption in collection.captions_of_image[n]},
        }
        for n in numbers.tolist()
    ]


def _words(caption: str) -> str:
    return "".join(letter if letter.isalnum() else " " for letter in caption.lower()).strip()


def reconstruction_gallery(results: dict[str, Any], collection: Collection, out: Path) -> list[dict[str, Any]]:
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


def retrieval_gallery(results: dict[str, Any], collection: Collection) -> list[dict[str, Any]]:
    """A row a query caption: its five nearest images, the right one framed."""
    examples = results["tasks"].get("retrieval", {}).get("details", {}).get("examples", [])
    return [
        {
            "caption": example["caption"],
            "rank": example["rank"],
            "images": [
                {"picture": data_uri(collection.picture(image)), "hit": image == example["own"]} for image in example["images"]
            ],
        }
        for example in examples
    ]


def render(**content: Any) -> str:
    """The page from its content. UserError names the extra if jinja2 is missing."""
    try:
        import jinja2
    except ImportError as error:
        raise UserError(f"report: {error}; run: pip install -e .[eval]") from error
    # autoescape: captions, urls and paths come from strangers
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(**content)


def write_report(
    path: str | Path,
    results: dict[str, Any],
    verdicts: Sequence[Verdict],
    collection: Collection,
    out: str | Path,
    checkpoint: str | Path,
    train_data: Sequence[str] = (),
) -> None:
    """Writes the page to `path` (tmp, fsync, rename).

    results: content of results.json; out: the folder it was written to (samples/ is read); checkpoint: as given by the
    user, the run's metrics.jsonl is looked for there; train_data: data set folders the run was trained on, for their
    funnels.
    """
    run, out = run_folder(checkpoint), Path(out)
    drawn, curves_reason = curves(run)
    page = render(
        results=results,
        blocks=result_rows(results, verdicts),
        verdicts=list(verdicts),
        curves=drawn,
        curves_reason=curves_reason,
        funnels=funnels([*(("Training data", folder) for folder in train_data), ("Evaluation data", collection.folder)]),
        captions=caption_gallery(results, collection, out),
        reconstructions=reconstruction_gallery(results, collection, out),
        retrievals=retrieval_gallery(results, collection),
        model=FAMILIES[results["checkpoint"]["family"]],
        run_name=run.name if run else Path(checkpoint).name,
    )
    write_bytes(Path(path), page.encode())

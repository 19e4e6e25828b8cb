"""The page a run leaves: report.html, one file, pictures inline, readable by somebody who has never seen the
project."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError, how_to_install
from data_pipeline.files import write_bytes
from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.compositions.wording import HOWS
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.report.aligned import alignment_tables, class_gallery, word_gallery
from sycoca_ds.eval.report.charts import CURVES, draw_curve, read_metrics
from sycoca_ds.eval.report.examples import caption_groups, class_tables, question_gallery
from sycoca_ds.eval.report.galleries import (
    composition_rows,
    masking_gallery,
    masking_tables,
    png_uri,
    reconstruction_gallery,
    retrieval_groups,
)
from sycoca_ds.eval.report.wording import FAMILIES, meaning, passed_over, show, told_first
from sycoca_ds.eval.requirements import Verdict


def result_rows(results: dict[str, Any], verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A block a task: headline rows (value, chance, requirement, meaning) and all other numbers."""
    required = {(v.requirement.task, v.requirement.metric): v for v in verdicts}
    blocks = []
    for name, record in results["tasks"].items():
        task, rows = TASKS[name], []
        first = told_first(task, record)
        for metric, wording in task.numbers.items():
            value, verdict = record["metrics"].get(metric), required.get((name, metric))
            if verdict is None and metric.removesuffix("_low").removesuffix("_high") in task.numbers.keys() - {metric}:
                continue  # a bound stands under its number
            if verdict is None and passed_over(task, record, metric):
                continue
            shown = show(value, wording.unit)
            low, high = record["metrics"].get(f"{metric}_low"), record["metrics"].get(f"{metric}_high")
            shown_range = f"{show(low)} to {show(high)}" if low is not None and high is not None else None
            if shown_range is not None and wording.unit == "%":
                shown_range = f"{show(low, '%')[:-2]} to {show(high, '%')}"
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
                    "headline": metric in first or verdict is not None,
                }
            )
        rows.sort(key=lambda row, order=first: order.index(row["metric"]) if row["metric"] in order else len(order))
        blocks.append(
            {
                "task": name,
                "title": task.title,
                "meaning": task.meaning,
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
        return [], f"{error}; {how_to_install('eval')} brings it"
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
    joined = funnel.get("joined", 0)
    rows_in = funnel["rows_in"] - joined
    stages = [
        ("rows in the catalogue" + ", those of a picture as one" * bool(joined), rows_in, {}),
        ("asked for, after curation", funnel["requested"], funnel["dropped"]),
        ("downloaded", funnel["downloaded"], funnel["failed"]),
        ("in whole tars", funnel["verified"], damaged),
        ("verified and kept", funnel["kept"], funnel["rejected"]),
    ]
    return [
        {
            "name": name,
            "rows": rows,
            "percent": 100.0 * rows / max(1, rows_in),
            "lost": sorted(((reason, count) for reason, count in lost.items() if count), key=lambda pair: -pair[1]),
        }
        for name, rows, lost in stages
    ]


def render(template: str = "report.html.j2", **content: Any) -> str:
    """A page from its content. UserError names the extra if jinja2 is missing."""
    try:
        import jinja2
    except ImportError as error:
        raise UserError(f"report: {error}; {how_to_install('eval')} brings it") from error
    # autoescape: captions, urls and paths come from strangers
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return encodable(environment.get_template(template).render(**content))


def encodable(text: str) -> str:
    """The text with a question mark for half a surrogate pair, which JSON allows in captions and names, and UTF-8 does not."""
    return text.encode("utf-8", "replace").decode()


def write_report(
    path: str | Path,
    results: dict[str, Any],
    verdicts: Sequence[Verdict],
    collection: PictureSet,
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
        class_tables=class_tables(results),
        captions=caption_groups(results, collection, out),
        questions=question_gallery(results, collection),
        reconstructions=reconstruction_gallery(results, collection, out),
        masks=masking_gallery(results, collection, out),
        mask_tables=masking_tables(results),
        words=word_gallery(results, collection, out),
        segments=class_gallery(results, collection, out),
        alignment_tables=alignment_tables(results),
        composition_heads=(*HOWS, "chance"),
        compositions=composition_rows(results),
        retrievals=retrieval_groups(results, collection),
        model=FAMILIES[results["checkpoint"]["family"]],
        run_name=run.name if run else Path(checkpoint).name,
    )
    write_bytes(Path(path), page.encode())

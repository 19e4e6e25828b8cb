"""The funnel: rows in, dropped by what, requested, downloaded, failed by what, verified, kept. Every stage adds up or
it is an error."""

from __future__ import annotations

import base64
import json
import math
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.curate import read_curate
from data_pipeline.errors import UserError
from data_pipeline.files import write_bytes, write_json
from data_pipeline.mark import CAPTION_IN_EVALUATION, IN_EVALUATION, NEAR_DUPLICATE
from data_pipeline.outcomes import (
    SUCCESS,
    check_stats,
    hours,
    outcomes_of,
    over_time,
    read_stats,
    shard_paths,
    worst_hosts,
)
from data_pipeline.parts import PARTS, sum_of_downloads
from data_pipeline.projection import project

if TYPE_CHECKING:
    import numpy as np

FORMAT = 1
SHEET_SAMPLES = 12
SHEET_BYTES = 1 << 20
HISTOGRAM_SHARDS = 64
HISTOGRAM_BINS = 24
MOST_ASPECT = 4.0
"""Histograms of width / height go from its inverse to it; the outer bars hold what lies beyond."""
LEFT_OUT_NAMED = 20
# Messages of img2dataset's own parts, and of ours that differ only in detail, under one name. First match wins.
GROUPS = (
    (r"http (404|410)", "gone (404, 410)"),
    (r"http (401|403|451)", "not allowed (401, 403, 451)"),
    (r"http 429", "too many requests (429)"),
    (r"http 5\d\d", "server error (5xx)"),
    (r"http \d+", "other http answer"),
    (r"[Oo]pen[Cc][Vv]|[Dd]ecod", "image cannot be decoded"),
    (r"image too small", "smaller than --min-image-size"),
)
SAMPLE_COLUMNS = ("key", "image_offset", "image_bytes", "text_offset", "text_bytes", "width", "height", "caption_chars")
DUPLICATE = rf"duplicate\b|caption too frequent|{re.escape(NEAR_DUPLICATE)}"


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Writes the funnel of data set folders, DIR/funnel.json and DIR/funnel.html; of several also one of all together."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Data set folders, curated, downloaded and verified."""
    data: tuple[Path, ...] = ()
    """The same, by name."""
    out: Path | None = None
    """Page of all folders together; its numbers lie beside it as JSON. Not given: funnel-total.html here, for several folders."""
    project_to: int | None = None
    """Rows of the full catalogue: what it would give if it went like these rows. Not given: the published number, where these are
    less than half of it; 0: none."""

    def run(self) -> int:
        folders = (*self.folders, *self.data)
        if not folders:
            raise UserError("expected at least one data set folder: report DIR, or report --data DIR")
        if len({folder.resolve() for folder in folders}) < len(folders):
            raise UserError("a folder is given twice: name each once")
        if self.project_to and len(folders) > 1:
            raise UserError("--project-to: expected one folder with it; of several each is projected to its own source")
        out = self.out or (Path("funnel-total.html") if len(folders) > 1 else None)
        if out is not None and out.suffix != ".html":
            raise UserError(f"--out {out}: expected a name that ends with .html")
        funnels = []
        for folder in folders:
            funnels.append(report(folder, self.project_to))
            _say(folder / "funnel.html", funnels[-1])
        if out is not None:
            from data_pipeline.report_total import report_total

            _say(out, report_total(folders, funnels, out))
        return 0


def _say(page: Path, funnel: dict) -> None:
    print(f"{page}: {funnel['rows_in']} rows in, {funnel['kept']} samples kept", file=sys.stderr, flush=True)


def group_failures(messages: dict[str, int]) -> dict[str, int]:
    """Counts by message -> counts by group, most frequent first; messages without a group stay as they are."""
    groups: Counter[str] = Counter()
    for message, count in messages.items():
        groups[group_of(message)] += count
    return dict(sorted(groups.items(), key=lambda item: (-item[1], item[0])))


def group_of(message: str) -> str:
    return next((name for pattern, name in GROUPS if re.search(pattern, message)), message[:80])


def _read(path: Path, command: str) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run first: python -m data_pipeline {command}") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: damaged; run again: python -m data_pipeline {command}") from None


def make_funnel(curated: dict, downloaded: dict, verified: dict) -> dict:
    """The funnel from the three stages' records. UserError when a stage's numbers do not add up to the next one's."""
    damaged = [entry["path"].removeprefix("shards/").removesuffix(".tar") for entry in verified["damaged"]]
    in_damaged = sum(downloaded["shards"].get(name, [0, 0, 0])[2] for name in damaged)
    lost = Counter(curated["dropped"]) + Counter(verified["rejected"])
    funnel = {
        "format": FORMAT,
        "source": curated["source"],
        "rows_in": curated["rows_in"],
        "dropped": curated["dropped"],
        "requested": downloaded["requested"],
        "failed": group_failures(downloaded["failed"]),
        "failed_messages": dict(Counter(downloaded["failed"]).most_common(50)),
        "statuses": dict((Counter({SUCCESS: downloaded["downloaded"]}) + Counter(downloaded["failed"])).most_common()),
        "downloaded": downloaded["downloaded"],
        "in_damaged_shards": in_damaged,
        "damaged_shards": verified["damaged"],
        "verified": verified["samples"],
        "rejected": verified["rejected"],
        "kept": verified["kept"],
        "duplicates": {reason: count for reason, count in lost.items() if re.match(DUPLICATE, reason)},
        "decontaminated": {reason: lost[reason] for reason in (IN_EVALUATION, CAPTION_IN_EVALUATION) if lost[reason]},
    }
    check_sums(funnel)
    return funnel


def check_sums(funnel: dict) -> None:
    """Raises `UserError` when a stage's numbers do not add up to the next one's."""
    in_tars = funnel["in_damaged_shards"] + funnel["verified"]
    sums = (
        ("rows in", funnel["rows_in"], "dropped and requested", sum(funnel["dropped"].values()) + funnel["requested"]),
        ("requested", funnel["requested"], "failed and downloaded", sum(funnel["failed"].values()) + funnel["downloaded"]),
        ("downloaded", funnel["downloaded"], "in damaged shards and verified", in_tars),
        ("verified", funnel["verified"], "rejected and kept", sum(funnel["rejected"].values()) + funnel["kept"]),
    )
    for name, total, parts, count in sums:
        if total != count:
            raise UserError(
                f"the funnel does not add up: {total} {name}, {count} {parts}; a stage changed after the next one ran; "
                "run download, verify and report again"
            )


def histogram(values: np.ndarray, low: float | None = None, high: float | None = None, log: bool = False) -> dict:
    """{counts, edges, scale, least, median, most} of numbers, in up to HISTOGRAM_BINS bins from `low` (default: the least) to
    `high` (default: the 99th percentile); the outer bins hold what lies beyond. Bins are a whole number wide, all the same; with
    `log`, and over more than a doubling, of equal ratio."""
    import numpy as np

    low = values.min() if low is None else low
    high = max(np.quantile(values, 0.99), low) if high is None else high
    log = log and high > 2 * low > 0
    if log:
        edges = np.geomspace(low, high, HISTOGRAM_BINS + 1)
    else:
        width = max(1, math.ceil((high - low + 1) / HISTOGRAM_BINS))
        edges = np.arange(low, high + width + 1, width)[: HISTOGRAM_BINS + 1]
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)
    facts = {"least": values.min(), "median": np.median(values), "most": values.max()}
    return {
        "counts": counts.tolist(),
        "edges": [round(float(edge), 3) for edge in edges],
        "scale": "log" if log else "linear",
        **{name: round(float(value), 3) for name, value in facts.items()},
    }


def _samples(folder: Path) -> tuple[list[dict], dict]:
    """Some kept samples from evenly spaced places (picture as a data URI, caption), and distributions over up to
    HISTOGRAM_SHARDS shards."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_pipeline.manifest import Manifest, ManifestError

    try:
        manifest = Manifest.load(folder)
        shards = [number for number, shard in enumerate(manifest.shards) if shard.kept]
        chosen = shards[:: max(1, len(shards) // HISTOGRAM_SHARDS)][:HISTOGRAM_SHARDS]
        tables = {number: manifest.index(number, SAMPLE_COLUMNS) for number in chosen}
    except ManifestError as error:
        raise UserError(str(error)) from None
    sheet = []
    for place in range(SHEET_SAMPLES):
        number = chosen[place * len(chosen) // SHEET_SAMPLES]
        table = tables[number]
        row = table.slice((place * 7919) % table.num_rows, 1).to_pylist()[0]
        if row["image_bytes"] > SHEET_BYTES or any(entry["key"] == row["key"] for entry in sheet):
            continue
        handle = os.open(manifest.shards[number].path, os.O_RDONLY)
        try:
            picture = os.pread(handle, row["image_bytes"], row["image_offset"])
            text = os.pread(handle, row["text_bytes"], row["text_offset"])
        finally:
            os.close(handle)
        sheet.append(
            {
                "key": row["key"],
                "picture": "data:image/jpeg;base64," + base64.b64encode(picture).decode(),
                "caption": text.decode("utf-8"),
                "size": f"{row['width']} x {row['height']}",
            }
        )
    chars, widths, heights = (
        np.concatenate([table[name].to_numpy() for table in tables.values()]) for name in ("caption_chars", "width", "height")
    )
    originals = []
    for number in chosen:
        try:
            columns = ["original_width", "original_height"]
            table = pq.read_table(manifest.shards[number].path.with_suffix(".parquet"), columns=columns).drop_null()
            originals.append(np.minimum(*(table[name].to_numpy() for name in columns)))
        except (OSError, KeyError, pa.ArrowException):
            continue  # deleted, or of a mirror that has none
    original = np.concatenate(originals) if originals else np.empty(0)
    sides = np.minimum(widths, heights)
    short_side = histogram(sides, high=sides.max())
    numbers = {
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "bytes_per_sample": manifest.bytes / manifest.samples,
        "caption_chars": histogram(chars),
        "short_side": {name: short_side[name] for name in ("least", "median", "most")},
        "image_size": {
            "pictures": len(sides),
            "short_side": short_side,
            "aspect": histogram(widths / heights, 1 / MOST_ASPECT, MOST_ASPECT, log=True),
            "original_pictures": len(original),
            "original_short_side": histogram(original, log=True) if len(original) else None,
        },
    }
    return sheet, numbers


def _downloading(folder: Path, downloaded: dict) -> dict:
    """What the shards' stats and sidecars say: by host, over time, how long it took."""
    root = folder.absolute()
    stats, without = read_stats(shard_paths(root, downloaded))
    if not without:
        check_stats(folder, stats, downloaded)
    outcomes = outcomes_of(root, stats, without)
    took = hours(stats)
    return {
        "hosts": worst_hosts([outcomes]) if outcomes.statuses else None,
        "sidecars": {
            "shards": len(downloaded["shards"]),
            "left_out": len(outcomes.left_out),
            "reasons": dict(list(outcomes.left_out.items())[:LEFT_OUT_NAMED]),
        },
        "over_time": over_time(stats),
        "stats_missing": len(without),
        "hours": took,
        "rows_per_second": sum(shard.rows for shard in stats) / (3600 * took["job"]) if took and took["job"] else None,
    }


def _records(folder: Path) -> tuple[dict, dict, dict]:
    """What curation, download and verification recorded of a folder that was downloaded, whole or in parts."""
    if (folder / PARTS).is_dir():
        return (
            read_curate(folder),
            sum_of_downloads(folder),
            _read(folder / "manifest" / "verify.json", f"merge --data {folder}"),
        )
    curated = read_curate(folder)
    downloaded = _read(folder / "download.json", f"download --data {folder}")
    if "downloaded" not in downloaded:
        raise UserError(
            f"{folder / 'download.json'}: the download is not finished; run: python -m data_pipeline download --data {folder}"
        )
    return curated, downloaded, _read(folder / "manifest" / "verify.json", f"verify --data {folder}")


def report(folder: Path, project_to: int | None = None) -> dict:
    """Writes DIR/funnel.json and DIR/funnel.html; returns the former's content.

    Args:
        project_to: see `project`. A part folder (its rows are curated already) is projected only when this is given.

    Raises:
        UserError: a stage is missing or damaged, or the stages do not add up.
    """
    from data_pipeline.report_page import render

    folder = Path(folder)
    if (folder / "mirror.json").exists():  # adopted: the way begins with the tars that could be read
        verified = _read(folder / "manifest" / "verify.json", f"verify --data {folder}")
        total = verified["samples"]
        curated = {"source": "wds", "rows_in": total, "dropped": {}}
        downloaded = {"requested": total, "downloaded": total, "failed": {}, "shards": {}}
        funnel = make_funnel(curated, downloaded, verified)
        funnel |= dict.fromkeys(("hosts", "sidecars", "over_time", "hours", "rows_per_second")) | {"stats_missing": 0}
    else:
        curated, downloaded, verified = _records(folder)
        funnel = make_funnel(curated, downloaded, verified)
        funnel |= _downloading(folder, downloaded)
    sheet, numbers = _samples(folder)
    funnel |= numbers
    in_part = folder.absolute().parent.name == PARTS
    funnel["projection"] = project(funnel, 0 if in_part and project_to is None else project_to)
    write_json(folder / "funnel.json", funnel)
    write_bytes(folder / "funnel.html", render(folder.absolute().name, funnel, sheet).encode("utf-8"))
    return funnel

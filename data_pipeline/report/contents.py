"""What the kept samples are: some of them as they are, and how sizes and captions are distributed."""

from __future__ import annotations

import base64
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.errors import UserError
from data_pipeline.shards.manifest import Manifest, ManifestError

SHEET_SAMPLES = 12
SHEET_BYTES = 1 << 20
HISTOGRAM_SHARDS = 64
HISTOGRAM_BINS = 24
MOST_ASPECT = 4.0
"""Histograms of width / height go from its inverse to it; the outer bars hold what lies beyond."""
SAMPLE_COLUMNS = ("key", "image_offset", "image_bytes", "text_offset", "text_bytes", "width", "height", "caption_chars")


def histogram(values: np.ndarray, low: float | None = None, high: float | None = None, log: bool = False) -> dict:
    """{counts, edges, scale, least, median, most} of numbers, in up to HISTOGRAM_BINS bins from `low` (default: the least) to
    `high` (default: the 99th percentile); the outer bins hold what lies beyond. Bins are a whole number wide, all the same; with
    `log`, and over more than a doubling, of equal ratio."""
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


def look_inside(folder: Path) -> tuple[list[dict], dict]:
    """Some kept samples from evenly spaced places (picture as a data URI, caption), and distributions over up to
    HISTOGRAM_SHARDS shards."""
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

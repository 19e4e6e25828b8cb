"""The funnel: rows in, dropped by what, requested, downloaded, failed by what, verified, kept. Every stage adds up or
it is an error."""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.curate import read_curate
from data_pipeline.errors import UserError
from data_pipeline.files import write_bytes, write_json
from data_pipeline.parts import PARTS, sum_of_downloads

FORMAT = 1
SHEET_SAMPLES = 12
SHEET_BYTES = 1 << 20
HISTOGRAM_SHARDS = 64
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


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Writes the funnel of a data set folder: funnel.json and funnel.html."""

    data: Path
    """Data set folder, curated, downloaded and verified."""

    def run(self) -> int:
        funnel = report(self.data)
        print(
            f"{self.data / 'funnel.html'}: {funnel['rows_in']} rows in, {funnel['kept']} samples kept",
            file=sys.stderr,
            flush=True,
        )
        return 0


def group_failures(messages: dict[str, int]) -> dict[str, int]:
    """Counts by message -> counts by group, most frequent first; messages without a group stay as they are."""
    groups: Counter[str] = Counter()
    for message, count in messages.items():
        groups[next((name for pattern, name in GROUPS if re.search(pattern, message)), message[:80])] += count
    return dict(sorted(groups.items(), key=lambda item: (-item[1], item[0])))


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
    funnel = {
        "format": FORMAT,
        "source": curated["source"],
        "rows_in": curated["rows_in"],
        "dropped": curated["dropped"],
        "requested": downloaded["requested"],
        "failed": group_failures(downloaded["failed"]),
        "failed_messages": dict(Counter(downloaded["failed"]).most_common(50)),
        "downloaded": downloaded["downloaded"],
        "in_damaged_shards": in_damaged,
        "damaged_shards": verified["damaged"],
        "verified": verified["samples"],
        "rejected": verified["rejected"],
        "kept": verified["kept"],
    }
    sums = (
        ("rows in", funnel["rows_in"], "dropped and requested", sum(funnel["dropped"].values()) + funnel["requested"]),
        (
            "requested",
            funnel["requested"],
            "failed and downloaded",
            sum(funnel["failed"].values()) + funnel["downloaded"],
        ),
        (
            "downloaded",
            funnel["downloaded"],
            "in damaged shards and verified",
            funnel["in_damaged_shards"] + funnel["verified"],
        ),
        ("verified", funnel["verified"], "rejected and kept", sum(funnel["rejected"].values()) + funnel["kept"]),
    )
    for name, total, parts, count in sums:
        if total != count:
            raise UserError(
                f"the funnel does not add up: {total} {name}, {count} {parts}; a stage changed after the next one ran; "
                "run download, verify and report again"
            )
    return funnel


def _samples(folder: Path) -> tuple[list[dict], dict]:
    """Some kept samples from evenly spaced places (picture as a data URI, caption), and distributions over up to
    HISTOGRAM_SHARDS shards."""
    import numpy as np

    from data_pipeline.manifest import Manifest, ManifestError

    try:
        manifest = Manifest.load(folder)
        shards = [number for number, shard in enumerate(manifest.shards) if shard.kept]
        chosen = shards[:: max(1, len(shards) // HISTOGRAM_SHARDS)][:HISTOGRAM_SHARDS]
        tables = {number: manifest.index(number) for number in chosen}
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
    chars = np.concatenate([table["caption_chars"].to_numpy() for table in tables.values()])
    sides = np.concatenate([np.minimum(table["width"].to_numpy(), table["height"].to_numpy()) for table in tables.values()])
    counts, edges = np.histogram(chars, bins=24)
    numbers = {
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "caption_chars": {
            "counts": counts.tolist(),
            "edges": [round(float(edge), 1) for edge in edges],
            "median": float(np.median(chars)),
        },
        "short_side": {"least": int(sides.min()), "median": float(np.median(sides)), "most": int(sides.max())},
    }
    return sheet, numbers


def report(folder: Path) -> dict:
    """Writes DIR/funnel.json and DIR/funnel.html; returns the former's content."""
    from data_pipeline.report_page import render

    folder = Path(folder)
    if (folder / "mirror.json").exists():  # adopted: the way begins with the tars that could be read
        verified = _read(folder / "manifest" / "verify.json", f"verify --data {folder}")
        total = verified["samples"]
        curated = {"source": "wds", "rows_in": total, "dropped": {}}
        downloaded = {"requested": total, "downloaded": total, "failed": {}, "shards": {}}
    elif (folder / PARTS).is_dir():
        curated, downloaded = read_curate(folder), sum_of_downloads(folder)
        verified = _read(folder / "manifest" / "verify.json", f"merge --data {folder}")
    else:
        curated = read_curate(folder)
        downloaded = _read(folder / "download.json", f"download --data {folder}")
        if "downloaded" not in downloaded:
            raise UserError(
                f"{folder / 'download.json'}: the download is not finished; run: python -m data_pipeline download --data {folder}"
            )
        verified = _read(folder / "manifest" / "verify.json", f"verify --data {folder}")
    funnel = make_funnel(curated, downloaded, verified)
    sheet, numbers = _samples(folder)
    funnel |= numbers
    write_json(folder / "funnel.json", funnel)
    write_bytes(folder / "funnel.html", render(folder.absolute().name, funnel, sheet).encode("utf-8"))
    return funnel

"""Data set folders written by hand: tars, sidecars and stats as img2dataset leaves them, of rows that a test chooses."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.files import image_id, write_json
from data_pipeline.report.outcomes import LOST
from tests.worlds.data.data_sets import parts, write_tar

ODD = (
    "http://Example.COM/1.jpg",
    "https://example.com:8443/2.jpg",
    "http://user@example.com/3.jpg",
    "http://user:password@EXAMPLE.com:80/4.jpg?of=http://other.org/",
    "HTTPS://example.com./5.jpg",
    "http://example.com?6=@other.org",
    "http://example.com#7",
    "http://[2001:DB8::1]:8080/8.jpg",
    "http://[2001:db8::1]/9.jpg",
    "http://b\u00fccher.example/\u00fc.jpg",
    "http://B\u00dcCHER.example:81/11.jpg",
    "http://\u4f8b\u3048.jp/12.jpg",
    "http://127.0.0.1:8731/13.jpg",
    "http:///14.jpg",
    "http://:80/15.jpg",
    "file:///etc/16.jpg",
    "17.jpg",
    "",
    "http://it's.example/19.jpg",
)
REASONS = ("success", "http 404", "success", "timeout", "name not found", 'it\'s "odd" \u2603', "success")


def slow_host(url: str) -> str:
    """By the standard library, which shares nothing with what is tested."""
    parts = urlsplit(url)
    host = parts.hostname if parts.scheme in ("http", "https") else None
    host = (host or "").rstrip(".")
    return f"[{host}]" if ":" in host else host


def rows_of(count: int, seed: int, hosts: int = 12) -> list[tuple[str, str]]:
    """(url, outcome), the odd ones among them."""
    generator = np.random.default_rng(seed)
    usual = [f"https://host{generator.integers(hosts)}.example.org/{seed}/{number}.jpg" for number in range(count - len(ODD))]
    return [(url, REASONS[generator.integers(len(REASONS))]) for url in (*ODD, *usual)]


def slow_counts(rows: Sequence[tuple[str, str]]) -> Counter:
    return Counter((slow_host(url), outcome) for url, outcome in rows)


def write_sidecar(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    """As img2dataset: a line a row, 100 to a row group, in the order of arrival."""
    lines = [
        {
            "uid": image_id(url),
            "caption": f"caption of {url}",
            "url": url,
            "key": f"{place:04d}",
            "status": "success" if outcome == "success" else "failed_to_download",
            "error_message": None if outcome == "success" else outcome,
            "width": 40 if outcome == "success" else None,
            "height": 30 if outcome == "success" else None,
            "original_width": 400 + place if outcome == "success" else None,
            "original_height": 300 if outcome == "success" else None,
        }
        for place, (url, outcome) in enumerate(rows)
    ]
    kinds = {"width": pa.int32(), "height": pa.int32(), "original_width": pa.int32(), "original_height": pa.int32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in lines[0]])
    pq.write_table(pa.Table.from_pylist(lines, schema), path, row_group_size=100)


def write_stats(path: Path, rows: Sequence[tuple[str, str]], start: float = 1000.0, end: float = 1010.0, lost: int = 0) -> None:
    statuses = Counter(outcome for _, outcome in rows)
    record = {
        "count": len(rows) + lost,
        "successes": statuses["success"],
        "duration": end - start,
        "start_time": start,
        "end_time": end,
        "status_dict": statuses,
    }
    path.write_text(json.dumps(record))


def write_arrived(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    members = []
    for place, (url, outcome) in enumerate(rows):
        if outcome != "success":
            continue
        noise = np.random.default_rng(int(image_id(url), 16)).integers(0, 255, (30, 40, 3)).astype(np.uint8)
        jpeg, caption = cv2.imencode(".jpg", noise)[1].tobytes(), f"<i>caption</i> of {place}".encode()
        facts = {"uid": image_id(url), "url": url, "width": 40, "height": 30}
        members += parts(f"{place:04d}", jpg=jpeg, txt=caption, json=json.dumps(facts).encode())
    write_tar(path, members)


def write_folder(folder: Path, shards: Sequence[Sequence[tuple[str, str]]], lost: int = 0, **curated: object) -> Path:
    """A data set folder after `download`: shards of (url, outcome), 10 s each, the next one starting 5 s after the last."""
    (folder / "shards").mkdir(parents=True)
    (folder / "canonical").mkdir()
    outcomes, record = Counter(), {}
    for number, rows in enumerate(shards):
        base = folder / "shards" / f"{number:05d}"
        write_sidecar(base.with_suffix(".parquet"), rows)
        write_arrived(base.with_suffix(".tar"), rows)
        start = 1000.0 + 5 * number
        write_stats(base.with_name(f"{base.name}_stats.json"), rows, start, start + 10, lost if number == 0 else 0)
        found = Counter(outcome for _, outcome in rows)
        outcomes.update(found)
        record[base.name] = [base.with_suffix(".tar").stat().st_size, 1, found["success"]]
    requested = outcomes.total() + lost
    downloaded = outcomes.pop("success", 0)
    failed = outcomes + Counter({LOST: lost})
    write_json(
        folder / "download.json",
        {"format": 1, "settings": {}, "shards": record, "requested": requested, "downloaded": downloaded, "failed": failed},
    )
    parts = [{"path": "part-00000.parquet", "rows": requested, "sha256": ""}]
    dropped = {"nsfw": 7, "duplicate url": 3, "caption too frequent": 2}
    rows_in = requested + sum(curated.get("dropped", dropped).values())
    given = {"source": "generic", "rows_in": rows_in, "dropped": dropped, "rows_out": requested, "parts": parts}
    write_json(folder / "canonical/curate.json", given | curated)
    return folder

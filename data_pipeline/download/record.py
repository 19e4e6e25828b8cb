"""What a download recorded of itself, in DIR/download.json, and of one in parts, their sum."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.errors import UserError, to_run

PARTS = "parts"


def part_folders(folder: Path) -> list[Path]:
    """Part folders in order. Raises `UserError` where there are none, or not all that the canonical rows were split into."""
    found = sorted(path for path in (Path(folder) / PARTS).glob("[0-9]*") if path.is_dir())
    wanted = len(read_curate(folder)["parts"])
    if len(found) != wanted:
        raise UserError(f"{Path(folder) / PARTS}: {len(found)} of {wanted} parts; run: {to_run('split', folder)}")
    return found


def sum_of_downloads(folder: Path) -> dict:
    """download.json of all parts together, for the report. Raises `UserError` for one that is not finished."""
    total = {"requested": 0, "downloaded": 0, "failed": Counter(), "shards": {}}
    for part in part_folders(folder):
        path = part / "download.json"
        try:
            record = json.loads(path.read_text())
            total["requested"] += record["requested"]
            total["downloaded"] += record["downloaded"]
        except (OSError, ValueError, KeyError):
            raise UserError(f"{path}: missing or not finished; run: {to_run('download', part)}") from None
        total["failed"].update(record["failed"])
        total["shards"].update({f"{PARTS}/{part.name}/shards/{name}": facts for name, facts in record["shards"].items()})
    return total | {"failed": dict(total["failed"].most_common())}

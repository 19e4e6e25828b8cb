"""The funnel: rows in, dropped by what, requested, downloaded, failed by what, verified, kept. Every stage adds up or
it is an error."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.download.record import PARTS, sum_of_downloads
from data_pipeline.errors import UserError, to_run
from data_pipeline.files import write_bytes, write_json
from data_pipeline.local.build import is_local, read_record
from data_pipeline.report.contents import look_inside
from data_pipeline.report.funnel import make_funnel
from data_pipeline.report.outcomes import (
    check_stats,
    hours,
    outcomes_of,
    over_time,
    read_stats,
    shard_paths,
    worst_hosts,
)
from data_pipeline.report.projection import project
from data_pipeline.shards.adopt import is_mirror

LEFT_OUT_NAMED = 20
NOT_DOWNLOADED = dict.fromkeys(("hosts", "sidecars", "over_time", "hours", "rows_per_second")) | {"stats_missing": 0}


def _read(path: Path, command: str) -> dict:
    """Args: command: what writes the file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run first: {command}") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: damaged; run again: {command}") from None


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
            _read(folder / "manifest" / "verify.json", to_run("merge", folder)),
        )
    curated = read_curate(folder)
    downloaded = _read(folder / "download.json", to_run("download", folder))
    if "downloaded" not in downloaded:
        raise UserError(f"{folder / 'download.json'}: the download is not finished; run: {to_run('download', folder)}")
    return curated, downloaded, _read(folder / "manifest" / "verify.json", to_run("verify", folder))


def report(folder: Path, project_to: int | None = None) -> dict:
    """Writes DIR/funnel.json and DIR/funnel.html; returns the former's content.

    Args:
        project_to: see `project`. A part folder (its rows are curated already) is projected only when this is given.

    Raises:
        UserError: a stage is missing or damaged, or the stages do not add up.
    """
    from data_pipeline.report.page import render

    folder = Path(folder)
    if is_mirror(folder):  # adopted: the way begins with the tars that could be read
        verified = _read(folder / "manifest" / "verify.json", to_run("verify", folder))
        total = verified["samples"]
        curated = {"source": "wds", "rows_in": total, "dropped": {}}
        downloaded = {"requested": total, "downloaded": total, "failed": {}, "shards": {}}
        funnel = make_funnel(curated, downloaded, verified)
        funnel |= NOT_DOWNLOADED
    elif is_local(folder):  # packed: it begins with the files and captions that were found
        downloaded = _read(folder / "download.json", "python -m data_pipeline build --source folder")
        verified = _read(folder / "manifest" / "verify.json", to_run("verify", folder))
        funnel = make_funnel(read_record(folder), downloaded, verified) | NOT_DOWNLOADED
    else:
        curated, downloaded, verified = _records(folder)
        funnel = make_funnel(curated, downloaded, verified)
        funnel |= _downloading(folder, downloaded)
    sheet, numbers = look_inside(folder)
    funnel |= numbers
    in_part = folder.absolute().parent.name == PARTS
    funnel["projection"] = project(funnel, 0 if in_part and project_to is None else project_to)
    write_json(folder / "funnel.json", funnel)
    write_bytes(folder / "funnel.html", render(folder.absolute().name, funnel, sheet).encode("utf-8"))
    return funnel

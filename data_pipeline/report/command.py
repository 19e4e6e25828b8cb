"""The funnel: rows in, dropped by what, requested, downloaded, failed by what, verified, kept. Every stage adds up or
it is an error."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.download.record import PARTS, sum_of_downloads
from data_pipeline.errors import UserError
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

if TYPE_CHECKING:
    pass

LEFT_OUT_NAMED = 20
NOT_DOWNLOADED = dict.fromkeys(("hosts", "sidecars", "over_time", "hours", "rows_per_second")) | {"stats_missing": 0}


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
            from data_pipeline.report.total import report_total

            _say(out, report_total(folders, funnels, out))
        return 0


def _say(page: Path, funnel: dict) -> None:
    print(f"{page}: {funnel['rows_in']} rows in, {funnel['kept']} samples kept", file=sys.stderr, flush=True)


def _read(path: Path, command: str) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: not there; run first: python -m data_pipeline {command}") from None
    except (OSError, ValueError):
        raise UserError(f"{path}: damaged; run again: python -m data_pipeline {command}") from None


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
    from data_pipeline.report.page import render

    folder = Path(folder)
    if is_mirror(folder):  # adopted: the way begins with the tars that could be read
        verified = _read(folder / "manifest" / "verify.json", f"verify --data {folder}")
        total = verified["samples"]
        curated = {"source": "wds", "rows_in": total, "dropped": {}}
        downloaded = {"requested": total, "downloaded": total, "failed": {}, "shards": {}}
        funnel = make_funnel(curated, downloaded, verified)
        funnel |= NOT_DOWNLOADED
    elif is_local(folder):  # packed: it begins with the files and captions that were found
        again = "build --source folder"
        downloaded = _read(folder / "download.json", again)
        verified = _read(folder / "manifest" / "verify.json", f"verify --data {folder}")
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

"""One catalogue on many machines: canonical rows in part folders, each downloaded and verified by a job of its own, then merged.

A part folder is a data set folder like any other: every command works in it. Duplicates went before, in `curate`, so no sample is
in two parts. Merging copies no tar: the manifest of the whole names those in the parts.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.catalogue.curate import read_curate
from data_pipeline.download.record import PARTS, part_folders
from data_pipeline.errors import UserError
from data_pipeline.files import sync_folder, write_json
from data_pipeline.progress import Progress
from data_pipeline.shards.verify import read_summary, write_summary


@dataclass(frozen=True, kw_only=True)
class SplitCommand:
    """Makes a folder of every canonical part of a curated data set: DIR/parts/00000 and on, for a job each."""

    data: Path
    """Data set folder with canonical/ (from curate)."""

    def run(self) -> int:
        count = split(self.data)
        print(f"{self.data / PARTS}: {count} parts; download and verify each, then merge", file=sys.stderr, flush=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class MergeCommand:
    """One manifest over the verified parts of a data set folder; writes DIR/manifest and the report."""

    data: Path
    """Data set folder with parts/ (from split)."""

    def run(self) -> int:
        from data_pipeline.report.writing import report

        summary = merge(self.data)
        report(self.data)
        print(f"{self.data}: {summary['kept']} of {summary['samples']} samples kept in {summary['tars']} shards", file=sys.stderr)
        return 0


def split(folder: Path) -> int:
    """Writes the part folders, each whole or not at all; those that are there stay. Returns their number.

    Raises:
        UserError: not curated, rows already downloaded into the folder itself, or parts of other rows.
    """
    folder = Path(folder)
    curated = read_curate(folder)
    if (folder / "download.json").exists():
        raise UserError(f"{folder}: its rows are downloaded as one; splitting is for folders that are curated only")
    root = folder / PARTS
    root.mkdir(exist_ok=True)
    for left_over in root.glob(".*.part"):
        shutil.rmtree(left_over, ignore_errors=True)
    for number, part in enumerate(curated["parts"]):
        target = root / f"{number:05d}"
        if target.exists():
            if read_curate(target)["parts"][0]["sha256"] != part["sha256"]:
                raise UserError(f"{target}: holds other rows than canonical/{part['path']}; delete {root} and split again")
            continue
        temporary = root / f".{number:05d}.{os.getpid()}.part"
        (temporary / "canonical").mkdir(parents=True)
        link_or_copy(folder / "canonical" / part["path"], temporary / "canonical" / "part-00000.parquet")
        own = {"rows_in": part["rows"], "rows_out": part["rows"], "dropped": {}, "parts": [part | {"path": "part-00000.parquet"}]}
        write_json(temporary / "canonical" / "curate.json", curated | own)
        temporary.rename(target)
    sync_folder(root)
    return len(curated["parts"])


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def merge(folder: Path) -> dict:
    """Writes the manifest of all parts together and verify.json; returns the latter's content. Parts are only read.

    Raises:
        UserError: a part that is missing, unfinished, unverified or damaged; nothing is written then.
    """
    from data_pipeline.shards.manifest import MARKS, Manifest, ManifestError  # and with it pyarrow

    folder = Path(folder).absolute()
    parts = part_folders(folder)
    rows, damaged, reused = [], [], 0
    before = read_summary(folder)["rejected"] if (folder / "manifest" / "verify.json").exists() else {}
    index = folder / "manifest" / "index"
    index.mkdir(parents=True, exist_ok=True)
    with Progress("merge", len(parts), "parts") as bar:
        checked = []
        for part in parts:
            try:
                checked.append((part, Manifest.load(part), read_summary(part)))
            except ManifestError as error:
                raise UserError(str(error)) from None
            bar.advance()
        for part, manifest, summary in checked:
            inside = part.relative_to(folder).as_posix()
            for row in manifest.shards.table.to_pylist():
                name = f"{part.name}-{Path(row['index']).name}"
                temporary = index / f".{name}"
                temporary.unlink(missing_ok=True)
                link_or_copy(manifest.root / row["index"], temporary)  # `mark` replaces it without touching the part's
                os.replace(temporary, index / name)
                rows.append(row | {"path": f"{inside}/{row['path']}", "index": f"manifest/index/{name}"})
            damaged += [entry | {"path": f"{inside}/{entry['path']}"} for entry in summary["damaged"]]
            reused += len(manifest.shards)
    wanted = {Path(row["index"]).name for row in rows}
    for path in index.iterdir():
        if path.name not in wanted:
            path.unlink()
    summary = write_summary(folder, rows, damaged, reused)
    if any(summary["rejected"].get(mark, 0) < before.get(mark, 0) for mark in MARKS):  # parts may have marks of their own
        print(f"{folder}: merged anew, so what `mark` had left out is in it again: run `mark` again", file=sys.stderr, flush=True)
    return summary

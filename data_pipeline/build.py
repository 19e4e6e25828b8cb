"""One data set folder in one command: curate, download, verify and report; or, of tars that are there already, adopt,
verify, report."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.catalogue.curate import plan as curation
from data_pipeline.download.job import check_options, download, most_frequent
from data_pipeline.download.job import plan as planned_download
from data_pipeline.download.options import DownloadOptions
from data_pipeline.errors import UserError
from data_pipeline.shards.adopt import adopt
from data_pipeline.shards.verify import print_summary, verify

LAST_STAGES = ("verify: then, every tar", "report: then, the funnel")
ADOPTION = ("source", "metadata", "out", "processes", "verify_processes")
"""Options of `build` that mean something for tars that are there already."""


@dataclass(frozen=True, kw_only=True)
class AdoptCommand:
    """Makes a data set folder of tars that are already downloaded: links, verifies, indexes, reports. Status as of build."""

    tars: str
    """Folder of the tars, or a glob in quotes."""
    out: Path
    """The data set folder. Its tars are hard links where the file system allows it, else symbolic ones."""
    processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""

    def run(self) -> int:
        return _adopted("--tars", self.tars, self.out, {"--processes": self.processes})


@dataclass(frozen=True, kw_only=True)
class BuildCommand(DownloadOptions, CurateOptions):
    """Catalogue to verified shards: curate, download, verify and report, into one data set folder. The same command
    resumes. Status 0: all is well; 1: built without the tars that it names; 2: not built, in a line what to do."""

    verify_processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""
    dry_run: bool = False
    """Say what would be done, and what is done already; change nothing."""

    def run(self) -> int:
        if self.dry_run:
            print("\n".join(self._plan()))
            return 0
        if self.source == "wds":
            return self._adopt()
        check_options(self)
        curate(self)
        state = download(self.out, self)
        if not state["downloaded"]:
            raise UserError(f"{self.out}: none of {state['requested']} rows arrived ({most_frequent(state['failed'])})")
        return _finish(self.out, self.verify_processes, "delete them")

    def _plan(self) -> list[str]:
        """What `run` would do, stage by stage, as far as it can be known now."""
        if self.source == "wds":
            return [f"adopt: link the tars that --metadata {self.metadata} names into {self.out / 'shards'}", *LAST_STAGES]
        check_options(self)
        lines = curation(self)
        curated = (self.out / "canonical" / "curate.json").exists()
        downloading = planned_download(self.out, self) if curated else ["download: then, the rows that are left"]
        return [*lines, *downloading, *LAST_STAGES]

    def _adopt(self) -> int:
        """Adopts the tars whole. Raises `UserError`, before anything is done, for options of what is curated or downloaded."""
        given = [field.name for field in fields(self) if field.name not in ADOPTION and getattr(self, field.name) != field.default]
        if given:
            options = ", ".join("--" + name.replace("_", "-") for name in given)
            raise UserError(f"{options}: without effect with --source wds, whose tars are taken as they are; leave that out")
        processes = {"--processes": self.processes, "--verify-processes": self.verify_processes}
        return _adopted("--metadata", self.metadata, self.out, processes)


def _adopted(option: str, tars: str, out: Path, processes: dict[str, int]) -> int:
    """Links, verifies and reports; returns the status.

    Args:
        option: by which the tars were given. processes: what was given of them, by option; the smallest counts.
    """
    for name, count in processes.items():
        if count < 1:
            raise UserError(f"{name} {count}: expected at least 1")
    linked = adopt(tars, out, option)
    print(f"{out / 'shards'}: {linked} tars", file=sys.stderr, flush=True)
    return _finish(out, min(processes.values()), "mend them in the mirror (git lfs pull, or download them again)")


def _finish(folder: Path, processes: int, mend: str) -> int:
    """Verifies and reports; returns the status: 1 if tars were left out."""
    from data_pipeline.report.writing import report  # with pyarrow, which asking for help need not wait for

    summary = verify(folder, processes)
    print_summary(folder, summary)
    report(folder)
    print(f"{folder}: built; the funnel is {folder / 'funnel.html'}", file=sys.stderr, flush=True)
    if summary["damaged"]:
        left_out = f"without {len(summary['damaged'])} of {summary['tars']} tars, named above"
        print(f"{folder}: {left_out}: {mend} and give the same command again", file=sys.stderr, flush=True)
    return 1 if summary["damaged"] else 0

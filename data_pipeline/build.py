"""One data set folder in one command: curate, download, verify and report; or, of tars that are there already, adopt,
verify, report."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.catalogue.curate import CurateOptions, curate
from data_pipeline.download.job import check_options, download, most_frequent
from data_pipeline.download.options import DownloadOptions
from data_pipeline.errors import UserError
from data_pipeline.report.command import report
from data_pipeline.shards.adopt import adopt
from data_pipeline.shards.verify import print_summary, verify


@dataclass(frozen=True, kw_only=True)
class AdoptCommand:
    """Makes a data set folder of tars that are already downloaded: links, verifies, indexes, reports."""

    tars: str
    """Folder of the tars, or a glob in quotes."""
    out: Path
    """The data set folder. Its tars are hard links where the file system allows it, else symbolic ones."""
    processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""

    def run(self) -> int:
        linked = adopt(self.tars, self.out)
        print(f"{self.out / 'shards'}: {linked} tars", file=sys.stderr, flush=True)
        print_summary(self.out, verify(self.out, self.processes))
        report(self.out)
        print(f"{self.out}: built; the funnel is {self.out / 'funnel.html'}", file=sys.stderr, flush=True)
        return 0


@dataclass(frozen=True, kw_only=True)
class BuildCommand(DownloadOptions, CurateOptions):
    """Catalogue to verified shards: curate, download, verify and report, into one data set folder. The same command
    resumes."""

    verify_processes: int = max(1, os.cpu_count() or 1)
    """Tars checked at the same time."""

    def run(self) -> int:
        if self.source == "wds":
            return AdoptCommand(tars=self.metadata, out=self.out, processes=self.verify_processes).run()
        check_options(self)
        curate(self)
        state = download(self.out, self)
        if not state["downloaded"]:
            raise UserError(f"{self.out}: none of {state['requested']} rows arrived ({most_frequent(state['failed'])})")
        print_summary(self.out, verify(self.out, self.verify_processes))
        report(self.out)
        print(f"{self.out}: built; the funnel is {self.out / 'funnel.html'}", file=sys.stderr, flush=True)
        return 0

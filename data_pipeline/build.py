"""One data set folder in one command: curate, download, verify, report."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from data_pipeline.adopt import AdoptCommand
from data_pipeline.curate import CurateOptions, curate
from data_pipeline.download import DownloadOptions, check_options, download, most_frequent
from data_pipeline.errors import UserError
from data_pipeline.report import report
from data_pipeline.verify import print_summary, verify


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

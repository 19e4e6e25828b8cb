"""`python -m data_pipeline report`: its options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data_pipeline.errors import UserError


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
        from data_pipeline.report.writing import report

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

"""`python -m sycoca_ds.eval datasets --data-root DIR`: which of the paper's sets are there, counted and checked."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from data_pipeline.files import write_json
from data_pipeline.progress import Progress
from sycoca_ds.eval.datasets.check import ABSENT, BROKEN, Finding, look
from sycoca_ds.eval.datasets.registry import Count, OfficialSet, folder_of
from sycoca_ds.eval.exports.finding import all_sets, own_folders, sets_of

WIDTH = 118


def show_sets(data_root: str, sets: tuple[str, ...] = (), decode: bool = False, json: str | None = None) -> int:
    """Prints what is there, and writes it where that was asked for. Raises `UserError`."""
    root = folder_of(data_root)
    entries = sets_of(sets, root) if sets else all_sets(root)
    findings = [(entry, split, _look(entry, root, split, decode)) for entry in entries for split in entry.counts]
    there = {entry.name for entry, _, finding in findings if finding.state != ABSENT}
    print_findings([row for row in findings if row[0].name in there or row[1] == row[0].evaluated])
    if own := [] if sets else own_folders(root):
        print(f"data set folders of this project, for --data: {', '.join(own)}")
    if json:
        write_json(Path(json), [as_json(*row) for row in findings])
    return int(any(finding.state == BROKEN for _, _, finding in findings))


def _look(entry: OfficialSet, root: Path, split: str, decode: bool) -> Finding:
    if not decode:
        return look(entry, root, split)
    with Progress(f"decode {entry.name} {split}", total=entry.counts[split].pictures, unit="images") as bar:
        return look(entry, root, split, decode=True, told=bar.set)


def as_json(entry: OfficialSet, split: str, finding: Finding) -> dict:
    return {
        "set": entry.name,
        "split": split,
        "state": finding.state,
        "folder": str(finding.root) if finding.root else None,
        "found": asdict(finding.found) if finding.found else None,
        "official": asdict(entry.counts[split]),
        "problems": list(finding.problems),
        "notes": list(finding.notes),
        "page": entry.page,
    }


def told(count: Count | None, what: str) -> str:
    value = getattr(count, what) if count else None
    return "-" if value is None else f"{value:,}"


def print_findings(findings: list[tuple[OfficialSet, str, Finding]]) -> None:
    """A row a split, and below the table a line a problem and a note."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table()
    table.add_column("set")
    table.add_column("split")
    for what in ("pictures", "official", "captions", "official", "classes", "official"):
        table.add_column(what, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    last = None
    for entry, split, finding in findings:
        if last is not None and last is not entry:
            table.add_section()
        official = entry.counts[split]
        numbers = [told(count, what) for what in ("pictures", "captions", "classes") for count in (finding.found, official)]
        colour = {BROKEN: "bold red", ABSENT: "dim"}.get(finding.state, "green")
        table.add_row(entry.name if entry is not last else "", split, *numbers, f"[{colour}]{finding.state}[/]")
        last = entry
    Console(width=max(console.width, WIDTH)).print(table)
    for state in (BROKEN, ABSENT):
        lines = [line for _, _, finding in findings if finding.state == state for line in finding.problems]
        if lines:
            print(f"{state}:")
        for line in lines:
            print(f"  {line}")
    notes = [f"  {entry.name}, split {split}: {note}" for entry, split, finding in findings for note in finding.notes]
    if notes:
        print("notes:", *notes, sep="\n")

"""The commands beside evaluate.py, `python -m sycoca_ds.eval COMMAND`: their options. Torch comes with what they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from sycoca_ds.eval.comparison import PERMUTATIONS


@dataclass(frozen=True)
class DatasetsCommand:
    """Shows which of the paper's sets and which exports (WebDatasets, parquet folders) are there, counted and checked against the
    official counts. Status 0 where all that is there is whole, 1 where something is broken."""

    data_root: str
    """Folder with a folder a set."""
    sets: tuple[str, ...] = ()
    """Which sets to look at, wds:NAME and parquet:NAME among them; default all."""
    decode: bool = False
    """Open and decode every picture, too, on all cores; else only that it is there is checked."""
    json: str | None = None
    """File for the same as JSON."""

    def run(self) -> int:
        from sycoca_ds.eval.datasets.command import show_sets

        return show_sets(self.data_root, self.sets, self.decode, self.json)


@dataclass(frozen=True)
class CompareCommand:
    """Checkpoints side by side, the first one against each of the others: difference with its 95 % interval, p of a paired test
    over the same pictures, Holm-corrected over the table, and the smallest difference that so many pictures could have shown."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Two or more folders that evaluate.py --out has left, of the same data."""
    numbers: tuple[str, ...] = ()
    """Which numbers, TASK.NUMBER or TASK; default the headlines of every task that all folders have."""
    names: tuple[str, ...] = ()
    """What the checkpoints are called, in the order of the folders; default the folders' names."""
    out: Path | None = None
    """Folder for comparison.json and comparison.md."""
    seed: int = 0
    """Of exchanges and resamples."""
    permutations: int = PERMUTATIONS
    """Exchanges of a permutation test: p is at least 1 / (this + 1)."""

    def run(self) -> int:
        from sycoca_ds.eval.comparison.command import compare_folders

        return compare_folders(self.folders, self.numbers, self.names, self.out, self.seed, self.permutations)


@dataclass(frozen=True)
class PaperCommand:
    """Writes OUT/paper.html, paper.md and paper.json again from the numbers in OUT: after evaluations into OUT/vqa or OUT/caption,
    or a change of the page. Nothing is evaluated."""

    out: str
    """Folder that `evaluate.py --suite paper --out` has left."""

    def run(self) -> int:
        from sycoca_ds.eval.paper.page import write_paper

        paper = write_paper(self.out)
        print(f"{paper['measured']} of {paper['cells']} numbers\npage:    {self.out}/paper.html")
        return 0

"""`python -m sycoca_ds.eval paper --out OUT`: the page beside the paper's tables, written again."""

from __future__ import annotations

from dataclasses import dataclass

from sycoca_ds.eval.paper.page import write_paper


@dataclass(frozen=True)
class PaperCommand:
    """Writes OUT/paper.html, paper.md and paper.json again from the numbers in OUT: after evaluations into OUT/vqa or OUT/caption,
    or a change of the page. Nothing is evaluated."""

    out: str
    """Folder that `evaluate.py --suite paper --out` has left."""

    def run(self) -> int:
        paper = write_paper(self.out)
        print(f"{paper['measured']} of {paper['cells']} numbers\npage:    {self.out}/paper.html")
        return 0

"""`python -m data_pipeline mark`: its options."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class MarkCommand:
    """Marks near duplicates and evaluation data in verified data set folders; training then leaves them out."""

    data: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Data set folders; of two near pictures the one in the earlier folder stays."""
    evaluation: tuple[Path, ...] = ()
    """Data set folders of evaluation sets: pictures near theirs and captions equal to theirs are left out."""
    duplicate_bits: int = 0
    """Bits of 64 in which the hashes of two near duplicates may differ, -1: none are looked for. Above 0 the work grows with the
    square of the rows: up to some ten million."""
    evaluation_bits: int = 6
    """The same against evaluation pictures."""
    memory_limit: str = "4GB"
    """What DuckDB may take; it goes on in files beyond that."""
    dry_run: bool = False
    """Compare, and say what would be marked; change nothing."""

    def run(self) -> int:
        from data_pipeline.errors import to_run
        from data_pipeline.shards.mark import mark

        dry = self.dry_run
        counts = mark(self.data, self.evaluation, self.duplicate_bits, self.evaluation_bits, self.memory_limit, write=not dry)
        for folder, marked in counts.items():
            said = ", ".join(f"{count} {reason}" for reason, count in marked.items()) or "nothing"
            if dry:
                print(f"{folder}: would mark {said}")
            else:
                print(f"{folder}: marked {said}; its report anew: {to_run('report', folder)}", file=sys.stderr)
        return 0

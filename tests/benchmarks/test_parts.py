"""The benchmarks that start trainings of their own still do: rows come out, and the bare loop's losses are the loop's."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.parts import checkpoint, engine

pytestmark = pytest.mark.full


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("part", "rows"), [(engine, ["zero0", "zero1", "zero3"]), (checkpoint, ["stands still", "written", "verified", "opened"])]
)
def test_rows_come_out(part, rows: list[str]) -> None:
    found = [row.facts() for row in part.measure(argparse.Namespace(turns=1, threads=1), {})]
    assert len(found) == len(rows) and all(name in row["what"] for name, row in zip(rows, found, strict=True))
    assert all(row["rate"] > 0 for row in found)

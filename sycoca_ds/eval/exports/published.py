"""Numbers that somebody published, to stand beside ours: `--beside FILE` or `--beside FILE,ROW`.

    .csv      a row a model, a column a set, as open_clip's docs/openclip_results.csv; ROW is its first column, or its first ones
              with commas: coca_ViT-L-14,laion2b_s13b_b90k
    .jsonl    a line a set, as DataComp's evaluate.py writes: {"dataset": "ImageNet 1k", "metrics": {"main_metric": 0.63}}
    .json     {"ImageNet 1k": 0.63, ...}, or an OUT/datacomp.json of ours

Columns that are none of the 38 sets are passed over. Where no number is above 1 they are fractions, else percent.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from sycoca_ds.eval.exports.tasklist import LISTED

MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class Published:
    """Numbers of one model."""

    name: str
    percent: dict[str, float]
    """{title of a set: percent}."""


def read_beside(said: str) -> Published:
    """Raises `UserError`: no such file, another form, no such row, none of the sets."""
    path, comma, row = said.partition(",")
    where, file, ours = f"--beside {said}", Path(path), False
    if not file.is_file():
        raise UserError(f"{where}: no such file {path}; expected numbers of a model as .csv, .jsonl or .json (docs/evaluation.md)")
    if file.stat().st_size > MOST_BYTES:
        raise UserError(f"{where}: more than {MOST_BYTES:,} bytes, expected a table")
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix == ".csv":
            name, found = _of_csv(where, list(csv.DictReader(text.splitlines())), row)
        else:
            if comma:
                raise UserError(f"{where}: only a .csv has rows to choose among")
            name, found = (_of_lines if file.suffix == ".jsonl" else _of_json)(file, text)
            ours = file.suffix != ".jsonl" and {"numbers", "sets", "of"} <= json.loads(text).keys()
        numbers = {title: float(value) for title, value in found.items() if value not in (None, "")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, csv.Error, RecursionError) as error:
        raise UserError(f"{where}: not as expected of {file.suffix or 'a file'} ({error!r}); see docs/evaluation.md") from error
    titles = {row.key: row.title for row in LISTED} | {row.title: row.title for row in LISTED}
    own = {titles[name]: number for name, number in numbers.items() if name in titles}
    if not own or not all(math.isfinite(number) and 0 <= number <= 100 for number in own.values()):
        raise UserError(f"{where}: expected numbers from 0 to 100 under names such as {LISTED[0].title} and {LISTED[1].title}")
    scale = 100.0 if max(own.values()) <= 1 and not ours else 1.0  # ours are percent, however small
    return Published(name, {title: scale * number for title, number in own.items()})


def _of_csv(where: str, rows: list[dict[str, str]], wanted: str) -> tuple[str, dict[str, Any]]:
    titles = {row.title for row in LISTED}

    def called(row: dict[str, str], columns: int) -> str:
        return ",".join([value or "" for value in row.values()][:columns])

    if not rows:
        raise UserError(f"{where}: no row")
    names = [called(row, 1) for row in rows]
    found = [row for row in rows if wanted in (called(row, 1), called(row, wanted.count(",") + 1))] if wanted else rows
    if len(found) != 1:
        whole = [called(row, 2) for row in (found or rows)]
        told = f"{len(found)} rows" if found else f"no row {wanted}{nearest(wanted, dict.fromkeys(names + whole))}"
        raise UserError(f"{where}: {told}; name one as FILE,ROW, such as {whole[0]}")
    (row,) = found
    return wanted or names[0], {column: value for column, value in row.items() if column in titles}


def _of_lines(file: Path, text: str) -> tuple[str, dict[str, Any]]:
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    return file.stem, {line["dataset"]: line["metrics"].get("main_metric") for line in lines}


def _of_json(file: Path, text: str) -> tuple[str, dict[str, Any]]:
    content = json.loads(text)
    numbers = content.get("numbers", content)
    return str(content.get("name", file.stem)), {name: value for name, value in numbers.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def mean(values: Iterable[float]) -> float | None:
    """None of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else None

"""Catalogues that are text (tsv, csv, jsonl) -> parquet of strings, so that every engine reads the same rows.

Engines' own CSV readers disagree on what a line is, and lose rows: a lone carriage return ends a row of DuckDB's, a byte that is
not UTF-8 ends its whole run. Here a row of a tsv ends at a line feed, nothing else, and nothing is quoted; wrong bytes become
U+FFFD."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from data_pipeline.progress import Progress

ROWS_PER_BATCH = 100_000
FIELD_BYTES = 4 << 20
JSON_LINES_FOR_NAMES = 10_000
"""Lines of a jsonl whose keys are taken for its columns."""
TEXT_KINDS = (".tsv", ".csv", ".jsonl", ".ndjson")


def tsv_rows(path: Path) -> Iterator[list[str]]:
    """Fields of every line that is not empty."""
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(FIELD_BYTES)
            ended, line = line.endswith(b"\n"), line.rstrip(b"\r\n")
            if not ended and (len(line) >= FIELD_BYTES - 1 or number == 1 and b"\r" in line):
                raise UserError(
                    f"--metadata {path}: line {number} is longer than {FIELD_BYTES} bytes, or ends with a carriage return alone; "
                    "expected rows that end with a line feed"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line and not ended:
                return
            if line:
                yield line.decode("utf-8", "replace").split("\t")


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Fields of every row by RFC 4180: fields in quotes may hold commas, line feeds and doubled quotes."""
    csv.field_size_limit(FIELD_BYTES)
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        yield from (row for row in csv.reader(line.replace("\0", " ") for line in file) if row)  # 3.10 refuses NUL


def json_rows(path: Path) -> Iterator[dict]:
    """Objects of every line that is not empty; a line that holds none gives an empty one."""
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                try:
                    record = json.loads(line.decode("utf-8-sig", "replace"))
                except (ValueError, RecursionError):
                    record = None
                yield {as_text(name): value for name, value in record.items()} if isinstance(record, dict) else {}


def as_text(value: object) -> str | None:
    """A JSON value as the text it was: strings as they are, the others as JSON; null as None."""
    if value is None or isinstance(value, str):
        # A lone surrogate (a \ud800 in the file) is no text and fits into no UTF-8.
        return None if value is None else value.encode("utf-8", "replace").decode()
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


def columns_of(path: Path, headerless: Sequence[str] | None) -> list[str]:
    """Names of the columns, in order. `headerless`: those of a tsv that has no header. Raises `UserError` for an empty file."""
    if path.suffix == ".tsv" and headerless:
        return list(headerless)
    if path.suffix in (".jsonl", ".ndjson"):
        return list(dict.fromkeys(name for row in itertools.islice(json_rows(path), JSON_LINES_FOR_NAMES) for name in row))
    return next(tsv_rows(path) if path.suffix == ".tsv" else csv_rows(path), [])


def _values(path: Path, headerless: Sequence[str] | None, columns: Sequence[str]) -> Iterator[list[str | None]]:
    """Rows of one file in the order of `columns` (lower case). Fields that a row lacks are None, further ones are dropped; but
    where there is no header they are the caption's, which held a tab."""
    if path.suffix in (".jsonl", ".ndjson"):
        for record in json_rows(path):
            row = {name.lower(): value for name, value in record.items()}
            yield [as_text(row.get(name)) for name in columns]
        return
    rows, surplus = tsv_rows(path) if path.suffix == ".tsv" else csv_rows(path), None
    if path.suffix == ".tsv" and headerless:
        surplus = list(headerless).index("caption")
    else:
        next(rows, None)
    own = [name.lower() for name in columns_of(path, headerless)]
    places = [own.index(name) if name in own else -1 for name in columns]
    for row in rows:
        if surplus is not None and len(row) > len(own):
            end = surplus + 1 + len(row) - len(own)
            row[surplus:end] = [" ".join(row[surplus:end])]
        yield [row[place] if 0 <= place < len(row) else None for place in places]


def to_parquet(files: Sequence[Path], headerless: Sequence[str] | None, target: Path, bar: Progress | None = None) -> list[str]:
    """Writes all rows of `files` as one parquet of strings and returns its columns (of all files together, compared
    without case).

    Raises:
        UserError: a file that cannot be read, or has no columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = files[0]
    try:
        names: dict[str, str] = {}
        for path in files:
            own = columns_of(path, headerless)
            if len({name.lower() for name in own}) < len(own):
                raise UserError(f"--metadata {path}: columns that differ in case only: {', '.join(own)[:300]}; rename one of them")
            names = {name.lower(): name for name in own} | names
        columns = list(names.values())
        if not columns:
            raise UserError(f"--metadata {files[0]}: empty; expected a header and rows")
        schema = pa.schema([(name, pa.string()) for name in columns])
        count = 0
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for path in files:
                rows = _values(path, headerless, list(names))
                while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
                    arrays = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
                    count += len(batch)
                    if bar is not None:
                        bar.note(f"{count} rows read")
        return columns
    except (OSError, UnicodeError, csv.Error, io.UnsupportedOperation) as error:
        raise UserError(f"--metadata {path}: cannot be read ({error})") from None

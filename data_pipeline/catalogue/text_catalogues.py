"""Catalogues that are text (tsv, csv, jsonl) -> parquet of strings, so that every engine reads the same rows.

Engines' own CSV readers disagree on what a line is, and lose rows: a lone carriage return ends a row of DuckDB's, a byte that is
not UTF-8 ends its whole run. Here a row of a tsv ends at a line feed, nothing else, and nothing is quoted; a quote in a csv that
takes whole rows for its text is an error; wrong bytes become U+FFFD."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.catalogue.sources import EMPTY, LIST_OF_TEXTS, TEXT, Column, merged
from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from data_pipeline.progress import Progress

ROWS_PER_BATCH = 100_000
FIELD_BYTES = 4 << 20
SEPARATORS = (",", ";", "\t", "|")
"""Of a csv; the semicolon is Excel's where numbers have a decimal comma."""
JSON_LINE_BYTES = 256 << 20
"""Pictures may be in it."""
JSON_LINES_FOR_NAMES = 10_000
"""Lines of a jsonl whose keys are taken for its columns."""
JSON_KINDS = (".jsonl", ".ndjson")
LINE_END = re.compile(r"\r\n|\r|\n")
URL_FIELD = re.compile(r"https?://\S+", re.IGNORECASE)


def lines_of(path: Path, most_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Lines that end at a line feed, with their numbers from 1, without line end and byte order mark. UserError for one that is too
    long, and for a file whose lines all end at carriage returns."""
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(most_bytes)
            ended, line = line.endswith(b"\n"), line.rstrip(b"\r\n")
            if not ended and (len(line) >= most_bytes - 1 or number == 1 and b"\r" in line):
                raise UserError(
                    f"--metadata {path}: line {number} is longer than {most_bytes} bytes, or ends with a carriage return alone; "
                    "expected rows that end with a line feed"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line and not ended:
                return
            yield number, line


def tsv_rows(path: Path) -> Iterator[list[str]]:
    """Fields of every line that is not empty."""
    for _, line in lines_of(path, FIELD_BYTES):
        if line:
            yield line.decode("utf-8", "replace").split("\t")


def _rows(path: Path) -> Iterator[list[str]]:
    """Fields of every row of a tsv or csv, of the latter by the separator that divides its header into most columns."""
    if path.suffix == ".tsv":
        return tsv_rows(path)
    return csv_rows(path, max(SEPARATORS, key=lambda separator: len(next(csv_rows(path, separator), []))))


def csv_rows(path: Path, separator: str = ",") -> Iterator[list[str]]:
    """Fields of every row by RFC 4180: fields in quotes may hold separators, line feeds and doubled quotes. UserError for a quote
    that nobody closes, or that takes whole rows for its text."""
    csv.field_size_limit(FIELD_BYTES)
    own: list[str] = []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:

        def noted() -> Iterator[str]:
            for line in file:
                own.append(line.replace("\0", " "))  # 3.10 refuses NUL
                yield own[-1]

        reader, columns, first = csv.reader(noted(), delimiter=separator), None, 1
        while True:
            own.clear()
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if len(own) == 1:
                    raise UserError(f"--metadata {path}: line {first}: {error}") from None
                raise _stray_quote(path, first, "no quote closes it within 4 MiB") from None
            if len(own) > 1:
                _check_quotes(path, row, own, first, columns or len(row), separator)
            first = reader.line_num + 1
            if row:
                columns = columns or len(row)
                yield row


def _check_quotes(path: Path, row: list[str], lines: list[str], first: int, columns: int, separator: str) -> None:
    """Whether the lines of a row belong to it: its quotes are closed before a separator or a line end, and no line in a field looks
    like a row by itself, with a URL between commas and as many fields as there is room for."""
    opened, broken = first, first
    for place, field in enumerate(row):
        inside = LINE_END.split(field)
        for number, line in enumerate(inside) if len(inside) > 1 else ():
            alone = next(csv.reader([line], delimiter=separator), [])
            room = columns - place if number == 0 else place + 1 if number == len(inside) - 1 else columns
            if len(alone) >= max(room, 2) and any(map(_is_url_field, alone, [*alone[1:], ""])):
                raise _stray_quote(path, opened, "the lines after it are rows")
        if len(inside) > 1 and broken == first:
            broken = opened
        opened += len(inside) - 1
    try:
        list(csv.reader(lines, delimiter=separator, strict=True))
    except csv.Error as error:
        raise _stray_quote(path, broken, str(error)) from None


def _is_url_field(value: str, following: str) -> bool:
    """Whether it is a URL between commas of a csv: with a blank behind its comma it stands in a sentence."""
    return URL_FIELD.fullmatch(value.strip()) is not None and not following.startswith(" ")


def _stray_quote(path: Path, line: int, why: str) -> UserError:
    return UserError(
        f"--metadata {path}: line {line}: a quote opens a field there and is not closed as it should be ({why}); expected quotes "
        "around whole fields, and those in a text doubled: mend the line, or write the catalogue as tsv, where nothing is quoted"
    )


def json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """(line, object) of every line that is not empty; a line that holds none gives an empty one. Objects in it are fields of their
    own, `caption.en`."""
    for number, line in lines_of(path, JSON_LINE_BYTES):
        if line.strip():
            try:
                record = json.loads(line.decode("utf-8-sig", "replace"), strict=False)
                row = dict(_flat(record, "")) if isinstance(record, dict) else {}
            except (ValueError, RecursionError):
                row = {}
            yield number, row


def _flat(record: dict, before: str) -> Iterator[tuple[str, object]]:
    for name, value in record.items():
        name = before + as_text(name)
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def as_text(value: object) -> str | None:
    """A JSON value as the text it was: strings as they are, the others as JSON; null as None."""
    if value is None or isinstance(value, str):
        # A lone surrogate (a \ud800 in the file) is no text and fits into no UTF-8.
        return None if value is None else value.encode("utf-8", "replace").decode()
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace").decode()


def text_columns(files: Sequence[Path], headerless: Sequence[str] | None) -> list[Column]:
    """The columns of all files together. `headerless`: those of a tsv that has no header.

    Raises:
        UserError: a file that cannot be read, or nothing in any of them.
    """
    layouts = [(file, _layout(file, headerless)) for file in files]
    if not any(layout for _, layout in layouts):
        raise UserError(f"--metadata {files[0]}: empty; expected a header and rows")
    return [replace(column, kind=TEXT) if column.kind == EMPTY else column for column in merged(layouts)]


def _layout(path: Path, headerless: Sequence[str] | None) -> list[tuple[tuple[str, ...], str]]:
    try:
        kinds = _json_kinds(path).items() if path.suffix in JSON_KINDS else ((name, TEXT) for name in _names(path, headerless))
        return [((name,), kind) for name, kind in kinds]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--metadata {path}: cannot be read ({error})") from None


def _json_kinds(path: Path) -> dict[str, str]:
    """{key: kind} by the first lines; objects that are nowhere anything else are there themselves, too."""
    kinds: dict[str, str] = {}
    spelt: dict[str, str] = {}
    for _, row in itertools.islice(json_rows(path), JSON_LINES_FOR_NAMES):
        twins = len({name.lower() for name in row}) < len(row)
        for name, value in row.items():
            name = name if twins else spelt.setdefault(name.lower(), name)
            kind = EMPTY if value is None else LIST_OF_TEXTS if isinstance(value, list) else TEXT
            if kind == LIST_OF_TEXTS or kinds.get(name, EMPTY) == EMPTY:
                kinds[name] = kind
    parents = dict.fromkeys(name.rsplit(".", 1)[0] for name in kinds if "." in name)
    return {parent: "objects" for parent in parents if parent not in kinds} | kinds


def _names(path: Path, headerless: Sequence[str] | None) -> list[str]:
    """Columns of a tsv or csv."""
    if path.suffix == ".tsv" and headerless:
        return list(headerless)
    return next(_rows(path), [])


def _json_values(path: Path, chosen: Mapping[str, Column]) -> Iterator[list[str | None]]:
    """Rows of a jsonl, values in the order of `chosen`; of a list of captions a row for each, where those are wanted."""
    wanted = {name: column.name.lower() for name, column in chosen.items()}
    for number, record in json_rows(path):
        row = {name.lower(): value for name, value in record.items()}
        values = {name: row.get(key) for name, key in wanted.items()}
        for name in ("url", "caption"):
            if wrong := _not_text(values[name], wanted[name], row, chosen[name].kind == LIST_OF_TEXTS):
                raise UserError(
                    f"--metadata {path}: line {number}: {chosen[name].name} holds {wrong}; expected {chosen[name].kind}: choose "
                    f"another with --{name}-col, or write it as text"
                )
        captions = values["caption"] if isinstance(values["caption"], list) else [values["caption"]]
        for caption in captions or [None]:
            yield [as_text(caption if name == "caption" else value) for name, value in values.items()]


def _not_text(value: object, key: str, row: dict, lists: bool) -> str:
    """What stands where a text should, in words; empty where one does, or nothing."""
    fields = [other for other in row if other.startswith(f"{key}.")] if value is None else []
    if fields:
        return f"an object ({', '.join(fields)[:200]})"
    if isinstance(value, list) and not (lists and all(entry is None or isinstance(entry, str) for entry in value)):
        return "a list of more than texts" if lists else "a list"
    return ""


def _values(path: Path, headerless: Sequence[str] | None, chosen: Mapping[str, Column]) -> Iterator[list[str | None]]:
    """Rows of one file, values in the order of `chosen` (compared without case). Fields that a row lacks are None, further ones are
    dropped; but where there is no header they are the caption's, which held a tab."""
    if path.suffix in JSON_KINDS:
        yield from _json_values(path, chosen)
        return
    rows, surplus = _rows(path), None
    if path.suffix == ".tsv" and headerless:
        surplus = list(headerless).index("caption")
    else:
        next(rows, None)
    own = [name.lower() for name in _names(path, headerless)]
    places = [own.index(name) if name in own else -1 for name in (column.name.lower() for column in chosen.values())]
    for row in rows:
        if surplus is not None and len(row) > len(own):
            end = surplus + 1 + len(row) - len(own)
            row[surplus:end] = [" ".join(row[surplus:end])]
        yield [row[place] if 0 <= place < len(row) else None for place in places]


def to_parquet(
    files: Sequence[Path],
    headerless: Sequence[str] | None,
    chosen: Mapping[str, Column],
    target: Path,
    bar: Progress | None = None,
) -> None:
    """Writes the chosen columns of all `files`, under their canonical names, as one parquet of strings.

    Raises:
        UserError: a file that cannot be read, and what in it is no text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = files[0]
    schema = pa.schema([(name, pa.string()) for name in chosen])
    try:
        count = 0
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for path in files:
                rows = _values(path, headerless, chosen)
                while batch := list(itertools.islice(rows, ROWS_PER_BATCH)):
                    arrays = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
                    writer.write_batch(pa.record_batch(arrays, schema=schema))
                    count += len(batch)
                    if bar is not None:
                        bar.note(f"{count} rows read")
    except (OSError, UnicodeError, io.UnsupportedOperation) as error:
        raise UserError(f"--metadata {path}: cannot be read ({error})") from None

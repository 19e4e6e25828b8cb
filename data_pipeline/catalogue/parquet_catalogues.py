"""Catalogues that are parquet: what their columns hold, read from the files themselves, since engines make a text of anything; and
copies of files whose texts are not all UTF-8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.catalogue.sources import DATES, EMPTY, LIST_OF_TEXTS, NUMBERS, TEXT, WHOLE, Column, merged
from data_pipeline.errors import UserError, one_line

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 16_384
READERS = 16
"""Footers read at the same time: catalogues have thousands of files, on disks that answer slowly."""


def parquet_columns(files: Sequence[Path]) -> list[Column]:
    """The columns of all files together, fields of structs as columns of their own. Raises `UserError` for a file that cannot be
    read."""
    return merged((file, [(path, kind_of(kind)) for path, kind in fields]) for file, fields in _fields(files))


Places = dict[str, tuple[tuple[str, ...], "pa.DataType"]]
"""Of a file: name of a column -> where it is there, and of which type."""


def alike(files: Sequence[Path], columns: Mapping[str, Column]) -> list[tuple[Places, list[Path]]]:
    """The files in groups that have these columns in the same places and of the same types, for readers that do not bring different
    ones together. A column that holds nothing in a file has no place there. Raises `UserError` for a file that cannot be read."""
    groups: dict[tuple, tuple[Places, list[Path]]] = {}
    for file, fields in _fields(files):
        there: Places = {}
        for name, column in columns.items():
            for path, kind in fields:
                if path in (column.path, *column.spellings) and kind_of(kind) != EMPTY:
                    there.setdefault(name, (path, kind))
        key = tuple((name, path, str(kind)) for name, (path, kind) in there.items())
        groups.setdefault(key, (there, []))[1].append(file)
    return list(groups.values())


def _fields(files: Sequence[Path]) -> Iterator[tuple[Path, list[tuple[tuple[str, ...], pa.DataType]]]]:
    """Of every file the types of its columns and of their fields, by path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def of(file: Path) -> list[tuple[tuple[str, ...], pa.DataType]]:
        try:
            return [entry for field in pq.read_schema(file) for entry in _leaves((field.name,), field.type)]
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"--metadata {file}: cannot be read ({one_line(error)})") from None

    with ThreadPoolExecutor(READERS) as pool:
        yield from zip(files, pool.map(of, files), strict=True)


def _leaves(path: tuple[str, ...], kind: pa.DataType) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
    import pyarrow as pa

    yield path, kind
    if pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves((*path, field.name), field.type)


def kind_of(kind: pa.DataType) -> str:
    """Of an arrow type: one of the kinds of `sources`, or what it is called."""
    import pyarrow.types as t

    if hasattr(kind, "storage_type"):
        return kind_of(kind.storage_type)
    if t.is_dictionary(kind):
        return kind_of(kind.value_type)
    if any(is_text(kind) for is_text in (t.is_string, t.is_large_string, t.is_binary, t.is_large_binary)):
        return TEXT
    if any(is_view(kind) for is_view in (t.is_string_view, t.is_binary_view)):
        return TEXT
    if _is_list(kind):
        # of nothing: all lists of this file are empty, where those of others may hold texts
        return LIST_OF_TEXTS if kind_of(kind.value_type) in (TEXT, EMPTY) else str(kind)
    if t.is_integer(kind) or t.is_boolean(kind):
        return WHOLE
    if t.is_floating(kind) or t.is_decimal(kind):
        return NUMBERS
    if t.is_date(kind):
        return DATES
    if t.is_struct(kind):
        return f"structs of {', '.join(field.name for field in kind)[:200]}"
    return EMPTY if t.is_null(kind) else str(kind)


def is_of_nothing(kind: pa.DataType) -> bool:
    """Whether an arrow type is that of lists of which none ever held anything, as parquet has it and not every reader takes it."""
    return _is_list(kind) and kind_of(kind.value_type) == EMPTY


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as t

    return t.is_list(kind) or t.is_large_list(kind) or t.is_fixed_size_list(kind)


def is_valid(file: Path, columns: Sequence[str]) -> bool:
    """Whether all texts in these columns are UTF-8. Raises `OSError` or `ArrowException` from reading."""
    return all(_is_text(column) for batch in _batches(file, columns) for column in batch.columns)


def write_plain(file: Path, columns: Sequence[str], target: Path) -> None:
    """Writes these columns of a file anew, in types that every reader knows, wrong bytes as U+FFFD.

    Raises:
        OSError, ArrowException: from reading and writing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    try:
        for batch in _batches(file, columns):
            arrays = [column if _is_text(column) else _mended(column) for column in batch.columns]
            if writer is None:
                schema = pa.schema(
                    [(name, _plain_type(kind)) for name, kind in zip(batch.schema.names, batch.schema.types, strict=True)]
                )
                writer = pq.ParquetWriter(target, schema, compression="zstd")
            arrays = [array.cast(kind) for array, kind in zip(arrays, schema.types, strict=True)]
            writer.write_batch(pa.record_batch(arrays, schema=schema))
    finally:
        if writer is not None:
            writer.close()


def _batches(file: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    # ParquetFile takes a column with all its fields, and fewer where this file has not all
    with pq.ParquetFile(file) as source:
        yield from source.iter_batches(BATCH_ROWS, columns=[name for name in columns if name in source.schema_arrow.names])


def _plain_type(kind: pa.DataType, text: str = "string") -> pa.DataType:
    """The type without dictionaries and extensions, its texts and bytes, and what holds nothing, as `text` (string or binary)."""
    import pyarrow as pa

    if hasattr(kind, "storage_type"):
        return _plain_type(kind.storage_type, text)
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type, text)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type, text)) for field in kind])
    if _is_list(kind):
        return pa.list_(_plain_type(kind.value_type, text))
    return pa.type_for_alias(text) if kind_of(kind) in (TEXT, EMPTY) else kind


def _is_text(column: pa.Array) -> bool:
    import pyarrow as pa

    try:
        column.cast(_plain_type(column.type)).validate(full=True)
        return True
    except (pa.ArrowException, UnicodeDecodeError):
        return False


def _mended(column: pa.Array) -> pa.Array:
    import pyarrow as pa

    values = column.cast(_plain_type(column.type, "binary")).to_pylist()
    return pa.array([_decoded(value) for value in values], _plain_type(column.type))


def _decoded(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, list):
        return [_decoded(entry) for entry in value]
    return {name: _decoded(entry) for name, entry in value.items()} if isinstance(value, dict) else value

"""What runs the SQL of curation: DuckDB on this machine, or Spark on a cluster. Both give the same rows in the same parts."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from data_pipeline.catalogue.captions import unescape
from data_pipeline.catalogue.hosts import is_public_host
from data_pipeline.catalogue.parquet_catalogues import alike, is_of_nothing, is_valid, write_plain
from data_pipeline.catalogue.sources import EMPTY, LIST_OF_TEXTS, TEXT, Column, identifier
from data_pipeline.catalogue.spark import open_session
from data_pipeline.duck import Duck, quote
from data_pipeline.errors import UserError, one_line
from data_pipeline.paths import PlainPaths

BATCH_ROWS = 122_880
PREFIX_VALUES = 1 << 32
FUNCTIONS = (("py_unescape", unescape, "string"), ("py_public", is_public_host, "boolean"))


class EngineError(Exception):
    """What an engine said, on one line."""


class Engine(Protocol):
    """Runs SQL written for DuckDB."""

    def open(self, files: list[Path], columns: Mapping[str, Column]) -> None:
        """Makes columns of the parquet files the view `catalogue`, under the names that they have in `columns`. Of lists of texts
        it has a row for every text, for an empty one a row with null. Bytes that are not UTF-8 come out as U+FFFD. Raises
        `EngineError`."""

    def save(self, name: str, sql: str) -> None:
        """Runs a SELECT and keeps its rows, on disk, as the table `name`. Raises `EngineError`."""

    def rows(self, sql: str) -> list[tuple]: ...

    def share(self) -> float | None:
        """How much of the statement that runs in another thread is done, 0 to 1; None: not known."""

    def write(self, sql: str, number: int, folder: Path) -> None:
        """Writes the rows of a SELECT with a column uid into folder/part-00000.parquet and on, `number` of them, in the order
        of uid, url and caption; part i holds the uids from `part_begins(number)[i]` on. Raises `EngineError`."""

    def close(self) -> None: ...


def part_begins(number: int) -> list[str]:
    """First 8 hex digits of the least uid of every part: even shares of the range of uids (hashes, hence of the rows)."""
    return [f"{-(-index * PREFIX_VALUES // number):08x}" for index in range(number)]


def part_path(folder: Path, index: int) -> Path:
    return folder / f"part-{index:05d}.parquet"


class DuckDB:
    """DuckDB in this process, out of core: its tables lie in a file in `scratch`."""

    def __init__(self, scratch: Path, memory_limit: str):
        import duckdb
        import pyarrow as pa

        self._error, self._scratch = duckdb.Error, scratch
        self._duck = Duck(
            scratch, memory_limit, on_disk=True, autoinstall_known_extensions="false", autoload_known_extensions="false"
        )
        self.connection = self._duck.connection
        self.connection.execute("SET enable_progress_bar = true")  # for `share`; nothing is printed
        self.connection.execute("SET enable_progress_bar_print = false")
        self.connection.execute("SET preserve_insertion_order = false")  # it costs memory, and nothing here hangs on it

        for name, function, kind in FUNCTIONS:
            duck, arrow = ("VARCHAR", pa.string()) if kind == "string" else ("BOOLEAN", pa.bool_())
            self.connection.create_function(name, _on_arrow(function, arrow), ["VARCHAR"], duck, type="arrow")

    def open(self, files: list[Path], columns: Mapping[str, Column]) -> None:
        self._files, self._columns, self._mended = list(files), columns, False
        self._view()

    def _view(self) -> None:
        values = []
        for name, column in self._columns.items():
            if column.kind == EMPTY:
                continue
            value, *fields = column.path
            value = identifier(value)
            for field in fields:
                value = f"struct_extract({value}, {quote(field)})"
            if column.kind == LIST_OF_TEXTS:
                value = f"unnest(CASE WHEN len({value}) > 0 THEN {value} ELSE [NULL] END)"
            values.append(f"{value} AS {identifier(name)}")
        source = self._duck.parquet(self._files, "union_by_name = true", "binary_as_string = true")
        self._run(f"CREATE OR REPLACE VIEW catalogue AS SELECT {', '.join(values or ['NULL'])} FROM {source}")

    def save(self, name: str, sql: str) -> None:
        try:
            self._run(f"CREATE OR REPLACE TABLE {name} AS {sql}")
        except EngineError as error:
            if self._mended or not re.search("Invalid (string encoding|unicode)|UTF-?8", str(error)):
                raise
            # Looked for only now: to read all texts twice would cost every catalogue what few need.
            self._mend()
            self._run(f"CREATE OR REPLACE TABLE {name} AS {sql}")

    def _mend(self) -> None:
        """Puts copies in the place of files with texts that DuckDB refuses (its `utf8_validation = 'replace'` makes ? of them)."""
        import pyarrow as pa

        taken = [path[0] for column in self._columns.values() for path in (column.path, *column.spellings)]
        for number, file in enumerate(self._files):
            target = self._scratch / f"mended-{number:05d}.parquet"
            try:
                if not is_valid(file, taken):
                    write_plain(file, taken, target)
                    self._files[number] = target
            except (OSError, pa.ArrowException) as error:
                raise EngineError(f"{file}: {one_line(error)}") from None
        self._mended = True
        self._view()

    def rows(self, sql: str) -> list[tuple]:
        return self._run(sql).fetchall()

    def share(self) -> float | None:
        percent = self.connection.query_progress()
        return percent / 100 if percent >= 0 else None

    def write(self, sql: str, number: int, folder: Path) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        begins, index, writer = [*part_begins(number), "g"], 0, None
        try:
            # Sorted once and cut here: a COPY for every part would read all rows as often as there are parts.
            rows = self.connection.sql(f"SELECT * FROM ({sql}) AS rows ORDER BY uid, url, caption")
            reader = rows.to_arrow_reader(BATCH_ROWS)
            for batch in reader:
                table = pa.table(batch)
                while True:
                    if writer is None:
                        writer = pq.ParquetWriter(part_path(folder, index), table.schema, compression="zstd")
                    inside = table.filter(pc.less(table["uid"], begins[index + 1]))
                    writer.write_table(inside, BATCH_ROWS)
                    table = table.slice(inside.num_rows)
                    if not table.num_rows:
                        break
                    writer.close()
                    writer, index = None, index + 1
            for left in range(index + 1, number):  # no uid is that high; with a million rows a part that does not happen
                pq.write_table(reader.schema.empty_table(), part_path(folder, left), compression="zstd")
        except (self._error, pa.ArrowException, OSError) as error:  # what DuckDB meets in the middle comes through Arrow
            raise EngineError(one_line(error)) from None
        finally:
            if writer is not None:
                writer.close()

    def close(self) -> None:
        self._duck.close()

    def _run(self, sql: str):
        try:
            return self.connection.execute(sql)
        except self._error as error:
            raise EngineError(one_line(error)) from None


class Spark:
    """Spark: on this machine (`local[N]`), on the cluster of `master`, or in the session of a spark-submit that runs us.

    `scratch`, `folder` and the catalogue must be the same folders on all machines.
    """

    def __init__(self, scratch: Path, memory_limit: str, master: str | None):
        try:
            import sqlglot
        except ImportError:
            raise UserError("--engine spark: sqlglot is missing; install it: pip install 'sycoca-ds[spark]'") from None
        self._plain = PlainPaths()
        self.spark = open_session(
            master,
            self._plain(scratch),
            memory_limit,
            spark__sql__caseSensitive="true",  # a catalogue may have both URL and url
            spark__sql__ansi__enabled="true",
            spark__sql__parquet__binaryAsString="true",
            spark__sql__parquet__compression__codec="zstd",
        )
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        from pyspark.sql.functions import udf

        self.scratch, self._error = scratch, (PySparkException, Py4JError)
        self._translate = lambda sql: sqlglot.transpile(sql, read="duckdb", write="spark")[0]

        for name, function, kind in FUNCTIONS:
            self.spark.udf.register(name, udf(_or_none(function), kind, useArrow=True))

    def open(self, files: list[Path], columns: Mapping[str, Column]) -> None:
        from pyspark.sql import functions as F

        taken = {name: column for name, column in columns.items() if column.kind != EMPTY}
        frames = []
        for places, group in alike(files, taken):  # Spark merges no column of nothing with one of texts, and no numbers with texts
            if any(is_of_nothing(kind) for _, kind in places.values()):  # nor does it read such lists
                group = [self._written_plain(file, [path[0] for path, _ in places.values()]) for file in group]
            values = []
            for name, column in taken.items():
                value = F.lit(None)
                if name in places:
                    value = F.col(".".join("`" + part.replace("`", "``") + "`" for part in places[name][0]))
                    if column.kind == TEXT:
                        value = _valid(value.cast("string"))
                    if column.kind == LIST_OF_TEXTS:
                        value = F.explode_outer(F.transform(value, _valid))
                values.append(value.alias(name))
            with self._errors():
                frames.append(self._reader.parquet(*map(_spark_path, group)).select(*values or [F.lit(None)]))
        with self._errors():
            functools.reduce(lambda one, other: one.union(other), frames).createOrReplaceTempView("catalogue")

    def _written_plain(self, file: Path, columns: list[str]) -> Path:
        import pyarrow as pa

        target = self.scratch / f"plain-{sum(1 for _ in self.scratch.glob('plain-*')):05d}.parquet"
        try:
            write_plain(file, columns, target)
        except (OSError, pa.ArrowException) as error:
            raise EngineError(f"{file}: {one_line(error)}") from None
        return target

    @property
    def _reader(self):
        """Of parquet files, or folders of them, under whatever names: no patterns (the first option is Spark's own, for paths that
        it has resolved itself), and no columns from the names of folders."""
        return self.spark.read.options(__globPaths__="false", recursiveFileLookup="true")

    def save(self, name: str, sql: str) -> None:
        target = self.scratch / name
        with self._errors():
            self.spark.sql(self._translate(sql)).write.mode("overwrite").parquet(_spark_path(target))
            self._reader.parquet(_spark_path(target)).createOrReplaceTempView(name)

    def rows(self, sql: str) -> list[tuple]:
        with self._errors():
            return [tuple(row) for row in self.spark.sql(self._translate(sql)).collect()]

    def share(self) -> None:
        """Spark's own page (port 4040 of this machine) shows it."""

    def write(self, sql: str, number: int, folder: Path) -> None:
        import pyarrow.parquet as pq
        from pyspark.sql import functions as F

        target = self.scratch / "parts"
        with self._errors():
            prefix = F.conv(F.substring("uid", 1, 8), 16, 10).cast("long")
            frame = self.spark.sql(self._translate(sql)).withColumn("part", F.floor(prefix * number / PREFIX_VALUES).cast("int"))
            ordered = frame.repartition(number, "part").sortWithinPartitions("part", "uid", "url", "caption")
            ordered.write.mode("overwrite").partitionBy("part").parquet(_spark_path(target))
        for index in range(number):
            files = sorted((target / f"part={index}").glob("*.parquet"))
            if len(files) > 1:
                raise EngineError(f"{len(files)} files for part {index}; is spark.sql.files.maxRecordsPerFile set?")
            if files:
                os.replace(files[0], part_path(folder, index))
            else:  # no uid fell into its range; with a million rows a part that does not happen
                schema = pq.read_schema(next(iter([*folder.glob("part-*.parquet"), *target.glob("part=*/*.parquet")])))
                pq.write_table(schema.empty_table(), part_path(folder, index), compression="zstd")

    def close(self) -> None:
        self.spark.stop()
        self._plain.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise EngineError(one_line(error)) from None


def _spark_path(path: Path) -> str:
    """As Hadoop wants it: `Path.as_uri` would name another file, `%20` is no blank there."""
    return f"file://{path.resolve()}"


def _valid(text):
    """A column of texts with U+FFFD for bytes that are not UTF-8, as Python decodes them."""
    from pyspark.sql import functions as F

    # Before Spark 4 there was no function for it, and `decode` did not refuse.
    return F.make_valid_utf8(text) if hasattr(F, "make_valid_utf8") else F.decode(text.cast("binary"), "UTF-8")


def _or_none(function):
    return lambda text: None if text is None else function(text)


def _on_arrow(function, kind):
    import pyarrow as pa

    return lambda column: pa.array(map(_or_none(function), column.to_pylist()), kind)

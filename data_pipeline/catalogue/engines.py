"""What runs the SQL of curation: DuckDB on this machine, or Spark on a cluster. Both give the same rows in the same parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from data_pipeline.catalogue.captions import unescape
from data_pipeline.catalogue.hosts import is_public_host
from data_pipeline.catalogue.sources import quote
from data_pipeline.catalogue.spark import open_session
from data_pipeline.errors import UserError, one_line
from data_pipeline.lock import open_scratch

BATCH_ROWS = 122_880
PREFIX_VALUES = 1 << 32
FUNCTIONS = (("py_unescape", unescape, "string"), ("py_public", is_public_host, "boolean"))


class EngineError(Exception):
    """What an engine said, on one line."""


class Engine(Protocol):
    """Runs SQL written for DuckDB."""

    def open(self, files: list[Path]) -> list[tuple[str, bool]]:
        """Makes the parquet files the view `catalogue`; returns its columns: (name, whether it is text). Raises `EngineError`."""

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

        self._error = duckdb.Error
        settings = {
            "memory_limit": memory_limit,
            "temp_directory": str(scratch),
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        try:
            self.connection = open_scratch(scratch, settings)
        except duckdb.Error as error:
            raise UserError(f"--memory-limit {memory_limit}: {one_line(error)}") from None
        self.connection.execute("SET enable_progress_bar = true")  # for `share`; nothing is printed
        self.connection.execute("SET enable_progress_bar_print = false")
        self.connection.execute("SET preserve_insertion_order = false")  # it costs memory, and nothing here hangs on it

        for name, function, kind in FUNCTIONS:
            duck, arrow = ("VARCHAR", pa.string()) if kind == "string" else ("BOOLEAN", pa.bool_())
            self.connection.create_function(name, _on_arrow(function, arrow), ["VARCHAR"], duck, type="arrow")

    def open(self, files: list[Path]) -> list[tuple[str, bool]]:
        names = ", ".join(quote(str(file)) for file in files)
        self._run(f"CREATE VIEW catalogue AS SELECT * FROM read_parquet([{names}], union_by_name = true, binary_as_string = true)")
        return [(row[0], row[1] == "VARCHAR") for row in self.rows("DESCRIBE catalogue")]

    def save(self, name: str, sql: str) -> None:
        self._run(f"CREATE TABLE {name} AS {sql}")

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
        self.connection.close()

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
        self.spark = open_session(
            master,
            scratch,
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

    def open(self, files: list[Path]) -> list[tuple[str, bool]]:
        with self._errors():
            frame = self.spark.read.option("mergeSchema", "true").parquet(*(file.resolve().as_uri() for file in files))
            frame.createOrReplaceTempView("catalogue")
            return [(name, kind == "string") for name, kind in frame.dtypes]

    def save(self, name: str, sql: str) -> None:
        target = (self.scratch / name).resolve().as_uri()
        with self._errors():
            self.spark.sql(self._translate(sql)).write.mode("overwrite").parquet(target)
            self.spark.read.parquet(target).createOrReplaceTempView(name)

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
            ordered.write.mode("overwrite").partitionBy("part").parquet(target.resolve().as_uri())
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

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except self._error as error:
            raise EngineError(one_line(error)) from None


def _or_none(function):
    return lambda text: None if text is None else function(text)


def _on_arrow(function, kind):
    import pyarrow as pa

    return lambda column: pa.array(map(_or_none(function), column.to_pylist()), kind)

"""DuckDB with bounded memory, for which a file's name is nothing but its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError, one_line
from data_pipeline.paths import PlainPaths, is_plain

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


class Duck:
    """A connection, and paths for its SQL.

    Args:
        scratch: folder for what does not fit into memory.
        memory_limit: as DuckDB writes it, `4GB`.
        on_disk: its tables lie in a file in `scratch`, too.
        settings: DuckDB's.

    Raises:
        UserError: a memory limit that is none.
    """

    def __init__(self, scratch: Path, memory_limit: str, on_disk: bool = False, **settings: str):
        import duckdb

        self._plain = PlainPaths()
        folder = self._plain(scratch)
        settings |= {"memory_limit": memory_limit, "temp_directory": str(folder)}
        try:
            self.connection = self._open(folder, on_disk and is_plain(scratch.resolve()), settings)
        except duckdb.Error as error:
            self._plain.close()
            raise UserError(f"--memory-limit {memory_limit}: {one_line(error)}") from None

    @staticmethod
    def _open(folder: Path, on_disk: bool, settings: dict[str, str]) -> DuckDBPyConnection:
        """In a file, unless DuckDB cannot have one: it looks through links for its file and finds none behind ? and a backslash;
        and it opens none where the file system knows no locks. Tables in memory go to `temp_directory` as they get too large."""
        import duckdb

        if on_disk:
            try:
                return duckdb.connect(str(folder / "work.duckdb"), config=settings)
            except duckdb.IOException as error:
                if "lock" not in str(error):
                    raise
        return duckdb.connect(":memory:", config=settings)

    def __enter__(self) -> Duck:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def name(self, path: Path) -> str:
        """The path under which DuckDB knows a file: what it says in a column `filename`."""
        return str(self._plain(path))

    def parquet(self, files: Iterable[Path], *options: str) -> str:
        """SQL for the rows of parquet files; `options` are those of read_parquet, `union_by_name = true`."""
        names = ", ".join(quote(self.name(file)) for file in files)
        return f"read_parquet({', '.join([f'[{names}]', 'hive_partitioning = false', *options])})"

    def close(self) -> None:
        self.connection.close()
        self._plain.close()

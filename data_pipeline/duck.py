"""DuckDB with bounded memory, for which a file's name is nothing but its name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from data_pipeline.errors import UserError, one_line
from data_pipeline.paths import PlainPaths, is_plain


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
            # It looks through links for its file, and finds none behind ? and \: then tables go to `scratch` as they get too large.
            file = str(folder / "work.duckdb") if on_disk and is_plain(scratch.resolve()) else ":memory:"
            self.connection = duckdb.connect(file, config=settings)
        except duckdb.Error as error:
            self._plain.close()
            raise UserError(f"--memory-limit {memory_limit}: {one_line(error)}") from None

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

"""Small catalogues, and what is read of them before anything is filtered."""

import shutil

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.catalogue.curate import CurateOptions, read_columns
from data_pipeline.catalogue.engines import DuckDB
from data_pipeline.catalogue.sources import find_files, select_sql


def parquet(path, rows: list[dict]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def read(tmp_path, source: str, pattern: str, **given) -> list[dict]:
    """Rows of a catalogue in canonical columns, raw."""
    scratch = tmp_path / "scratch"
    scratch.mkdir(exist_ok=True)
    options = CurateOptions(metadata=pattern, out=tmp_path, source=source, **given)
    files, chosen = read_columns(find_files(pattern), scratch, options)
    engine = DuckDB(scratch, "1GB")
    try:
        engine.open(files, chosen)
        engine.save("rows", select_sql(source, "catalogue", chosen))
        return engine.connection.sql("SELECT * FROM rows ORDER BY rowid").to_arrow_table().to_pylist()
    finally:
        engine.close()
        shutil.rmtree(scratch)

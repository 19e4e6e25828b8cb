"""Catalogues in LAION-2B's original schema, as the drawn world and a folder of photographs write them."""

from __future__ import annotations

from pathlib import Path

from data_pipeline.files import atomic_path


def write_laion_catalogue(path: Path, rows: list[dict]) -> None:
    """Writes rows as parquet, whole or not at all; columns that a row lacks are null."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("SAMPLE_ID", pa.int64()),
            ("URL", pa.string()),
            ("TEXT", pa.string()),
            ("HEIGHT", pa.int32()),
            ("WIDTH", pa.int32()),
            ("LICENSE", pa.string()),
            ("NSFW", pa.string()),
            ("similarity", pa.float64()),
        ]
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema), temporary)

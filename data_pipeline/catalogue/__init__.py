"""From catalogues as their authors publish them to one table of rows worth downloading.

In: parquet, tsv, csv or jsonl of LAION-2B, COYO-700M, CC12M, CC3M or your own.
Out: DIR/canonical/part-*.parquet, one schema, filtered, cleaned, deduplicated, and curate.json, which counts what went (`curate`).

    text_catalogues, parquet_catalogues (what the columns hold) -> sources (which of them are taken)
    -> curation_sql, run by engines (DuckDB, or Spark through `spark`) -> curate

`captions` cleans texts, `hosts` knows public hosts and block lists.
"""

"""The catalogues' schemas -> one. The schema is read when the job runs: published lists of columns are wrong too often.

`open_source` gives SQL (DuckDB) that yields the canonical columns, raw: nothing is filtered or cleaned here."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    import duckdb

CANONICAL = (
    "uid",
    "url",
    "caption",
    "src_width",
    "src_height",
    "similarity",
    "nsfw",
    "watermark",
    "aesthetic",
    "phash",
    "source",
)
OPTIONAL = ("src_width", "src_height", "similarity", "nsfw", "watermark", "aesthetic", "phash")
TYPES = {"url": "VARCHAR", "caption": "VARCHAR", "src_width": "INTEGER", "src_height": "INTEGER", "phash": "VARCHAR"}
# LAION's NSFW tag as a probability, in the middle of what the tag stands for; UNTAGGED and null stay unknown.
NSFW_TAG_SQL = "CASE upper(CAST({column} AS VARCHAR)) WHEN 'UNLIKELY' THEN 0.0 WHEN 'UNSURE' THEN 0.5 WHEN 'NSFW' THEN 1.0 END"
SEPARATORS = {".tsv": "\t", ".csv": ","}


@dataclass(frozen=True)
class Schema:
    """How one catalogue names things."""

    columns: dict[str, tuple[str, ...]]
    """Canonical name -> column names in order of preference; compared without case."""
    headerless: tuple[str, ...] | None = None
    """Canonical names of the columns of a TSV without a header, in file order."""
    tag: str | None = None
    """Column of LAION's NSFW tag, used where no probability is found."""


_LAION = {
    "url": ("url",),
    "caption": ("text", "caption"),
    "src_width": ("width",),
    "src_height": ("height",),
    "similarity": ("similarity",),
    "nsfw": ("punsafe",),
    "watermark": ("pwatermark",),
    "aesthetic": ("aesthetic", "prediction"),
}
SCHEMAS = {
    "laion2b": Schema(_LAION, tag="nsfw"),
    "relaion2b": Schema({**_LAION, "caption": ("caption", "text")}),
    "coyo700m": Schema(
        {
            "url": ("url",),
            "caption": ("text",),
            "src_width": ("width",),
            "src_height": ("height",),
            "similarity": ("clip_similarity_vitb32",),
            "nsfw": ("nsfw_score_opennsfw2",),
            "watermark": ("watermark_score",),
            "aesthetic": ("aesthetic_score_laion_v2",),
            "phash": ("image_phash",),
        }
    ),
    "cc12m": Schema({"url": ("image_url", "url"), "caption": ("caption",)}, headerless=("url", "caption")),
    "cc3m": Schema({"url": ("url", "image_url"), "caption": ("caption",)}, headerless=("caption", "url")),
    "generic": Schema({**_LAION, "caption": ("caption", "text"), "phash": ("phash",)}),
}


def find_files(pattern: str) -> list[Path]:
    """Files of `--metadata`: one file, a folder, or a glob; in name order, without side files (`.crc`, hidden ones)."""
    path = Path(pattern)
    if path.is_dir():
        candidates = [child for child in path.iterdir() if child.suffix in (".parquet", ".tsv", ".csv", ".jsonl")]
    else:
        candidates = [path] if path.exists() else [Path(name) for name in glob.glob(pattern)]
    files = sorted(file for file in candidates if file.is_file() and not file.name.startswith(".") and file.suffix != ".crc")
    if not files:
        raise UserError(f"--metadata {pattern}: no such file (expected a parquet, tsv, csv or jsonl file, a folder or a glob)")
    kinds = {file.suffix for file in files}
    if len(kinds) > 1:
        raise UserError(
            f"--metadata {pattern}: files of several kinds ({', '.join(sorted(kinds))}); name one kind, for example *.parquet"
        )
    return files


def quote(text: str) -> str:
    """A SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _reader(files: list[Path], schema: Schema, separator: str | None) -> str:
    """The table function that reads the files; every text column as text ("02000" stays "02000")."""
    names = "[" + ", ".join(quote(str(file)) for file in files) + "]"
    kind = files[0].suffix
    if kind == ".parquet":
        return f"read_parquet({names}, union_by_name = true)"
    if kind in (".jsonl", ".ndjson"):
        return f"read_json({names}, format = 'newline_delimited', union_by_name = true)"
    if kind not in SEPARATORS:
        raise UserError(f"--metadata {files[0]}: unknown kind {kind!r}; expected .parquet, .tsv, .csv or .jsonl")
    if kind == ".tsv" and schema.headerless:
        # No quoting at all: a caption that begins with a quote would swallow the rows up to the next quote.
        columns = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in schema.headerless)
        return (
            f"read_csv({names}, delim = '\t', header = false, auto_detect = false, quote = '', escape = '', "
            f"strict_mode = false, null_padding = true, max_line_size = 4194304, columns = {{{columns}}})"
        )
    quoting = "quote = '', escape = ''" if kind == ".tsv" else "quote = '\"', escape = '\"'"
    return (
        f"read_csv({names}, delim = {quote(separator or SEPARATORS[kind])}, header = true, all_varchar = true, "
        f"{quoting}, "
        f"strict_mode = false, null_padding = {'true' if kind == '.tsv' else 'false'}, max_line_size = 4194304)"
    )


def open_source(
    connection: duckdb.DuckDBPyConnection,
    source: str,
    files: list[Path],
    url_col: str | None = None,
    caption_col: str | None = None,
) -> str:
    """SQL that selects url, caption and the OPTIONAL columns (null where the catalogue has none) of `files`.

    UserError names missing columns, what was found, and what to do.
    """
    import duckdb

    if source not in SCHEMAS:
        raise UserError(f"--source {source!r}: expected one of {', '.join(SCHEMAS)}")
    schema = SCHEMAS[source]
    reader = _reader(files, schema, None)
    try:
        found = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()]
    except duckdb.Error as error:
        raise UserError(f"--metadata {files[0]}: cannot be read ({str(error).splitlines()[0]})") from None
    by_name = {name.lower(): name for name in reversed(found)}
    chosen = {"url": url_col, "caption": caption_col}
    parts, missing = [], []
    for name in ("url", "caption", *OPTIONAL):
        if chosen.get(name):
            column = chosen[name] if chosen[name] in found else None
            wanted = (chosen[name],)
        else:
            wanted = schema.columns.get(name, ())
            column = next((by_name[candidate] for candidate in wanted if candidate in by_name), None)
        kind = TYPES.get(name, "FLOAT")
        if column is None and name == "nsfw" and schema.tag in by_name:
            parts.append(f"CAST({NSFW_TAG_SQL.format(column=identifier(by_name[schema.tag]))} AS FLOAT) AS nsfw")
        elif column is None and name in ("url", "caption"):
            missing.append(f"{name} ({' or '.join(wanted)})")
        else:
            value = f"TRY_CAST({identifier(column)} AS {kind})" if column else f"CAST(NULL AS {kind})"
            if kind == "FLOAT" and column:
                value = f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END"
            parts.append(f"{value} AS {name}")
    if missing:
        raise UserError(
            f"--metadata {files[0].name}: --source {source} needs the columns {' and '.join(missing)}; found "
            f"{', '.join(found)}; give another --source, or --source generic with --url-col and --caption-col"
        )
    return f"SELECT {', '.join(parts)} FROM {reader}"

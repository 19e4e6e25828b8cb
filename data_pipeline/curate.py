"""Catalogue -> canonical rows: filters, caption cleaning, duplicate removal, as SQL on DuckDB, out of core.

Every row that goes is counted under exactly one reason, the first that applies in the order of `REASONS`."""

from __future__ import annotations

import hashlib
import html
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_file, sync_folder, write_json
from data_pipeline.hosts import is_public_host, parse_allowed_hosts
from data_pipeline.progress import Progress
from data_pipeline.sources import CANONICAL, find_files, open_source, quote

FORMAT = 1
ROWS_PER_PART = 1_000_000
REASONS = (
    "no url",
    "url scheme not http(s)",
    "url malformed",
    "private address",
    "empty caption",
    "caption too short",
    "caption too long",
    "picture too small",
    "aspect ratio",
    "low similarity",
    "nsfw",
    "watermark",
    "duplicate",
)
# Control characters, every kind of white space and separators become one space.
BLANK = r"[\p{Cc}\p{Z}\s]+"
HOST = r"^(?i:https?)://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^/?#:\[\]]+)(?::([0-9]{1,5}))?(?:[/?#]|$)"


@dataclass(frozen=True, kw_only=True)
class CurateOptions:
    """What to keep of a catalogue."""

    metadata: str
    """Catalogue: a parquet, tsv, csv or jsonl file, a folder of them, or a glob in quotes."""
    out: Path
    """Data set folder; rows go to its canonical/."""
    source: Literal["laion2b", "relaion2b", "coyo700m", "cc12m", "cc3m", "generic", "wds"] = "generic"
    """Whose schema the catalogue has; wds, for `build`: there is none, --metadata names tars that are already downloaded."""
    url_col: str | None = None
    """Column of the URL, where it is not the source's own."""
    caption_col: str | None = None
    """Column of the caption, where it is not the source's own."""
    min_side: int = 64
    """Smallest allowed side in pixels, by the catalogue; rows without a size pass."""
    max_aspect: float = 3.0
    """Largest ratio of the sides (COYO's cut-off)."""
    min_caption: int = 5
    """Fewest characters of a cleaned caption."""
    max_caption: int = 1000
    """Most characters of a cleaned caption."""
    min_similarity: float = 0.1
    """Least CLIP similarity, by the catalogue; rows without one pass. LAION-2B is cut at 0.28 by its authors."""
    max_nsfw: float = 0.5
    """Rows with a higher probability (LAION's tag NSFW counts as 1, UNSURE as 0.5) go."""
    max_watermark: float = 0.8
    """Rows with a higher watermark probability go (LAION's advice)."""
    dedup: Literal["url", "url_caption", "none"] = "url"
    """What makes two rows duplicates. Use url_caption where one picture has several captions."""
    allow_host: tuple[str, ...] = ()
    """HOST:PORT that may be fetched from although it is private, for example 127.0.0.1:8731."""
    memory_limit: str = "4GB"
    """What DuckDB may take; it goes on in files beyond that."""


@dataclass(frozen=True, kw_only=True)
class CurateCommand(CurateOptions):
    """Filters, cleans and deduplicates a catalogue into canonical rows: DIR/canonical/."""

    force: bool = False
    """Curate again although the folder holds rows of another catalogue or other filters."""

    def run(self) -> int:
        curate(self, force=self.force)
        return 0


def clean_caption(text: str) -> str:
    """Entities resolved (twice: `&amp;quot;` is common), nothing else; blanks are the SQL's business."""
    return html.unescape(html.unescape(text))


def _arrow_text(function):
    import pyarrow as pa

    return lambda column: pa.array([None if text is None else function(text) for text in column.to_pylist()], pa.string())


def _arrow_flag(function):
    import pyarrow as pa

    return lambda column: pa.array([None if text is None else function(text) for text in column.to_pylist()], pa.bool_())


def _clean_sql(column: str) -> str:
    raw = f"CASE WHEN contains({column}, '&') THEN py_unescape({column}) ELSE {column} END"
    return f"trim(regexp_replace({raw}, {quote(BLANK)}, ' ', 'g'))"


def scored_sql(rows: str, source: str, options: CurateOptions, allowed: frozenset[str]) -> str:
    """SQL: every row of `rows` (a SELECT) in canonical columns, with `reason` (null: passes) and `dedup_key`."""
    allow = ", ".join(quote(host) for host in sorted(allowed)) or "''"
    key = {"url": "fetch_url", "url_caption": "fetch_url || chr(10) || caption", "none": "NULL"}[options.dedup]
    # Only what looks like an address or a local name is sent to the (slow) Python judgement.
    suspect = r"^\[|^[0-9]|0x|localhost|localdomain|\.local\.?$|\.internal\.?$|\.home\.arpa\.?$|^local\.?$|^internal\.?$"
    return f"""
    WITH cleaned AS (
      SELECT * REPLACE (trim(url) AS url, {_clean_sql("caption")} AS caption) FROM ({rows})),
    located AS (
      SELECT *, lower(regexp_extract(url, '^([A-Za-z][A-Za-z0-9+.-]*):', 1)) AS scheme,
        lower(regexp_extract(url, {quote(HOST)}, 1)) AS host, regexp_extract(url, {quote(HOST)}, 2) AS port
      FROM cleaned),
    judged AS (
      SELECT *, CASE
        WHEN url IS NULL OR url = '' THEN 'no url'
        WHEN scheme NOT IN ('http', 'https') THEN 'url scheme not http(s)'
        WHEN host = '' OR regexp_matches(url, '[\\s\\p{{Cc}}]') THEN 'url malformed'
        WHEN regexp_matches(host, {quote(suspect)})
          AND host || ':' || CASE WHEN port <> '' THEN port WHEN scheme = 'https' THEN '443' ELSE '80' END
            NOT IN ({allow})
          AND NOT py_public(host) THEN 'private address'
        WHEN caption IS NULL OR caption = '' THEN 'empty caption'
        WHEN length(caption) < {options.min_caption} THEN 'caption too short'
        WHEN length(caption) > {options.max_caption} THEN 'caption too long'
        WHEN least(src_width, src_height) < {options.min_side} THEN 'picture too small'
        WHEN greatest(src_width, src_height) > {options.max_aspect} * least(src_width, src_height) THEN 'aspect ratio'
        WHEN similarity < {options.min_similarity} THEN 'low similarity'
        WHEN nsfw > {options.max_nsfw} THEN 'nsfw'
        WHEN watermark > {options.max_watermark} THEN 'watermark'
        END AS reason,
        lower(scheme) || '://' || host
          || substr(regexp_replace(url, '#.*$', ''), length(scheme) + 4 + length(host)) AS fetch_url
      FROM located)
    SELECT substr(sha256(url || chr(10) || caption), 1, 16) AS uid, url, caption, src_width, src_height, similarity,
      nsfw, watermark, aesthetic, phash, {quote(source)} AS source, reason, {key} AS dedup_key FROM judged"""


def fingerprint(files: list[Path], options: CurateOptions) -> str:
    """Names the work: the same files (name, size, time of change) with the same filters give the same fingerprint."""
    seen = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    settings = {
        name: getattr(options, name)
        for name in CurateOptions.__dataclass_fields__
        if name not in ("out", "metadata", "memory_limit")
    }
    return hashlib.sha256(json.dumps([FORMAT, seen, settings], default=str).encode()).hexdigest()


def curate(options: CurateOptions, force: bool = False) -> dict:
    """Writes DIR/canonical/part-*.parquet and curate.json (whole or not at all) and returns the latter's content.

    Rows are in the order of their uid (a hash), so that shards mix what the catalogue keeps together. Done work for the
    same catalogue and filters is kept. UserError: no rows, bad columns, another catalogue's rows in the folder.
    """
    if options.source == "wds":
        raise UserError("--source wds: tars have no catalogue to curate; use build or adopt")
    files = find_files(options.metadata)
    allowed = parse_allowed_hosts(options.allow_host)
    work = fingerprint(files, options)
    target = options.out / "canonical"
    if (target / "curate.json").exists():
        done = read_curate(options.out)
        if done["fingerprint"] == work:
            print(f"{target}: already curated, {done['rows_out']} rows", file=sys.stderr, flush=True)
            return done
        if not force:
            raise UserError(
                f"{target}: holds rows of another catalogue or other filters (curate.json); choose another --out, "
                "delete the folder, or run curate with --force"
            )
    part = options.out / f".canonical.{os.getpid()}.part"
    for left_over in options.out.glob(".canonical.*.part"):  # of a curation that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        record = _curate_into(part, files, options, allowed)
        record = {"format": FORMAT, "fingerprint": work, **record}
        write_json(part / "curate.json", record)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
        sync_folder(options.out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def _curate_into(part: Path, files: list[Path], options: CurateOptions, allowed: frozenset[str]) -> dict:
    import duckdb

    scratch = part / "scratch"
    scratch.mkdir()
    settings = {
        "memory_limit": options.memory_limit,
        "temp_directory": str(scratch),
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
    }
    try:
        connection = duckdb.connect(str(scratch / "work.duckdb"), config=settings)
    except duckdb.Error as error:
        raise UserError(f"--memory-limit {options.memory_limit}: {str(error).splitlines()[0]}") from None
    try:
        connection.execute("SET enable_progress_bar = false")
        connection.create_function("py_unescape", _arrow_text(clean_caption), ["VARCHAR"], "VARCHAR", type="arrow")
        connection.create_function("py_public", _arrow_flag(is_public_host), ["VARCHAR"], "BOOLEAN", type="arrow")
        rows = open_source(connection, options.source, files, options.url_col, options.caption_col)
        with Progress("curate", 3, "steps") as bar:
            bar.note("filter and clean")
            try:
                connection.execute(f"CREATE TABLE scored AS {scored_sql(rows, options.source, options, allowed)}")
            except duckdb.Error as error:
                raise UserError(f"--metadata {options.metadata}: cannot be read ({str(error).splitlines()[0]})") from None
            counts = dict(connection.execute("SELECT coalesce(reason, ''), count(*) FROM scored GROUP BY 1").fetchall())
            rows_in, passing = sum(counts.values()), counts.pop("", 0)
            bar.advance()
            bar.note("duplicates")
            columns = ", ".join(CANONICAL)
            if options.dedup == "none":
                connection.execute(f"CREATE TABLE kept AS SELECT {columns} FROM scored WHERE reason IS NULL")
            else:
                # A total order, so that the same row survives whatever the number of threads.
                order = "uid, src_width, src_height, similarity, nsfw, watermark, aesthetic, phash"
                connection.execute(f"""CREATE TABLE kept AS SELECT {columns} FROM (SELECT *, row_number() OVER
                    (PARTITION BY dedup_key ORDER BY {order}) AS place FROM scored WHERE reason IS NULL)
                    WHERE place = 1""")
            rows_out = connection.execute("SELECT count(*) FROM kept").fetchone()[0]
            bar.advance()
            bar.note(f"write {rows_out} rows")
            if rows_out == 0:
                dropped = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "the catalogue is empty"
                raise UserError(f"--metadata {options.metadata}: none of {rows_in} rows is left ({dropped}); loosen the filters")
            parts = _write_parts(connection, part, rows_out, columns)
            bar.advance()
    finally:
        connection.close()
        shutil.rmtree(scratch, ignore_errors=True)
    dropped = {reason: counts[reason] for reason in REASONS if reason in counts}
    if passing > rows_out:
        dropped["duplicate"] = passing - rows_out
    return {
        "source": options.source,
        "metadata": [file.name for file in files],
        "rows_in": rows_in,
        "dropped": dropped,
        "rows_out": rows_out,
        "parts": parts,
        "dedup": options.dedup,
    }


def _write_parts(connection, part: Path, rows: int, columns: str) -> list[dict]:
    """Canonical rows in the order of uid, cut at even places of its range into files of about ROWS_PER_PART rows."""
    number = math.ceil(rows / ROWS_PER_PART)
    bounds = [f"{(1 << 64) * index // number:016x}" for index in range(number)] + ["g"]
    result = []
    for index in range(number):
        path = part / f"part-{index:05d}.parquet"
        inside = f"uid >= {quote(bounds[index])} AND uid < {quote(bounds[index + 1])}"
        connection.execute(f"""COPY (SELECT {columns} FROM kept WHERE {inside} ORDER BY uid, url, caption)
            TO {quote(str(path))} (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880)""")
        count = connection.execute(f"SELECT count(*) FROM kept WHERE {inside}").fetchone()[0]
        result.append({"path": path.name, "rows": count, "sha256": sha256_file(path)})
    return result


def read_curate(folder: Path) -> dict:
    """curate.json of a data set folder. UserError when there is none."""
    path = Path(folder) / "canonical" / "curate.json"
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in record} | {
            "rows_in": int(record["rows_in"]),
            "rows_out": int(record["rows_out"]),
        }
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there; run first: python -m data_pipeline curate --metadata CATALOGUE --out {folder}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path}: damaged; delete {path.parent} and curate again") from None

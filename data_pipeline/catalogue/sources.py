"""The catalogues' schemas -> one. The schema is read when the job runs: published lists of columns are wrong too often.

`select_sql` gives SQL that yields the canonical columns, raw: nothing is filtered or cleaned here."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.catalogue.text_catalogues import TEXT_KINDS
from data_pipeline.errors import UserError

CANONICAL = (
    "uid",
    "url",
    "caption",
    "original_caption",
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
TEXTS = ("url", "caption", "phash")
WHOLE_NUMBERS = ("src_width", "src_height")
# LAION's NSFW tag as a probability, in the middle of what the tag stands for; UNTAGGED and null stay unknown.
NSFW_TAG_SQL = "CASE upper(CAST({column} AS VARCHAR)) WHEN 'UNLIKELY' THEN 0.0 WHEN 'UNSURE' THEN 0.5 WHEN 'NSFW' THEN 1.0 END"
# Engines disagree on what else is a number (1_000, 1.0f, 0x10).
NUMBER = r"^ *([-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?|nan|NaN) *$"


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


@dataclass(frozen=True, kw_only=True)
class Cutoffs:
    """What a catalogue's authors keep, or recommend to keep. None: no bound. Rows without a value pass."""

    min_side: int | None = 64
    max_aspect: float | None = 3.0
    min_caption: int | None = 5
    max_caption: int | None = 1000
    min_letters: float | None = 0.3
    min_similarity: float | None = None
    max_nsfw: float | None = 0.5
    max_watermark: float | None = 0.8
    min_aesthetic: float | None = None
    max_per_caption: int | None = None
    max_per_phash: int | None = None


# LAION-5B (arXiv 2210.08402): similarity of ViT-B/32 0.28 for English, captions from 5 characters, punsafe 0.5 and pwatermark 0.8
# advised. Re-LAION: punsafe 0.45. COYO-700M (its README): sides from 200, aspect to 3, nsfw below 0.5, captions of 6 to 1000
# characters, none more than ten times. Ours where authors say nothing: 64 pixels, aspect 3 (DataComp's basic filter), letters, one
# row a perceptual hash of COYO (its authors keep one a hash and caption). CC3M and CC12M carry no numbers to filter by.
CUTOFFS = {
    "laion2b": Cutoffs(min_similarity=0.28),
    "relaion2b": Cutoffs(min_similarity=0.28, max_nsfw=0.45),
    "coyo700m": Cutoffs(min_side=200, min_caption=6, max_watermark=None, max_per_caption=10, max_per_phash=1),
    "cc12m": Cutoffs(),
    "cc3m": Cutoffs(),
    "generic": Cutoffs(min_similarity=0.1),
}


def find_files(pattern: str) -> list[Path]:
    """Files of `--metadata`: one file, a folder, or a glob; in name order, without side files (`.crc`, hidden ones)."""
    path = Path(pattern)
    if path.is_dir():
        candidates = [child for child in path.iterdir() if child.suffix in (".parquet", *TEXT_KINDS)]
    else:
        candidates = [path] if path.exists() else [Path(name) for name in glob.glob(pattern)]
    files = sorted(file for file in candidates if file.is_file() and not file.name.startswith(".") and file.suffix != ".crc")
    if not files:
        raise UserError(f"--metadata {pattern}: no such file (expected a parquet, tsv, csv or jsonl file, a folder or a glob)")
    kinds = {file.suffix for file in files}
    if not kinds <= {".parquet", *TEXT_KINDS}:
        raise UserError(f"--metadata {files[0]}: unknown kind {files[0].suffix!r}; expected .parquet, .tsv, .csv or .jsonl")
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


def _number_sql(column: str, text: bool, whole: bool) -> str:
    value = identifier(column)
    if text:
        value = f"CASE WHEN regexp_matches({value}, {quote(NUMBER)}) THEN trim({value}) END"
    if whole:
        return f"TRY_CAST(round(TRY_CAST({value} AS DOUBLE)) AS INTEGER)"
    value = f"TRY_CAST({value} AS FLOAT)"
    return f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END"


def select_sql(
    source: str,
    view: str,
    columns: Sequence[tuple[str, bool]],
    where: str,
    url_col: str | None = None,
    caption_col: str | None = None,
) -> str:
    """SQL that selects url, caption and the OPTIONAL columns (null where the catalogue has none) of `view`.

    Args:
        columns: the view's columns: (name, whether it is text).
        where: file to name in complaints.

    Raises:
        UserError: names missing columns, what was found, and what to do.
    """
    if source not in SCHEMAS:
        raise UserError(f"--source {source!r}: expected one of {', '.join(SCHEMAS)}")
    schema, is_text = SCHEMAS[source], dict(columns)
    by_name = {name.lower(): name for name in reversed(is_text)}
    chosen = {"url": url_col, "caption": caption_col}
    parts, missing = [], []
    for name in ("url", "caption", *OPTIONAL):
        if chosen.get(name):
            wanted = (chosen[name],)
            column = chosen[name] if chosen[name] in is_text else None
        else:
            wanted = schema.columns.get(name, ())
            column = next((by_name[candidate] for candidate in wanted if candidate in by_name), None)
        same = [other for other in is_text if column and other.lower() == column.lower()]
        if len(same) > 1 and name in ("url", "caption") and not chosen.get(name):
            raise UserError(f"--metadata {where}: the columns {' and '.join(same)} differ in case only; curate files of one layout")
        kind = "VARCHAR" if name in TEXTS else "INTEGER" if name in WHOLE_NUMBERS else "FLOAT"
        if column is None and name == "nsfw" and schema.tag in by_name:
            value = f"CAST({NSFW_TAG_SQL.format(column=identifier(by_name[schema.tag]))} AS FLOAT)"
        elif column is None:
            value = f"CAST(NULL AS {kind})"
            if name in ("url", "caption"):
                missing.append(f"{name} ({' or '.join(wanted)})")
        elif name in TEXTS:
            value = f"CAST({identifier(column)} AS VARCHAR)"
        else:
            value = _number_sql(column, is_text[column], name in WHOLE_NUMBERS)
        parts.append(f"{value} AS {name}")
    if missing:
        raise UserError(
            f"--metadata {where}: --source {source} needs the columns {' and '.join(missing)}; found "
            f"{', '.join(is_text)[:300]}; give another --source, or --source generic with --url-col and --caption-col"
        )
    return f"SELECT {', '.join(parts)} FROM {view}"

"""The catalogues' schemas -> one. The schema is read when the job runs: published lists of columns are wrong too often.

`choose` says which column holds what, `select_sql` gives SQL that yields the canonical columns, raw: nothing is filtered or
cleaned here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.duck import quote
from data_pipeline.errors import UserError
from data_pipeline.paths import find

TEXT_KINDS = (".tsv", ".csv", ".jsonl", ".ndjson")
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
NUMBER_TEXT = r"^ *([-+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?|nan|NaN) *$"

TEXT, LIST_OF_TEXTS, WHOLE, NUMBERS, DATES, EMPTY = "text", "lists of text", "whole numbers", "numbers", "dates", "nothing"
"""Kinds of columns."""
AS_TEXT = (TEXT, WHOLE, DATES)
"""Kinds whose values every engine writes as the same text."""
NUMERIC = (TEXT, WHOLE, NUMBERS)


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
        candidates = find(pattern)
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


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _number_sql(column: str, text: bool, whole: bool) -> str:
    value = identifier(column)
    if text:
        value = f"CASE WHEN regexp_matches({value}, {quote(NUMBER_TEXT)}) THEN trim({value}) END"
    if whole:
        return f"TRY_CAST(round(TRY_CAST({value} AS DOUBLE)) AS INTEGER)"
    value = f"TRY_CAST({value} AS FLOAT)"
    return f"CASE WHEN isnan({value}) THEN NULL ELSE {value} END"


@dataclass(frozen=True)
class Column:
    """A column of a catalogue, or a field of a struct in one."""

    name: str
    """As it is named on the command line: a field with its column before a dot, `caption.en`. (`captions[]` there: lists, of which
    every text is to be a row.)"""
    kind: str
    """What it holds: one of the kinds above, or in words what of ours it is not."""
    path: tuple[str, ...]
    """Its column's name, then those of the fields."""
    spellings: tuple[tuple[str, ...], ...] = ()
    """Further paths, of other files, which differ in case only."""
    twins: str = ""
    """Names in one file that differ in case only, or not at all."""


def merged(layouts: Iterable[tuple[Path, Sequence[tuple[tuple[str, ...], str]]]]) -> list[Column]:
    """The columns of several files together, compared without case; text and numbers of one name are text.

    Args:
        layouts: of every file (path, kind) of its columns.
    """
    found: dict[str, Column] = {}
    seen_in: dict[str, Path] = {}
    for file, layout in layouts:
        for path, kind in layout:
            name = ".".join(path)
            key = name.lower()
            old = found.get(key)
            if old is None:
                found[key] = Column(name, kind, path)
            elif seen_in[key] == file:
                found[key] = replace(old, twins=old.twins or f"{old.name} and {name} in {file.name}")
            else:
                spelt = old.spellings if path in (old.path, *old.spellings) else (*old.spellings, path)
                found[key] = replace(old, kind=_common(old.kind, kind, file), spellings=spelt)
            seen_in[key] = file
    return list(found.values())


def _common(one: str, other: str, file: Path) -> str:
    if one == other or other == EMPTY:
        return one
    if one == EMPTY:
        return other
    if {one, other} <= set(NUMERIC):
        return TEXT if TEXT in (one, other) else NUMBERS
    return one if " and in " in one else f"{one} and in {file.name} {other}"


def choose(
    source: str, columns: Sequence[Column], where: str, url_col: str | None = None, caption_col: str | None = None
) -> tuple[dict[str, Column], list[Column]]:
    """Which column holds what: {canonical name, or `tag` for LAION's NSFW tag: column}, and those that should hold a number and do
    not.

    Args:
        where: file to name in complaints.

    Raises:
        UserError: names missing columns, what was found, and what to do; or a column for URLs or captions that holds no text.
    """
    if source not in SCHEMAS:
        raise UserError(f"--source {source!r}: expected one of {', '.join(SCHEMAS)}")
    schema = SCHEMAS[source]
    by_name = {column.name.lower(): column for column in columns}
    spelt = {f"{column.name}[]": column for column in columns if column.kind in (LIST_OF_TEXTS, EMPTY)}
    spelt |= {".".join(path): column for column in columns for path in (column.path, *column.spellings)}
    chosen: dict[str, Column] = {}
    ignored, missing = [], []
    for name in ("url", "caption", *OPTIONAL):
        given = {"url": url_col, "caption": caption_col}.get(name)
        wanted = (given,) if given else schema.columns.get(name, ())
        column = spelt.get(given) if given else next((by_name[other] for other in wanted if other in by_name), None)
        if column is None:
            if name in ("url", "caption"):
                missing.append(f"{name} ({' or '.join(wanted)})")
        elif name in ("url", "caption"):
            each = name == "caption" and column.kind == LIST_OF_TEXTS and bool(given) and given.endswith("[]")
            _check_text(name, column, columns, where, LIST_OF_TEXTS if each else TEXT)
            chosen[name] = column
        elif column.kind in (AS_TEXT if name in TEXTS else NUMERIC):
            chosen[name] = column
        elif column.kind != EMPTY:
            ignored.append(column)
    if "nsfw" not in chosen and schema.tag in by_name and by_name[schema.tag].kind == TEXT:
        chosen["tag"] = by_name[schema.tag]
    if missing:
        raise UserError(
            f"--metadata {where}: --source {source} needs the columns {' and '.join(missing)}; found "
            f"{', '.join(column.name for column in columns)[:300]}; give another --source, or --source generic with --url-col and "
            "--caption-col"
        )
    return chosen, ignored


def _check_text(name: str, column: Column, columns: Sequence[Column], where: str, expected: str) -> None:
    if column.twins:
        raise UserError(f"--metadata {where}: the columns {column.twins} differ in case only, if at all; rename one of them")
    if column.kind not in (expected, *AS_TEXT, EMPTY):
        mend = f"choose another with --{name}-col"
        if fields := [known.name for known in columns if known.name.startswith(f"{column.name}.") and known.kind in AS_TEXT]:
            mend = f"take a field of it, --{name}-col {fields[0]}"
        elif column.kind == LIST_OF_TEXTS and name == "caption":
            mend = f"make a row of each, --caption-col '{column.name}[]' --dedup url_caption"
        raise UserError(
            f"--metadata {where}: the column {column.name} holds {column.kind}; expected text: {mend}, or write it as text"
        )


def select_sql(source: str, view: str, chosen: dict[str, Column]) -> str:
    """SQL that selects url, caption and the OPTIONAL columns (null where the catalogue has none) of `view`, which has the chosen
    columns under their canonical names."""
    parts = []
    for name in ("url", "caption", *OPTIONAL):
        kind = "VARCHAR" if name in TEXTS else "INTEGER" if name in WHOLE_NUMBERS else "FLOAT"
        if name not in chosen and name == "nsfw" and "tag" in chosen:
            value = f"CAST({NSFW_TAG_SQL.format(column='tag')} AS FLOAT)"
        elif name not in chosen or chosen[name].kind == EMPTY:
            value = f"CAST(NULL AS {kind})"
        elif name in TEXTS:
            value = f"CAST({identifier(name)} AS VARCHAR)"
        else:
            value = _number_sql(name, chosen[name].kind == TEXT, name in WHOLE_NUMBERS)
        parts.append(f"{value} AS {name}")
    return f"SELECT {', '.join(parts)} FROM {view}"

"""Curation as SQL: one text, in DuckDB's words, for every engine (engines.py translates it for Spark).

It holds to what engines agree on. Where they do not: regular expressions use no `.`, no `$` where a line end may come
before it; letters are lower-cased by `translate` (A to Z); numbers are compared as FLOAT; the order of nulls is written out.
Letters of scripts that are newer than the Unicode of Spark's Java are letters for DuckDB only."""

from __future__ import annotations

from data_pipeline.catalogue.sources import CANONICAL, Cutoffs
from data_pipeline.duck import quote

REASONS = (
    "no url",
    "url scheme not http(s)",
    "url malformed",
    "private address",
    "blocked host",
    "empty caption",
    "caption too short",
    "caption too long",
    "caption is a file name or address",
    "caption with too few letters",
    "picture too small",
    "aspect ratio",
    "low similarity",
    "nsfw",
    "watermark",
    "low aesthetic score",
    "duplicate url",
    "duplicate url and caption",
    "caption too frequent",
    "duplicate picture hash",
)
"""Why rows go, in the order in which that is looked at; a row is counted under the first that applies."""
# Control characters, every kind of white space and separators become one space.
BLANK = r"[\p{Cc}\p{Z}\s]+"
HOST = r"^(?i:https?)://(?:[^/?#@]*@)?(\[[^\]/?#]*\]|[^/?#:\[\]]+)(?::([0-9]{1,5}))?(?:[/?#]|$)"
# Only what looks like an address or a local name is sent to the (slow) judgement in Python.
SUSPECT = r"^\[|^[0-9]|0x|localhost|localdomain|\.local\.?$|\.internal\.?$|\.home\.arpa\.?$|^local\.?$|^internal\.?$"
NO_LETTERS = r"[^\p{L}\p{M}]+"
FILE_NAME = r"^[^ ]+\.(?i:jpe?g|png|gif|webp|bmp|tiff?)$|^(?i:https?://|www\.)[^ ]+$"
ORDER = "uid, original_caption, src_width, src_height, similarity, nsfw, watermark, aesthetic, phash"
"""A total order, so that the same row of several survives whatever the number of threads or machines."""


def _lower(text: str) -> str:
    return f"translate({text}, 'ABCDEFGHIJKLMNOPQRSTUVWXYZ', 'abcdefghijklmnopqrstuvwxyz')"


def _without(text: str, pattern: str, replacement: str = "") -> str:
    return f"regexp_replace({text}, {quote(pattern)}, {quote(replacement)}, 'g')"


def _bounds(cutoffs: Cutoffs) -> list[str]:
    """WHEN clauses of the cut-offs that are set."""
    small, large = "least(src_width, src_height)", "greatest(src_width, src_height)"
    letters, visible = f"length({_without('caption', NO_LETTERS)})", f"length({_without('caption', ' +')})"
    rules = (
        (cutoffs.min_caption, "length(caption) < {:d}", "caption too short"),
        (cutoffs.max_caption, "length(caption) > {:d}", "caption too long"),
        (cutoffs.min_letters, f"regexp_matches(caption, {quote(FILE_NAME)})", "caption is a file name or address"),
        (cutoffs.min_letters, letters + " < CAST({!r} AS DOUBLE) * " + visible, "caption with too few letters"),
        (cutoffs.min_side, f"{small} < {{:d}}", "picture too small"),
        (cutoffs.max_aspect, f"{large} > CAST({{!r}} AS DOUBLE) * {small}", "aspect ratio"),
        (cutoffs.min_similarity, "similarity < CAST({!r} AS FLOAT)", "low similarity"),
        (cutoffs.max_nsfw, "nsfw > CAST({!r} AS FLOAT)", "nsfw"),
        (cutoffs.max_watermark, "watermark > CAST({!r} AS FLOAT)", "watermark"),
        (cutoffs.min_aesthetic, "aesthetic < CAST({!r} AS FLOAT)", "low aesthetic score"),
    )
    # The braces of a regular expression are no place for a number: only rules with one are formatted.
    return [
        f"WHEN {rule.replace('{:d}', str(int(value))).replace('{!r}', repr(float(value)))} THEN {quote(reason)}"
        for value, rule, reason in rules
        if value is not None
    ]


def scored_sql(rows: str, source: str, cutoffs: Cutoffs, allowed: frozenset[str], blocked: tuple[str, ...] = ()) -> str:
    """SQL: every row of `rows` (a SELECT) in canonical columns, with `reason` (null: passes) and `fetch_url` (normalised).

    Args:
        allowed: host:port that pass although they are private.
        blocked: hosts whose rows go, those below them included.

    The engine has to know two functions of a text: `py_unescape` (captions.unescape) and `py_public` (hosts.is_public_host).
    """
    allow = ", ".join(quote(host) for host in sorted(allowed)) or "''"
    blocking = ""
    if blocked:
        names = "|".join(host.replace(".", r"\.") for host in sorted(blocked))
        pattern = rf"^(?:[^ ]*\.)?(?:{names})\.?$"
        blocking = f"WHEN regexp_matches(host, {quote(pattern)}) THEN 'blocked host'"
    usual_port = "CASE WHEN scheme = 'https' THEN '443' ELSE '80' END"
    trimmed, name = _without("url", rf"^{BLANK}|{BLANK}$"), _without("host", r"\.$")
    unescaped = "coalesce(py_unescape(CASE WHEN contains(caption, '&') THEN caption END), caption)"
    rest = _without(_without("url", r"#[\s\S]*$"), "^[A-Za-z][A-Za-z0-9+.-]*://[^/?]*")
    # An argument that is null is not sent to Python; Spark computes arguments of Python functions for all rows of a CASE.
    judged = f"py_public(CASE WHEN regexp_matches(host, {quote(SUSPECT)}) AND host || ':' || port NOT IN ({allow}) THEN host END)"
    return f"""
    WITH cleaned AS (
      SELECT {trimmed} AS url, trim({_without(unescaped, BLANK, " ")}) AS caption,
        caption AS original_caption, src_width, src_height, similarity, nsfw, watermark, aesthetic, phash FROM ({rows}) AS raw),
    located AS (
      SELECT *, {_lower("regexp_extract(url, '^([A-Za-z][A-Za-z0-9+.-]*):', 1)")} AS scheme,
        {_lower(f"regexp_extract(url, {quote(HOST)}, 1)")} AS host, regexp_extract(url, {quote(HOST)}, 2) AS given_port
      FROM cleaned),
    ported AS (
      SELECT *, CASE WHEN given_port <> '' THEN given_port ELSE {usual_port} END AS port, {rest} AS rest FROM located),
    judged AS (SELECT *, {judged} AS public FROM ported),
    marked AS (
      SELECT *, CASE
        WHEN url IS NULL OR url = '' THEN 'no url'
        WHEN scheme NOT IN ('http', 'https') THEN 'url scheme not http(s)'
        WHEN host = '' OR regexp_matches(url, '[\\s\\p{{Cc}}\\p{{Z}}]') THEN 'url malformed'
        WHEN NOT public THEN 'private address'
        {blocking}
        WHEN caption IS NULL OR caption = '' THEN 'empty caption'
        {" ".join(_bounds(cutoffs))}
        END AS reason
      FROM judged)
    SELECT substr(sha256(url || chr(10) || caption), 1, 16) AS uid, url, caption,
      CASE WHEN original_caption <> caption THEN original_caption END AS original_caption,
      src_width, src_height, similarity, nsfw, watermark, aesthetic, phash, {quote(source)} AS source, reason,
      scheme || '://' || {name} || CASE WHEN port = {usual_port} THEN '' ELSE ':' || port END
        || CASE WHEN substr(rest, 1, 1) = '/' THEN '' ELSE '/' END || rest AS fetch_url FROM marked"""


def distinct_sql(table: str, dedup: str, cutoffs: Cutoffs) -> str:
    """SQL: the rows of `table` (of `scored_sql`) that passed, in canonical columns, with `reason` where they repeat others."""
    columns = ", ".join(CANONICAL)
    rules = [
        ("fetch_url", 1, "duplicate url") if dedup == "url" else None,
        ("fetch_url, caption", 1, "duplicate url and caption") if dedup == "url_caption" else None,
        ("caption", cutoffs.max_per_caption, "caption too frequent") if cutoffs.max_per_caption else None,
        ("coalesce(nullif(trim(phash), ''), uid)", cutoffs.max_per_phash, "duplicate picture hash")
        if cutoffs.max_per_phash
        else None,
    ]
    order = ", ".join(f"{name} NULLS LAST" for name in ORDER.split(", "))
    sql = f"SELECT {columns}, fetch_url, reason FROM {table} WHERE reason IS NULL"
    for number, (key, most, reason) in enumerate(filter(None, rules)):
        # Rows that are out already have a reason, hence a partition of their own: they take nobody's place.
        sql = f"""SELECT {columns}, fetch_url,
              CASE WHEN reason IS NULL AND place > {most:d} THEN {quote(reason)} ELSE reason END AS reason
            FROM (SELECT *, row_number() OVER (PARTITION BY reason, {key} ORDER BY {order}) AS place FROM ({sql}) AS r{number})
            AS p{number}"""
    return f"SELECT {columns}, reason FROM ({sql}) AS last"

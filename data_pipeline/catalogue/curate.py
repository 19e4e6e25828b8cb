"""Catalogue -> canonical rows: filters, caption cleaning, duplicate removal, as SQL, out of core or on a cluster.

Every row that goes is counted under exactly one reason (curation_sql.REASONS)."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

from data_pipeline.catalogue.curation_sql import REASONS, distinct_sql, scored_sql
from data_pipeline.catalogue.engines import DuckDB, Engine, EngineError, Spark, part_path
from data_pipeline.catalogue.hosts import parse_allowed_hosts, parse_blocked_hosts
from data_pipeline.catalogue.parquet_catalogues import parquet_columns
from data_pipeline.catalogue.sources import (
    CANONICAL,
    CUTOFFS,
    SCHEMAS,
    TEXT,
    TEXT_KINDS,
    Column,
    Cutoffs,
    choose,
    find_files,
    select_sql,
)
from data_pipeline.catalogue.text_catalogues import text_columns, to_parquet
from data_pipeline.command_line import other_options
from data_pipeline.errors import UserError, check_format
from data_pipeline.files import check_folder, check_no_run, sha256_file, sync_folder, write_json
from data_pipeline.lock import only_one
from data_pipeline.progress import Progress

FORMAT = 2
ROWS_PER_PART = 1_000_000
FOLLOW_SECONDS = 0.5


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
    """Column of the caption, where it is not the source's own; `caption.en` for a field of a struct, `captions[]` for lists of
    texts, each of which becomes a row."""
    min_side: int | None = None
    """Smallest allowed side in pixels, by the catalogue. Of this and the further bounds: rows without a value pass; not given, they
    are those of the source's authors (sources.py: CUTOFFS); 0 is no lower bound."""
    max_aspect: float | None = None
    """Largest ratio of the sides."""
    min_caption: int | None = None
    """Fewest characters of a cleaned caption."""
    max_caption: int | None = None
    """Most characters of a cleaned caption."""
    min_letters: float | None = None
    """Least share of letters, of any script, among a caption's characters that are no space; unless 0, captions that are a file
    name or an address go, too."""
    min_similarity: float | None = None
    """Least CLIP similarity, by the catalogue."""
    max_nsfw: float | None = None
    """Rows with a higher probability (LAION's tag NSFW counts as 1, UNSURE as 0.5) go; 1 keeps all."""
    max_watermark: float | None = None
    """Rows with a higher watermark probability go; 1 keeps all."""
    min_aesthetic: float | None = None
    """Least aesthetic score (LAION's predictor, 1 to 10)."""
    dedup: Literal["url", "url_caption", "none"] = "url"
    """What makes two rows duplicates. Use url_caption where one picture has several captions. URLs are compared without fragment,
    default port and the case of their host."""
    max_per_caption: int | None = None
    """Most rows with one and the same caption; 0 keeps all."""
    max_per_phash: int | None = None
    """Most rows with one perceptual hash, where the catalogue has one (COYO); 0 keeps all."""
    allow_host: tuple[str, ...] = ()
    """HOST:PORT that may be fetched from although it is private, for example 127.0.0.1:8731."""
    block_host: tuple[str, ...] = ()
    """Hosts whose rows go, with all hosts below them; @FILE for a file with one a line."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What runs the SQL; both give the same rows. Spark needs Java and `pip install 'sycoca-ds[spark]'`."""
    spark_master: str | None = None
    """Spark's master, for example local[8] or spark://head:7077; not given: what spark-submit or Spark's own settings say."""
    memory_limit: str = "4GB"
    """What DuckDB, or Spark on one machine, may take; they go on in files beyond that."""

    @property
    def blocked(self) -> tuple[str, ...]:
        """Blocked hosts, files read. Raises `UserError`."""
        return parse_blocked_hosts(self.block_host)

    def cutoffs(self) -> Cutoffs:
        """The source's cut-offs with what was given in their place. Raises `UserError` for a number that is none."""
        given = {field.name: getattr(self, field.name) for field in fields(Cutoffs) if getattr(self, field.name) is not None}
        for name, value in given.items():
            if not 0 <= value < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value}: expected 0 or more")
        zero_is_none = (
            "min_side",
            "min_caption",
            "min_letters",
            "min_similarity",
            "min_aesthetic",
            "max_per_caption",
            "max_per_phash",
        )
        unbounded = {name: None if value == 0 and name in zero_is_none else value for name, value in given.items()}
        return replace(CUTOFFS[self.source], **unbounded)


@dataclass(frozen=True, kw_only=True)
class CurateCommand(CurateOptions):
    """Filters, cleans and deduplicates a catalogue into canonical rows: DIR/canonical/."""

    force: bool = False
    """Curate again although the folder holds rows of another catalogue or other filters."""
    dry_run: bool = False
    """Say what would be done, and what is done already; change nothing."""

    def run(self) -> int:
        if self.dry_run:
            print("\n".join(plan(self, self.force)))
        else:
            curate(self, force=self.force)
        return 0


def settings_of(options: CurateOptions) -> dict:
    """What decides which rows are kept of a catalogue, whatever runs it."""
    names = ("source", "url_col", "caption_col", "dedup", "allow_host", "blocked")
    return {name: getattr(options, name) for name in names} | asdict(options.cutoffs())


def fingerprint(files: list[Path], settings: dict) -> str:
    """Names the work: the same files (name, size, time of change) with the same filters give the same fingerprint."""
    seen = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps([FORMAT, seen, settings]).encode()).hexdigest()


def as_given(files: list[Path], settings: dict) -> dict:
    """The same for curate.json and for people, by the names of the options; of blocked hosts, which may be thousands, a digest."""
    blocked = settings["blocked"]
    digest = hashlib.sha256("\n".join(blocked).encode()).hexdigest()[:12]
    others = {name: value for name, value in settings.items() if name != "blocked"}
    given = {"metadata": [file.name for file in files], **others}
    given["block_host"] = f"{len(blocked)} hosts, sha256 {digest}" if len(blocked) > 9 else blocked
    return json.loads(json.dumps(given))


def look(options: CurateOptions, force: bool = False) -> tuple[list[Path], str, dict, dict | None]:
    """(the catalogue's files, the name of the work, the same for people, curate.json if that work is done).

    Raises:
        UserError: no files, options that do not go together, a training or another catalogue's rows in the folder.
    """
    check_no_run(options.out)
    if options.source == "wds":
        raise UserError("--source wds: tars have no catalogue to curate; use build or adopt")
    files = find_files(options.metadata)
    parse_allowed_hosts(options.allow_host)
    settings = settings_of(options)
    work, given = fingerprint(files, settings), as_given(files, settings)
    target = options.out / "canonical"
    if not (target / "curate.json").exists():
        return files, work, given, None
    done = read_curate(options.out)
    if done["fingerprint"] == work:
        return files, work, given, done
    if not force:
        before = done.get("options") or {name: done.get(name) for name in ("metadata", "source", "dedup")} | done["cutoffs"]
        other = other_options(before, given) or f"other versions of the files that --metadata {options.metadata} names"
        raise UserError(
            f"{target}: its rows were curated with {other}; give the same as then, choose another --out, delete the folder, or "
            "run curate with --force"
        )
    return files, work, given, None


def plan(options: CurateOptions, force: bool = False) -> list[str]:
    """What `curate` would do, as lines. Raises `UserError` as it does."""
    files, _, given, done = look(options, force)
    target = options.out / "canonical"
    if done is not None:
        return [f"curate: {target}: already curated, {done['rows_out']} rows"]
    check_folder(target)
    size = sum(file.stat().st_size for file in files)
    asked = ", ".join(f"{name.replace('_', '-')} {value}" for name, value in given.items() if name != "metadata" and value)
    where = "Spark" if options.engine == "spark" else f"DuckDB within {options.memory_limit}"
    return [f"curate: {len(files)} files of {size / 1e9:.3g} GB, by {where}, into {target}", f"  {asked}"]


def curate(options: CurateOptions, force: bool = False) -> dict:
    """Writes DIR/canonical/part-*.parquet and curate.json (whole or not at all) and returns the latter's content.

    Rows are in the order of their uid (a hash), so that shards mix what the catalogue keeps together. Done work for the
    same catalogue and filters is kept. UserError: no rows, bad columns, another catalogue's rows in the folder, a missing engine.
    """
    target, (files, work, given, done) = options.out / "canonical", look(options, force)
    if done is not None:
        print(f"{target}: already curated, {done['rows_out']} rows", file=sys.stderr, flush=True)
        return done
    allowed = parse_allowed_hosts(options.allow_host)
    refusal = f"{options.out}: another curation is running in this folder; wait for it or end it"
    with only_one(options.out / ".curate.lock", refusal):
        part = options.out / ".canonical.part"
        shutil.rmtree(part, ignore_errors=True)  # of a curation that was killed
        part.mkdir()
        try:
            record = _curate_into(part, files, options, options.cutoffs(), allowed)
            record = {"format": FORMAT, "fingerprint": work, **record, "options": given}
            write_json(part / "curate.json", record)
            if target.exists():
                shutil.rmtree(target)
            part.rename(target)
            sync_folder(options.out)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return record


def _curate_into(part: Path, files: list[Path], options: CurateOptions, cutoffs: Cutoffs, allowed: frozenset[str]) -> dict:
    scratch = part / "scratch"
    scratch.mkdir()
    try:
        with Progress("curate", 100, "%") as bar:
            bar.note("read")
            parquet, chosen = read_columns(files, scratch, options, bar)  # a wrong column is said before Spark has started
            if options.engine == "spark":
                engine: Engine = Spark(scratch, options.memory_limit, options.spark_master)
            else:
                engine = DuckDB(scratch, options.memory_limit)
            try:
                return _run_on(engine, bar, parquet, chosen, part, files, options, cutoffs, allowed)
            except EngineError as error:
                raise UserError(f"--metadata {options.metadata}: {error}") from None
            finally:
                engine.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run_on(
    engine: Engine,
    bar: Progress,
    parquet: list[Path],
    chosen: dict[str, Column],
    part: Path,
    files: list[Path],
    options: CurateOptions,
    cutoffs: Cutoffs,
    allowed: frozenset[str],
) -> dict:
    """Args: parquet, chosen: the catalogue, see `read_columns`."""
    counts: Counter[str] = Counter()
    columns = ", ".join(CANONICAL)
    try:
        engine.open(parquet, chosen)
    except EngineError as error:
        raise UserError(f"--metadata {files[0]}: cannot be read ({error})") from None
    raw = select_sql(options.source, "catalogue", chosen)
    bar.note("filter and clean")
    with _following(engine, bar, 5, 60):
        engine.save("scored", scored_sql(raw, options.source, cutoffs, allowed, options.blocked))
    counts.update(dict(engine.rows("SELECT coalesce(reason, ''), count(*) FROM scored GROUP BY reason")))
    rows_in, passing = counts.total(), counts.pop("", 0)
    bar.note(f"duplicates among {passing} of {rows_in} rows")
    with _following(engine, bar, 60, 85):
        engine.save("last", distinct_sql("scored", options.dedup, cutoffs))
    counts.update(dict(engine.rows("SELECT coalesce(reason, ''), count(*) FROM last GROUP BY reason")))
    rows_out = counts.pop("", 0)
    dropped = {reason: counts[reason] for reason in REASONS if counts[reason]}
    bar.note(f"write {rows_out} of {rows_in} rows")
    if rows_out == 0:
        why = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "the catalogue is empty"
        mend = "give --allow-host HOST:PORT if that is meant to be" if dropped.get("private address") else "loosen the filters"
        raise UserError(f"--metadata {options.metadata}: none of {rows_in} rows is left ({why}); {mend}")
    number = math.ceil(rows_out / ROWS_PER_PART)
    with _following(engine, bar, 85, 99):
        engine.write(f"SELECT {columns} FROM last WHERE reason IS NULL", number, part)
    parts = [_describe(part_path(part, index)) for index in range(number)]
    bar.set(100)
    if sum(entry["rows"] for entry in parts) != rows_out or rows_in != rows_out + sum(dropped.values()):
        written = sum(entry["rows"] for entry in parts)
        raise UserError(
            f"{part}: {rows_out} of {rows_in} rows were kept, {written} written; some were lost on the way: curate again"
        )
    return {
        "source": options.source,
        "metadata": [file.name for file in files],
        "engine": options.engine,
        "rows_in": rows_in,
        "dropped": dropped,
        "rows_out": rows_out,
        "parts": parts,
        "dedup": options.dedup,
        "cutoffs": asdict(cutoffs),
    }


def read_columns(
    files: list[Path], scratch: Path, options: CurateOptions, bar: Progress | None = None
) -> tuple[list[Path], dict[str, Column]]:
    """The catalogue as parquet files, and which of their columns are taken: {canonical name: column}."""
    headerless, is_text = SCHEMAS[options.source].headerless, files[0].suffix in TEXT_KINDS
    columns = text_columns(files, headerless) if is_text else parquet_columns(files)
    chosen, ignored = choose(options.source, columns, files[0].name, options.url_col, options.caption_col)
    for column in ignored:
        print(f"{files[0].name}: the column {column.name} holds {column.kind}, which is left out", file=sys.stderr, flush=True)
    if not is_text:
        return files, chosen
    parquet = scratch / "catalogue.parquet"
    to_parquet(files, headerless, chosen, parquet, bar)
    return [parquet], {name: Column(name, TEXT, (name,)) for name in chosen}


@contextmanager
def _following(engine: Engine, bar: Progress, first: int, last: int) -> Iterator[None]:
    """Moves the bar from `first` to `last` percent as the engine comes along with the one statement that is run inside."""
    bar.set(first)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(FOLLOW_SECONDS):
            share = engine.share()
            bar.set(bar.done if share is None else max(bar.done, first + int((last - first) * share)))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _describe(path: Path) -> dict:
    import pyarrow.parquet as pq

    return {"path": path.name, "rows": pq.read_metadata(path).num_rows, "sha256": sha256_file(path)}


def read_curate(folder: Path) -> dict:
    """curate.json of a data set folder. UserError when there is none."""
    path = Path(folder) / "canonical" / "curate.json"
    try:
        record = json.loads(path.read_text())
        check_format(record.get("format", FORMAT), FORMAT, path, f"delete {path.parent} and curate again", oldest=1)
        return {key: record[key] for key in record} | {
            "rows_in": int(record["rows_in"]),
            "rows_out": int(record["rows_out"]),
        }
    except FileNotFoundError:
        raise UserError(
            f"{path}: not there; run first: python -m data_pipeline curate --metadata CATALOGUE --out {folder}"
        ) from None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; delete {path.parent} and curate again") from None

"""What became of every row by host and over time, from the files that img2dataset leaves beside each tar.

NNNNN.parquet (the sidecar) has a line for every row of a shard, NNNNN_stats.json its counts and clock times. Sidecars are compared
with the stats, stats with download.json: what disagrees is named and not counted.
"""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.catalogue.curation_sql import HOST, SUSPECT
from data_pipeline.catalogue.hosts import is_public_host
from data_pipeline.duck import Duck, quote
from data_pipeline.errors import UserError, one_line
from data_pipeline.files import atomic_path

OUTCOMES = "outcomes.parquet"
FORMAT = 1
SUCCESS = "success"
LOST = "lost by img2dataset"
"""The name in download.json for rows that are in nobody's count; they have no line in a sidecar either."""
NO_SIDECAR = "its sidecar is missing"
MEMORY_LIMIT = "2GB"
WORST_HOSTS = 20
BINS = 60


@dataclass(frozen=True)
class ShardStats:
    """The stats file of one shard."""

    shard: Path
    """Path of the tar without its suffix."""
    rows: int
    statuses: dict[str, int]
    """Rows by outcome, `SUCCESS` among them."""
    start: float
    """Seconds since 1970."""
    end: float
    changed: float
    """Time of change of the file, seconds since 1970."""

    @property
    def sidecar(self) -> Path:
        return self.shard.with_name(f"{self.shard.name}.parquet")

    @property
    def successes(self) -> int:
        return self.statuses.get(SUCCESS, 0)


@dataclass(frozen=True)
class Outcomes:
    """DIR/outcomes.parquet: columns host (as in the URL, lower case, without port and user; empty: none), outcome, rows."""

    path: Path
    statuses: dict[str, int]
    """Rows by outcome, over all hosts; empty: nothing could be counted."""
    left_out: dict[str, str]
    """Shards (relative to DIR) whose rows are not counted, and why."""


def shard_paths(folder: Path, downloaded: dict) -> list[Path]:
    """Shards of a download record, without suffix. Names with a slash are those of parts (parts.sum_of_downloads)."""
    return [folder / name if "/" in name else folder / "shards" / name for name in downloaded["shards"]]


def read_stats(shards: Iterable[Path]) -> tuple[list[ShardStats], dict[Path, str]]:
    """Stats of shards, and those that have none with the reason why."""
    found, without = [], {}
    for shard in shards:
        path = shard.with_name(f"{shard.name}_stats.json")
        try:
            record = json.loads(path.read_text())
            statuses = {str(name): int(count) for name, count in record["status_dict"].items()}
            times = float(record["start_time"]), float(record["end_time"])
            if not np.isfinite(times).all():
                raise ValueError
            found.append(ShardStats(shard, int(record["count"]), statuses, *times, path.stat().st_mtime))
        except FileNotFoundError:
            without[shard] = "its stats file is missing"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            without[shard] = "its stats file cannot be read"
    return found, without


def check_stats(folder: Path, stats: Sequence[ShardStats], downloaded: dict) -> None:
    """Raises `UserError` if the stats of all shards together are not what the download record says, reason by reason."""
    counted: Counter[str] = Counter()
    for shard in stats:
        counted.update(shard.statuses)
    lost = sum(shard.rows for shard in stats) - counted.total()
    if lost > 0:
        counted[LOST] += lost
    recorded = Counter(downloaded["failed"]) + Counter({SUCCESS: downloaded["downloaded"]})
    for name in sorted(counted.keys() | recorded.keys()):
        if counted[name] != recorded[name]:
            raise UserError(
                f"{folder}: the shards' stats files count {counted[name]} rows {name!a}, download.json {recorded[name]}; a shard "
                "changed after the download ended: run download, verify and report again"
            )


@contextmanager
def _database(folder: Path) -> Iterator[Duck]:
    """DuckDB with bounded memory; what does not fit goes to files in `folder`."""
    for left_over in folder.glob(".outcomes.*"):  # of a report that was killed
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".outcomes.", dir=folder) as scratch, Duck(Path(scratch), MEMORY_LIMIT) as duck:
        duck.connection.execute("SET enable_progress_bar = false")
        duck.connection.execute("SET preserve_insertion_order = false")
        yield duck


def _write(duck: Duck, select: str, target: Path, left_out: dict[str, str]) -> None:
    said = quote(json.dumps({"format": FORMAT, "left_out": left_out}))
    with atomic_path(target) as temporary:
        duck.connection.execute(
            f"COPY (SELECT host, outcome, rows FROM ({select}) ORDER BY host, outcome) TO {quote(duck.name(temporary))} "
            f"(FORMAT parquet, COMPRESSION zstd, KV_METADATA {{outcomes: {said}}})"
        )


def _count_lines(duck: Duck, shards: Sequence[ShardStats]) -> None:
    """Table `counted`: rows by (file, outcome) where `host` is null, and by (host, outcome) where `file` is null, in one pass."""
    duck.connection.execute(f"""CREATE OR REPLACE TABLE counted AS
        SELECT file, host, outcome, count(*) AS rows FROM (
          SELECT filename AS file, coalesce(lower(rtrim(regexp_extract(url, {quote(HOST)}, 1), '.')), '') AS host,
            CASE WHEN status = '{SUCCESS}' THEN status ELSE coalesce(error_message, status, 'no status') END AS outcome
          FROM {duck.parquet((shard.sidecar for shard in shards), "filename = true")})
        GROUP BY GROUPING SETS ((file, outcome), (host, outcome))""")


def _unreadable(duck: Duck, shards: Sequence[ShardStats], failure: type[Exception]) -> dict[Path, str]:
    found = {}
    for shard in shards:
        try:
            _count_lines(duck, [shard])
        except failure as error:
            found[shard.shard] = f"its sidecar cannot be read ({one_line(error)})"
    return found


def _disagreeing(duck: Duck, shards: Sequence[ShardStats]) -> dict[Path, str]:
    """Shards whose sidecar counts other than their stats file, with the first outcome for which it does."""
    names, outcomes, rows, places = [], [], [], {}
    for shard in shards:
        name = duck.name(shard.sidecar)
        places[name] = shard.shard
        names += [name] * len(shard.statuses)
        outcomes += shard.statuses.keys()
        rows += shard.statuses.values()
    types = (("file", names, pa.string()), ("outcome", outcomes, pa.string()), ("rows", rows, pa.int64()))
    duck.connection.register("said", pa.table({name: pa.array(values, kind) for name, values, kind in types}))
    differing = duck.connection.execute("""SELECT file, outcome, coalesce(c.rows, 0), coalesce(s.rows, 0)
        FROM (SELECT * FROM counted WHERE file IS NOT NULL) c FULL JOIN said s USING (file, outcome)
        WHERE coalesce(c.rows, 0) <> coalesce(s.rows, 0) ORDER BY file DESC, outcome DESC""").fetchall()
    duck.connection.unregister("said")
    return {
        places[file]: f"its sidecar has {lines} rows {outcome!a}, its stats file {said}" for file, outcome, lines, said in differing
    }


def count_outcomes(folder: Path, stats: Sequence[ShardStats], without: dict[Path, str]) -> Outcomes:
    """Counts the lines of sidecars by host and outcome and writes DIR/outcomes.parquet, whole or not at all. Shards whose sidecar
    is missing, damaged or disagrees with their stats are named in it and not counted; nothing is written where that leaves none.

    Args:
        without: shards that cannot be counted for want of stats, with the reason.

    Raises:
        UserError: DuckDB fails, though every sidecar can be read.
    """
    import duckdb

    left_out = without | {shard.shard: NO_SIDECAR for shard in stats if not shard.sidecar.exists()}
    with _database(folder) as duck:
        while shards := [shard for shard in stats if shard.shard not in left_out]:
            try:
                _count_lines(duck, shards)
                bad = _disagreeing(duck, shards)
            except duckdb.Error as error:
                bad = _unreadable(duck, shards, duckdb.Error)
                if not bad:
                    raise UserError(f"{folder}: the outcomes of its rows cannot be counted: {one_line(error)}") from None
            if not bad:
                _write(duck, "SELECT * FROM counted WHERE file IS NULL", folder / OUTCOMES, _named(folder, left_out))
                return read_outcomes(folder)
            left_out |= bad
    return Outcomes(folder / OUTCOMES, {}, _named(folder, left_out))


def _named(folder: Path, shards: dict[Path, str]) -> dict[str, str]:
    return {shard.relative_to(folder).as_posix(): reason for shard, reason in sorted(shards.items())}


def read_outcomes(folder: Path) -> Outcomes | None:
    """DIR/outcomes.parquet; None where there is none that this version can read."""
    path = folder / OUTCOMES
    try:
        said = json.loads(pq.read_schema(path).metadata[b"outcomes"])
        if said["format"] != FORMAT:
            return None
        table = pq.read_table(path, columns=["outcome", "rows"]).group_by("outcome").aggregate([("rows", "sum")])
        return Outcomes(path, dict(zip(*table.select(["outcome", "rows_sum"]).to_pydict().values(), strict=True)), said["left_out"])
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _outcomes_of_one(folder: Path, stats: Sequence[ShardStats], without: dict[Path, str]) -> Outcomes:
    """Of a folder that has shards itself: what is on disk if it holds, else counted anew."""
    record = json.loads((folder / "download.json").read_text())
    expected = {SUCCESS: record["downloaded"], **record["failed"]}
    expected = {name: rows for name, rows in expected.items() if rows and name != LOST}
    old = read_outcomes(folder)
    if old is not None:
        written = old.path.stat().st_mtime
        newer = all(shard.changed <= written for shard in stats)
        agrees = not old.left_out and old.statuses == expected
        back = any(
            shard.sidecar.exists() and (reason == NO_SIDECAR or shard.sidecar.stat().st_mtime > written)
            for shard in stats
            if (reason := old.left_out.get(shard.shard.relative_to(folder).as_posix()))
        )
        # Sidecars may be deleted once they are counted: a copy of the folder, with new times, does not lose the counts.
        gone = without or not all(shard.sidecar.exists() for shard in stats)
        if agrees and (newer or gone) or old.left_out and newer and not back:
            return old
    return count_outcomes(folder, stats, without)


def outcomes_of(folder: Path, stats: Sequence[ShardStats], without: dict[Path, str]) -> Outcomes:
    """Outcomes by host of a data set folder, counted where DIR/outcomes.parquet is missing or older than the shards; of a folder of
    parts the sums of theirs. Without `statuses`, and not on disk, where not one sidecar can be counted.

    Args:
        stats: of the folder's shards, those in its parts included (`read_stats`).
        without: shards without stats, and why.
    """
    by_root: dict[Path, tuple[list[ShardStats], dict[Path, str]]] = defaultdict(lambda: ([], {}))
    for shard in stats:
        by_root[shard.shard.parent.parent][0].append(shard)
    for shard, reason in without.items():
        by_root[shard.parent.parent][1][shard] = reason
    if set(by_root) <= {folder}:
        return _outcomes_of_one(folder, stats, without)
    left_out, files = {}, []
    for root, (own, lacking) in sorted(by_root.items()):
        piece = _outcomes_of_one(root, own, lacking)
        files += [piece.path] if piece.statuses else []
        left_out |= {f"{root.relative_to(folder).as_posix()}/{name}": reason for name, reason in piece.left_out.items()}
    if not files:
        return Outcomes(folder / OUTCOMES, {}, left_out)
    old = read_outcomes(folder)
    if old is None or old.left_out != left_out or any(path.stat().st_mtime > old.path.stat().st_mtime for path in files):
        with _database(folder) as duck:
            summed = f"SELECT host, outcome, sum(rows)::BIGINT AS rows FROM {duck.parquet(files)} GROUP BY host, outcome"
            _write(duck, summed, folder / OUTCOMES, left_out)
    return read_outcomes(folder)


def worst_hosts(outcomes: Sequence[Outcomes], most: int = WORST_HOSTS) -> dict:
    """Of one or several folders together: `distinct` hosts, `rows`, `silent` ones that gave nothing at all ({hosts, rows, share of
    rows}), `private` ones, by the look of their names ({hosts, rows}), and the `worst`: [{host, rows, success, outcomes {reason:
    rows}}], most failures first."""
    with _database(outcomes[0].path.parent) as duck:
        database, counted = duck.connection, duck.parquet(entry.path for entry in outcomes)
        database.execute(f"""CREATE TABLE hosts AS
            SELECT host, sum(rows)::BIGINT AS rows, coalesce(sum(rows) FILTER (outcome = '{SUCCESS}'), 0)::BIGINT AS success
            FROM {counted} GROUP BY host""")
        distinct, rows, silent, silent_rows = database.execute("""
            SELECT count(*) FILTER (host <> ''), coalesce(sum(rows), 0)::BIGINT,
              count(*) FILTER (success = 0 AND host <> ''), coalesce(sum(rows) FILTER (success = 0), 0)::BIGINT
            FROM hosts""").fetchone()
        suspects = database.execute(f"SELECT host, rows FROM hosts WHERE regexp_matches(host, {quote(SUSPECT)})").fetchall()
        private = [count for host, count in suspects if not is_public_host(host)]
        worst = database.execute(f"""SELECT host, rows, success FROM hosts WHERE rows > success
            ORDER BY rows - success DESC, host LIMIT {most:d}""").fetchall()
        database.register("chosen", pa.table({"host": pa.array([host for host, _, _ in worst], pa.string())}))
        reasons: dict[str, dict[str, int]] = defaultdict(dict)
        for host, outcome, count in database.execute(f"""SELECT host, outcome, sum(rows)::BIGINT AS failed
            FROM {counted} SEMI JOIN chosen USING (host)
            WHERE outcome <> '{SUCCESS}' GROUP BY host, outcome ORDER BY host, failed DESC, outcome""").fetchall():
            reasons[host][outcome] = count
    return {
        "distinct": distinct,
        "rows": rows,
        "silent": {"hosts": silent, "rows": silent_rows, "share": silent_rows / rows if rows else 0.0},
        "private": {"hosts": len(private), "rows": sum(private)},
        "worst": [{"host": host, "rows": count, "success": success, "outcomes": reasons[host]} for host, count, success in worst],
    }


def over_time(stats: Sequence[ShardStats], most_bins: int = BINS) -> dict | None:
    """Rows and successes in equal spans of wall-clock time, of all shards together wherever they were downloaded.

    A shard's rows are spread evenly over the time from its start to its end. `start` is in seconds since 1970; there are as many
    spans as shards, at most `most_bins`. None without stats.
    """
    if not stats:
        return None
    starts, ends = _intervals(stats)
    first, last = starts.min(), ends.max()
    number = min(most_bins, len(stats))
    width = (last - first) / number or 1.0
    edges = first + width * np.arange(number + 1)
    rows, successes = (np.array([getattr(shard, name) for shard in stats], float) for name in ("rows", "successes"))
    lengths = ends - starts
    result: dict[str, list[float]] = {"rows": [], "successes": []}
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        is_last = place == number - 1
        high = max(high, last) if is_last else high
        inside = np.clip(np.minimum(ends, high) - np.maximum(starts, low), 0, None) / np.where(lengths > 0, lengths, 1)
        began = (starts >= low) & ((starts < high) | is_last)  # where a shard that took no time belongs
        share = np.where(lengths > 0, inside, began)
        result["rows"].append(float(share @ rows))
        result["successes"].append(float(share @ successes))
    return {
        "start": float(first),
        "seconds_per_bin": float(width),
        **result,
        "success_rate": [good / count if count > 0 else None for count, good in zip(*result.values(), strict=True)],
        "rows_per_second": [count / float(width) for count in result["rows"]],
    }


def _intervals(stats: Sequence[ShardStats]) -> tuple[np.ndarray, np.ndarray]:
    """float64 (shards,) each: seconds since 1970 at which shards began and ended; a clock that was set back gives no time."""
    starts = np.array([shard.start for shard in stats], float)
    return starts, np.maximum(starts, np.array([shard.end for shard in stats], float))


def _covered(starts: np.ndarray, ends: np.ndarray) -> float:
    """Seconds in at least one of the intervals."""
    order = np.argsort(starts)
    starts, reached = starts[order], np.maximum.accumulate(ends[order])
    gaps = np.clip(starts[1:] - reached[:-1], 0, None)
    return float(reached[-1] - starts[0] - gaps.sum())


def hours(stats: Sequence[ShardStats]) -> dict | None:
    """Hours of downloading, by the clock times of finished shards. None without stats.

    `wall`: first start to last end, pauses included. `job`: in which at least one shard was in work, added up over part folders:
    what one `download` command took, or the jobs of a cluster together. `process`: shard by shard, all added up.
    """
    if not stats:
        return None
    by_root: dict[Path, list[ShardStats]] = defaultdict(list)
    for shard in stats:
        by_root[shard.shard.parent.parent].append(shard)
    starts, ends = _intervals(stats)
    seconds = {
        "wall": float(ends.max() - starts.min()),
        "job": sum(_covered(*_intervals(own)) for own in by_root.values()),
        "process": float((ends - starts).sum()),
    }
    return {name: value / 3600 for name, value in seconds.items()}

"""Outcomes by host and over time, against slow loops over hand-written sidecars and stats."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.parts import merge
from data_pipeline.report.outcomes import (
    LOST,
    NO_SIDECAR,
    ShardStats,
    count_outcomes,
    hours,
    outcomes_of,
    over_time,
    read_outcomes,
    read_stats,
    shard_paths,
    worst_hosts,
)
from data_pipeline.report.writing import report
from data_pipeline.shards.verify import verify
from tests.worlds.data.written_shards import rows_of, slow_counts, slow_host, write_folder, write_sidecar, write_stats

pytestmark = pytest.mark.timeout(60)


def downloads(folder: Path) -> dict:
    return json.loads((folder / "download.json").read_text())


def counted(folder: Path) -> Counter:
    table = pq.read_table(folder / "outcomes.parquet")
    assert table.schema.names == ["host", "outcome", "rows"]
    rows = [tuple(row.values()) for row in table.to_pylist()]
    assert rows == sorted(rows), "in the order of host and outcome"
    return Counter({(host, outcome): count for host, outcome, count in rows})


def outcomes(folder: Path):
    return outcomes_of(folder, *read_stats(shard_paths(folder, downloads(folder))))


def test_hosts_and_outcomes_are_those_of_a_slow_loop(folder: Path) -> None:
    rows = rows_of(230, 1) + rows_of(150, 2)
    found = outcomes(folder)
    assert counted(folder) == slow_counts(rows) and found.left_out == {}
    assert found.statuses == Counter(outcome for _, outcome in rows)
    assert {"", "[2001:db8::1]", "b\u00fccher.example", "\u4f8b\u3048.jp", "it's.example", "127.0.0.1"} < {
        h for h, _ in counted(folder)
    }
    assert counted(folder).total() == 380 and not list(folder.glob(".outcomes*"))


@pytest.mark.parametrize("name", ["cc12m [v1]", "host=x", "outcome=y", "a*b", "a?b", "a\\b", "a::b", "it's", "50%", "a#b"])
def test_outcomes_of_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """DuckDB took `[v1]` for a pattern and `host=x` for a column."""
    root = write_folder(tmp_path / name / "data", [rows_of(60, 1), rows_of(50, 2)])
    found = outcomes(root)
    assert found.left_out == {} and counted(root) == slow_counts(rows_of(60, 1) + rows_of(50, 2))
    assert worst_hosts([found])["rows"] == 110 and not list(root.glob(".outcomes*"))


def test_the_worst_hosts_are_those_of_a_slow_loop(folder: Path) -> None:
    rows = rows_of(230, 1) + rows_of(150, 2)
    by_host: dict[str, Counter] = {}
    for url, outcome in rows:
        by_host.setdefault(slow_host(url), Counter())[outcome] += 1
    failures = sorted(
        ((counts.total() - counts["success"], host) for host, counts in by_host.items()), key=lambda pair: (-pair[0], pair[1])
    )
    for most in (3, 100):
        found = worst_hosts([outcomes(folder)], most)
        assert [entry["host"] for entry in found["worst"]] == [host for count, host in failures if count][:most]
        for entry in found["worst"]:
            counts = by_host[entry["host"]]
            assert (entry["rows"], entry["success"]) == (counts.total(), counts["success"])
            assert entry["outcomes"] == {name: count for name, count in counts.items() if name != "success"}
            assert list(entry["outcomes"].values()) == sorted(entry["outcomes"].values(), reverse=True)
    silent = [(host, counts.total()) for host, counts in by_host.items() if not counts["success"]]
    assert found["distinct"] == len(by_host) - 1 and found["rows"] == 380, "no host is none"
    assert found["silent"]["hosts"] == sum(host != "" for host, _ in silent)
    assert found["silent"]["rows"] == sum(count for _, count in silent) == round(380 * found["silent"]["share"])
    assert found["private"] == {"hosts": 2, "rows": by_host["127.0.0.1"].total() + by_host["[2001:db8::1]"].total()}


def break_cut(sidecar: Path, rows: list) -> None:
    os.truncate(sidecar, sidecar.stat().st_size // 2)


def break_data(sidecar: Path, rows: list) -> None:
    """The footer is whole, a page of the URLs is not."""
    column = pq.read_metadata(sidecar).row_group(0).column(2)
    assert column.path_in_schema == "url"
    data, start = bytearray(sidecar.read_bytes()), column.dictionary_page_offset
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    sidecar.write_bytes(data)


def break_rows(sidecar: Path, rows: list) -> None:
    write_sidecar(sidecar, rows[:-1])


def break_reason(sidecar: Path, rows: list) -> None:
    place = next(place for place, (_, outcome) in enumerate(rows) if outcome == "timeout")
    write_sidecar(sidecar, [(url, "http 500" if number == place else outcome) for number, (url, outcome) in enumerate(rows)])


def break_columns(sidecar: Path, rows: list) -> None:
    pq.write_table(pa.table({"url": [url for url, _ in rows]}), sidecar)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda sidecar, rows: sidecar.unlink(), "its sidecar is missing"),
        (break_cut, "its sidecar cannot be read"),
        (break_data, "its sidecar cannot be read"),
        (break_columns, "its sidecar cannot be read"),
        (break_rows, "its sidecar has "),
        (break_reason, "its sidecar has 1 rows 'http 500', its stats file 0"),
    ],
)
def test_a_sidecar_that_is_damaged_or_disagrees_is_named_and_left_out(folder: Path, damage, reason: str) -> None:
    damage(folder / "shards/00001.parquet", rows_of(150, 2))
    found = outcomes(folder)
    assert list(found.left_out) == ["shards/00001"] and found.left_out["shards/00001"].startswith(reason)
    assert counted(folder) == slow_counts(rows_of(230, 1))
    funnel = report(folder)
    assert funnel["sidecars"]["left_out"] == 1 and funnel["hosts"]["rows"] == 230
    page = (folder / "funnel.html").read_text()
    assert "Not counted by host: 1 of 2 shards." in page and "shards/00001: its sidecar" in page


def test_without_sidecars_or_stats_there_is_a_report_that_says_so(folder: Path) -> None:
    whole = report(folder)
    (folder / "outcomes.parquet").unlink()
    for path in (folder / "shards").glob("*.parquet"):
        path.unlink()
    funnel, page = report(folder), (folder / "funnel.html").read_text()
    assert funnel["hosts"] is None and not (folder / "outcomes.parquet").exists()
    assert funnel["sidecars"] == {
        "shards": 2,
        "left_out": 2,
        "reasons": {"shards/00000": NO_SIDECAR, "shards/00001": NO_SIDECAR},
    }
    assert funnel["image_size"]["original_short_side"] is None and "sizes before they were reduced are not known" in page
    assert "Not counted by host: 2 of 2 shards." in page and funnel["over_time"] == whole["over_time"]
    (folder / "shards/00000_stats.json").write_text("{")
    funnel = report(folder)
    assert funnel["stats_missing"] == 1 and "Without a stats file: 1 shards" in (folder / "funnel.html").read_text()
    assert funnel["sidecars"]["reasons"]["shards/00000"] == "its stats file cannot be read"
    assert funnel["hours"]["wall"] == pytest.approx(10 / 3600)
    (folder / "shards/00001_stats.json").unlink()
    funnel = report(folder)
    assert funnel["over_time"] is funnel["hours"] is funnel["rows_per_second"] is None and funnel["kept"] == whole["kept"]


@pytest.mark.parametrize(
    "change", [{"downloaded": 161, "failed_less": 1}, {"failed": {"http 404": 1}}, {"swap": True}], ids=["one", "all", "reason"]
)
def test_stats_that_disagree_with_the_download_are_an_error(folder: Path, change: dict) -> None:
    record = downloads(folder)
    if "swap" in change:
        record["failed"]["timeout"] -= 1
        record["failed"]["http 404"] += 1
    elif "failed_less" in change:
        record["downloaded"] += 1
        record["failed"]["timeout"] -= 1
    else:
        record["failed"] = {"http 404": sum(record["failed"].values())}
    write_json(folder / "download.json", record)
    if "failed_less" in change:
        verified = json.loads((folder / "manifest/verify.json").read_text())
        write_json(folder / "manifest/verify.json", verified | {"samples": verified["samples"] + 1, "kept": verified["kept"] + 1})
    with pytest.raises(UserError, match="stats files count .* rows .*, download.json .*; a shard changed after"):
        report(folder)


def test_lost_rows_are_in_the_funnel_and_at_no_host(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", [rows_of(60, 1)], lost=3)
    verify(root, processes=1)
    funnel = report(root)
    assert funnel["statuses"][LOST] == 3 and funnel["requested"] == 63
    assert counted(root).total() == funnel["hosts"]["rows"] == 60 and funnel["sidecars"]["left_out"] == 0


def test_outcomes_are_counted_again_when_and_only_when_that_is_needed(folder: Path) -> None:
    outcomes(folder)
    path, stats = folder / "outcomes.parquet", folder / "shards/00001_stats.json"

    def again() -> bool:
        before = path.read_bytes(), path.stat().st_mtime_ns
        os.utime(path, ns=(before[1], before[1]))
        inode = path.stat().st_ino
        outcomes(folder)
        return path.stat().st_ino != inode

    assert not again()
    later = path.stat().st_mtime + 5
    os.utime(stats, (later, later))
    assert again() and path.stat().st_mtime < later
    os.utime(path, (later + 1, later + 1))
    assert not again()
    path.write_bytes(b"no parquet")
    assert again() and not outcomes(folder).left_out
    # deleted after they were counted: nothing is lost, not even in a copy with new times
    sidecar, kept = folder / "shards/00001.parquet", folder.parent / "kept.parquet"
    os.utime(path, (1, 1))
    sidecar.rename(kept)
    assert not again() and counted(folder).total() == 380
    # deleted before: counted without it, and with it as soon as it is back, whatever its time
    path.unlink()
    os.utime(stats, (1, 1))
    assert list(outcomes(folder).left_out) == ["shards/00001"] and not again()
    kept.rename(sidecar)
    os.utime(sidecar, (1, 1))
    assert again() and read_outcomes(folder).left_out == {} and counted(folder).total() == 380
    # of another download
    write_json(folder / "download.json", downloads(folder) | {"failed": {"http 500": 1}})
    assert again()


def test_nothing_is_left_behind_when_counting_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.report.outcomes.HOST", "(")
    stats, without = read_stats(shard_paths(folder, downloads(folder)))
    found = count_outcomes(folder, stats, without)
    assert not found.statuses and len(found.left_out) == 2 and not list(folder.glob("*outcomes*"))


def test_parts_are_summed(tmp_path: Path) -> None:
    whole, rows = tmp_path / "whole", [rows_of(120, 1), rows_of(90, 2), rows_of(70, 3)]
    parts = [{"path": f"part-{n:05d}.parquet", "rows": 1, "sha256": ""} for n in range(2)]
    first = write_folder(whole / "parts/00000", rows[:2], source="laion2b", dropped={})
    second = write_folder(whole / "parts/00001", rows[2:], source="laion2b", dropped={})
    for part in (first, second):
        verify(part, processes=1)
    record = {"source": "laion2b", "rows_in": 300, "rows_out": 280, "dropped": {"nsfw": 20}, "parts": parts}
    (whole / "canonical").mkdir()
    write_json(whole / "canonical/curate.json", record)
    # the second part ran at the same time on another machine, on a clock of its own
    write_stats(second / "shards/00000_stats.json", rows[2], 1003.0, 1023.0)
    merge(whole)
    funnel = report(whole)
    assert counted(whole) == slow_counts(sum(rows, [])) == counted(first) + counted(second)
    assert funnel["hosts"]["rows"] == funnel["requested"] == 280
    assert funnel["hours"] == pytest.approx({"wall": 23 / 3600, "job": (15 + 20) / 3600, "process": (10 + 10 + 20) / 3600})
    assert funnel["rows_per_second"] == pytest.approx(280 / 35)
    assert sum(funnel["over_time"]["rows"]) == pytest.approx(280) and funnel["over_time"]["start"] == 1000
    assert report(first)["projection"] is None, "its rows are curated already"
    (second / "shards/00000.parquet").unlink()
    (second / "outcomes.parquet").unlink()
    funnel = report(whole)
    assert funnel["sidecars"]["reasons"] == {"parts/00001/shards/00000": NO_SIDECAR} and funnel["sidecars"]["shards"] == 3
    assert counted(whole) == slow_counts(rows[0] + rows[1])


def shard(rows: int, successes: int, start: float, end: float, root: str = "a") -> ShardStats:
    return ShardStats(Path(f"/{root}/shards/00000"), rows, {"success": successes}, start, end, 0.0)


def test_over_time_by_hand() -> None:
    assert over_time([]) is None and hours([]) is None
    found = over_time([shard(100, 50, 0, 10), shard(100, 100, 10, 20)])
    assert found == {
        "start": 0,
        "seconds_per_bin": 10,
        "rows": [100, 100],
        "successes": [50, 100],
        "success_rate": [0.5, 1.0],
        "rows_per_second": [10, 10],
    }
    found = over_time([shard(90, 30, 0, 10), shard(10, 10, 95, 95), shard(10, 0, 100, 90)])
    assert found["rows"] == pytest.approx([90, 0, 20]) and found["success_rate"] == pytest.approx([1 / 3, None, 0.5], nan_ok=True)
    at_once = over_time([shard(5, 2, 7, 7)])
    assert (at_once["rows"], at_once["seconds_per_bin"]) == ([5], 1)


def test_over_time_against_a_walk_second_by_second() -> None:
    generator = np.random.default_rng(0)
    stats = []
    for _ in range(80):
        start, length, rows = generator.integers(0, 500), generator.integers(1, 99), int(generator.integers(1, 1000))
        stats.append(shard(rows, int(rows * generator.random()), float(start), float(start + length)))
    stats.append(shard(10, 0, 0.0, 600.0))
    found = over_time(stats)
    rows, successes = np.zeros(600), np.zeros(600)
    for entry in stats:
        for second in range(int(entry.start), int(entry.end)):
            rows[second] += entry.rows / (entry.end - entry.start)
            successes[second] += entry.successes / (entry.end - entry.start)
    assert len(found["rows"]) == 60 and found["seconds_per_bin"] == 10
    np.testing.assert_allclose(found["rows"], rows.reshape(60, 10).sum(1))
    np.testing.assert_allclose(found["success_rate"], successes.reshape(60, 10).sum(1) / rows.reshape(60, 10).sum(1))
    np.testing.assert_allclose(found["rows_per_second"], rows.reshape(60, 10).mean(1))
    busy = np.zeros(600, bool)
    for entry in stats[:-1]:
        busy[int(entry.start) : int(entry.end)] = True
    assert hours(stats[:-1])["job"] == pytest.approx(busy.sum() / 3600)


def test_hours_leave_out_pauses_and_add_up_jobs() -> None:
    stats = [
        shard(1, 1, 0, 100),
        shard(1, 1, 50, 70),
        shard(1, 1, 86400, 86500),
        shard(1, 1, 20, 60, "b"),
        shard(1, 1, 90, 80, "b"),
    ]
    assert hours(stats) == pytest.approx({"wall": 86500 / 3600, "job": (200 + 40) / 3600, "process": 260 / 3600})

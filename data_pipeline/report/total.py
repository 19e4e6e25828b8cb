"""One funnel of several data set folders, by source and in total."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from data_pipeline.files import write_bytes, write_json
from data_pipeline.report.funnel import FORMAT, check_sums
from data_pipeline.report.outcomes import read_outcomes, worst_hosts
from data_pipeline.report.projection import project, sum_of_projections

COUNTS = ("rows_in", "joined", "requested", "downloaded", "in_damaged_shards", "verified", "kept", "shards", "bytes")
COUNTS_BY_REASON = ("dropped", "failed", "failed_messages", "rejected", "statuses", "duplicates", "decontaminated")


def add_up(funnels: Sequence[dict]) -> dict:
    """One funnel of several, every number their sum: hours {job} and rows_per_second are of those that downloaded, null where one
    of those does not know. UserError when it does not add up."""
    total: dict = {"format": FORMAT, "source": " + ".join(dict.fromkeys(funnel["source"] for funnel in funnels))}
    for name in COUNTS:
        total[name] = sum(funnel[name] for funnel in funnels)
    for name in COUNTS_BY_REASON:
        total[name] = dict(sum((Counter(funnel[name]) for funnel in funnels), Counter()).most_common())
    check_sums(total)
    timed = [(funnel["requested"], funnel["rows_per_second"]) for funnel in funnels if funnel["sidecars"] is not None]
    known = all(speed for _, speed in timed)
    job = sum(rows / speed for rows, speed in timed) / 3600 if known else 0.0
    return total | {
        "hours": {"job": job} if known else None,
        "rows_per_second": sum(rows for rows, _ in timed) / job / 3600 if job else None,
    }


def report_total(folders: Sequence[Path], funnels: Sequence[dict], out: Path) -> dict:
    """Writes the page of several folders together and its numbers beside it (.json); returns the latter.

    They are those of one funnel, summed, with per_source {source: funnel and projection}, folders [{folder, ...}] and a projection:
    the sum of the sources', where a source without one counts as it is.

    Raises:
        UserError: the sums do not add up.
    """
    from data_pipeline.report.page import render_total

    total = add_up(funnels)
    per_source = {}
    for source in dict.fromkeys(funnel["source"] for funnel in funnels):
        own = [funnel for funnel in funnels if funnel["source"] == source]
        summed = add_up(own) | {"hosts": None}
        per_source[source] = summed | {"projection": project(summed, None if any(f["projection"] for f in own) else 0)}
    known = {
        folder: outcomes
        for folder, funnel in zip(folders, funnels, strict=True)
        if funnel["hosts"] and (outcomes := read_outcomes(folder.absolute()))
    }
    damaged = [(folder, entry) for folder, funnel in zip(folders, funnels, strict=True) for entry in funnel["damaged_shards"]]
    total |= {
        "damaged_shards": [entry | {"path": f"{folder}/{entry['path']}"} for folder, entry in damaged],
        "per_source": per_source,
        "folders": [{"folder": str(folder)} | add_up([funnel]) for folder, funnel in zip(folders, funnels, strict=True)],
        "hosts": worst_hosts(list(known.values())) if known else None,
        "without_hosts": [
            str(folder)
            for folder, funnel in zip(folders, funnels, strict=True)
            if folder not in known and funnel["sidecars"] is not None
        ],
        "projection": sum_of_projections(per_source.values()),
    }
    write_json(out.with_suffix(".json"), total)
    write_bytes(out, render_total(total).encode("utf-8"))
    return total

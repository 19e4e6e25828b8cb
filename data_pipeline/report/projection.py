"""What a full catalogue would give if it went like the rows that were built."""

from __future__ import annotations

import math
from collections.abc import Sequence

from data_pipeline.errors import UserError

# Rows of the whole catalogue as published: LAION-5B's paper (English part), Hugging Face's count of
# laion/relaion2B-en-research-safe, the READMEs of COYO-700M (747 M) and Conceptual 12M, Conceptual Captions' training set.
PUBLISHED_ROWS = {
    "laion2b": 2_320_000_000,
    "relaion2b": 2_097_693_557,
    "coyo700m": 747_000_000,
    "cc12m": 12_423_374,
    "cc3m": 3_318_333,
}


def share_interval(successes: int, rows: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, from a random sample."""
    z = 1.959964
    share, spread = successes / rows, z * z / rows
    half = z * math.sqrt(share * (1 - share) / rows + spread / (4 * rows))
    return tuple(min(1.0, max(0.0, (share + spread / 2 + sign * half) / (1 + spread))) for sign in (-1, 1))


def project(funnel: dict, to_rows: int | None) -> dict | None:
    """What the full catalogue would give if it went like the funnel's rows; None: nothing to project to.

    Args:
        to_rows: rows of the full catalogue; None: as published, where the funnel holds less than half of it and most of its rows
            do not come from private addresses (a demo's do); 0: no projection.

    Returns:
        to_rows, share (kept of rows in) with its 95 % interval share_low to share_high, as if the rows were a random sample; kept,
        kept_low, kept_high; bytes of tars; job_hours of downloading at the measured rows_per_second, None where it is unknown.
    """
    rows = funnel["rows_in"]
    if to_rows is None:
        to_rows = PUBLISHED_ROWS.get(funnel["source"], 0)
        hosts = funnel["hosts"]
        drawn = hosts is not None and 2 * hosts["private"]["rows"] > hosts["rows"]
        to_rows = to_rows if 2 * rows < to_rows and not drawn else 0
    elif to_rows < 0 or 0 < to_rows < rows:
        raise UserError(f"--project-to {to_rows}: expected 0, or at least the {rows} rows that there are")
    if not to_rows or not rows:
        return None
    low, high = share_interval(funnel["kept"], rows)
    speed = funnel["rows_per_second"]
    return {
        "to_rows": to_rows,
        "share": funnel["kept"] / rows,
        "share_low": low,
        "share_high": high,
        "kept": round(funnel["kept"] / rows * to_rows),
        "kept_low": round(low * to_rows),
        "kept_high": round(high * to_rows),
        "bytes": round(funnel["bytes"] / rows * to_rows),
        "job_hours": funnel["requested"] / rows * to_rows / speed / 3600 if speed else None,
    }


def sum_of_projections(sources: Sequence[dict]) -> dict | None:
    if not any(source["projection"] for source in sources):
        return None
    parts = []
    for source in sources:
        as_it_is = {name: source["kept"] for name in ("kept", "kept_low", "kept_high")} | {
            "to_rows": source["rows_in"],
            "bytes": source["bytes"],
            "job_hours": source["hours"] and source["hours"]["job"],
        }
        parts.append(source["projection"] or as_it_is)
    total = {name: sum(part[name] for part in parts) for name in ("to_rows", "kept", "kept_low", "kept_high", "bytes")}
    times = [part["job_hours"] for part in parts]
    shares = {f"share{end}": total[f"kept{end}"] / total["to_rows"] for end in ("", "_low", "_high")}
    return total | shares | {"job_hours": None if None in times else sum(times)}

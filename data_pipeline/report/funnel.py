"""The funnel's numbers: rows in, dropped by what, requested, downloaded, failed by what, verified, kept. Every stage adds up or it
is an error."""

from __future__ import annotations

import re
from collections import Counter

from data_pipeline.errors import UserError
from data_pipeline.report.outcomes import SUCCESS
from data_pipeline.shards.manifest import CAPTION_IN_EVALUATION, IN_EVALUATION, NEAR_DUPLICATE

FORMAT = 1
# Messages of img2dataset's own parts, and of ours that differ only in detail, under one name. First match wins.
GROUPS = (
    (r"http (404|410)", "gone (404, 410)"),
    (r"http (401|403|451)", "not allowed (401, 403, 451)"),
    (r"http 429", "too many requests (429)"),
    (r"http 5\d\d", "server error (5xx)"),
    (r"http \d+", "other http answer"),
    (r"[Oo]pen[Cc][Vv]|[Dd]ecod", "image cannot be decoded"),
    (r"image too small", "smaller than --min-image-size"),
)
DUPLICATE = rf"duplicate\b|caption too frequent|{re.escape(NEAR_DUPLICATE)}"


def group_failures(messages: dict[str, int]) -> dict[str, int]:
    """Counts by message -> counts by group, most frequent first; messages without a group stay as they are."""
    groups: Counter[str] = Counter()
    for message, count in messages.items():
        groups[group_of(message)] += count
    return dict(sorted(groups.items(), key=lambda item: (-item[1], item[0])))


def group_of(message: str) -> str:
    return next((name for pattern, name in GROUPS if re.search(pattern, message)), message[:80])


def make_funnel(curated: dict, downloaded: dict, verified: dict) -> dict:
    """The funnel from the three stages' records. UserError when a stage's numbers do not add up to the next one's."""
    damaged = [entry["path"].removeprefix("shards/").removesuffix(".tar") for entry in verified["damaged"]]
    in_damaged = sum(downloaded["shards"].get(name, [0, 0, 0])[2] for name in damaged)
    lost = Counter(curated["dropped"]) + Counter(verified["rejected"])
    funnel = {
        "format": FORMAT,
        "source": curated["source"],
        "rows_in": curated["rows_in"],
        "dropped": curated["dropped"],
        "joined": curated.get("joined", 0),
        "requested": downloaded["requested"],
        "failed": group_failures(downloaded["failed"]),
        "failed_messages": dict(Counter(downloaded["failed"]).most_common(50)),
        "statuses": dict((Counter({SUCCESS: downloaded["downloaded"]}) + Counter(downloaded["failed"])).most_common()),
        "downloaded": downloaded["downloaded"],
        "in_damaged_shards": in_damaged,
        "damaged_shards": verified["damaged"],
        "verified": verified["samples"],
        "rejected": verified["rejected"],
        "kept": verified["kept"],
        "duplicates": {reason: count for reason, count in lost.items() if re.match(DUPLICATE, reason)},
        "decontaminated": {reason: lost[reason] for reason in (IN_EVALUATION, CAPTION_IN_EVALUATION) if lost[reason]},
    }
    check_sums(funnel)
    return funnel


def check_sums(funnel: dict) -> None:
    """Raises `UserError` when a stage's numbers do not add up to the next one's."""
    before = sum(funnel["dropped"].values()) + funnel["joined"]
    in_tars = funnel["in_damaged_shards"] + funnel["verified"]
    sums = (
        ("rows in", funnel["rows_in"], "dropped, joined and requested", before + funnel["requested"]),
        ("requested", funnel["requested"], "failed and downloaded", sum(funnel["failed"].values()) + funnel["downloaded"]),
        ("downloaded", funnel["downloaded"], "in damaged shards and verified", in_tars),
        ("verified", funnel["verified"], "rejected and kept", sum(funnel["rejected"].values()) + funnel["kept"]),
    )
    for name, total, parts, count in sums:
        if total != count:
            raise UserError(
                f"the funnel does not add up: {total} {name}, {count} {parts}; a stage changed after the next one ran; "
                "run download, verify and report again"
            )

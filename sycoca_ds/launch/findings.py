"""What a check found, and how it is shown: a table of hosts and checks, and below it a line for each thing to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

HERE = "here"
"""In place of a host: the machine that the launch starts from."""
COLUMNS = (
    "hostfile",
    "env",
    "ssh",
    "keepalive",
    "pdsh",
    "name",
    "master",
    "reach",
    "code",
    "python",
    "gpus",
    "operators",
    "data",
    "folder",
    "disk",
    "shm",
    "clock",
)
MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "": "-"}
COLOURS = {"ok": "32", "warn": "33", "fail": "1;31", "": "2"}


@dataclass(frozen=True)
class Finding:
    """One check on one host."""

    host: str
    """A name of the hostfile, or `HERE`."""
    check: str
    """One of COLUMNS."""
    state: Literal["ok", "warn", "fail"]
    """warn: it runs, but perhaps not as it was meant; fail: it does not start, or does not end."""
    said: str = ""
    """What is so."""
    mend: str = ""
    """What to do."""


def worst(findings: Sequence[Finding], host: str, check: str) -> str:
    """The state of a cell of the table; empty: not looked at, or it does not apply."""
    states = {finding.state for finding in findings if (finding.host, finding.check) == (host, check)}
    return next((state for state in ("fail", "warn", "ok") if state in states), "")


def table(findings: Sequence[Finding], hosts: Sequence[str], *, width: int, colour: bool) -> str:
    """Hosts down, checks across, in as many parts as the width takes; `-` where nothing was looked at."""
    rows, parts, room = [HERE, *hosts], [[]], 0
    first = max(len(row) for row in ["host", *rows])
    for check in COLUMNS:
        room += len(check) + 2
        if parts[-1] and first + room > width:
            parts.append([])
            room = len(check) + 2
        parts[-1].append(check)
    blocks = []
    for checks in parts:
        lines = ["  ".join(["host".ljust(first), *checks])]
        for row in rows:
            states = [worst(findings, row, check) for check in checks]
            texts = [MARKS[state].ljust(len(check)) for state, check in zip(states, checks, strict=True)]
            if colour:
                texts = [f"\x1b[{COLOURS[state]}m{text}\x1b[0m" for state, text in zip(states, texts, strict=True)]
            lines.append("  ".join([row.ljust(first), *texts]).rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def things_to_do(findings: Sequence[Finding], colour: bool) -> list[str]:
    """A line for each red or yellow finding, red ones first, hosts with the same one together."""
    together: dict[tuple[str, str, str, str], list[str]] = {}
    for finding in findings:
        if finding.state != "ok":
            together.setdefault((finding.state, finding.check, finding.said, finding.mend), []).append(finding.host)
    order = sorted(together, key=lambda key: (key[0] != "fail", COLUMNS.index(key[1])))
    lines = []
    for state, check, said, mend in order:
        hosts = together[state, check, said, mend]
        names = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
        mark = f"\x1b[{COLOURS[state]}m{MARKS[state]}\x1b[0m" if colour else MARKS[state]
        lines.append(f"{mark} {check}, {names}: {said}" + (f" -> {mend}" if mend else ""))
    return lines

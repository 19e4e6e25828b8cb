"""What a check found, and how it is shown: a table of hosts and checks, and below it a line for each thing to do."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
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
MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL", "skip": "-", "": "-"}
COLOURS = {"ok": "32", "warn": "33", "fail": "1;31", "skip": "2", "": "2"}
OF_A_HOST = COLUMNS[2:]
BY_THE_FIRST = ("master", "reach", "folder")
"""Checks that need an answer of the first host, too."""


@dataclass(frozen=True)
class Finding:
    """One check on one host."""

    host: str
    """A name of the hostfile, or `HERE`."""
    check: str
    """One of COLUMNS."""
    state: Literal["ok", "warn", "fail", "skip"]
    """warn: it runs, but perhaps not as it was meant; fail: it does not start, or does not end; skip: another check's failure is
    why nobody looked."""
    said: str = ""
    """What is so."""
    mend: str = ""
    """What to do."""


def worst(findings: Sequence[Finding], host: str, check: str) -> str:
    """The state of a cell of the table; empty: not looked at, or it does not apply."""
    states = {finding.state for finding in findings if (finding.host, finding.check) == (host, check)}
    return next((state for state in ("fail", "warn", "ok") if state in states), "")


def not_checked(findings: Sequence[Finding], hosts: Sequence[str], answered: Container[str]) -> Iterator[Finding]:
    """What nobody could look at since something else is red: one cause, one red line.

    Args:
        hosts: in the order of the hostfile.
        answered: those that said what there is on them.
    """
    red = {(finding.host, finding.check) for finding in findings if finding.state == "fail"}
    seen = {(finding.host, finding.check) for finding in findings}
    for host in hosts:
        cause = next((check for check in OF_A_HOST if (host, check) in red), "")
        missing: dict[str, str] = {}
        if host not in answered:
            missing = dict.fromkeys(OF_A_HOST, "no ssh" if cause == "ssh" else f"{cause or 'ssh'} is red")
        elif hosts[0] not in answered:
            missing = dict.fromkeys(BY_THE_FIRST, f"no answer from {hosts[0]}")
        if (host, "python") in red:
            missing = {"operators": "python is red", **missing}
        for check, why in missing.items():
            if (host, check) not in seen:
                yield Finding(host, check, "skip", f"not checked: {why}")


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


def things_to_do(findings: Sequence[Finding], colour: bool) -> tuple[list[str], int]:
    """(a line for each red or yellow finding, and for what was not checked, red ones first, hosts with the same one together; how
    many of them are red). Where one line is for several hosts, HOST in it stands for the name of each."""
    together: dict[tuple[str, str, str, str], list[Finding]] = {}
    for finding in findings:
        if finding.state in ("fail", "warn"):
            key = (finding.state, finding.check, *(for_any(finding.host, text) for text in (finding.said, finding.mend)))
            together.setdefault(key, []).append(finding)
    lines, order = [], sorted(together, key=lambda key: (key[0] != "fail", COLUMNS.index(key[1])))
    for key in order:
        alike = together[key]
        said, mend = key[2:] if len(alike) > 1 else (alike[0].said, alike[0].mend)
        lines.append(line_of(key[0], key[1], [one.host for one in alike], said + (f" -> {mend}" if mend else ""), colour))
    skipped: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if finding.state == "skip":
            skipped.setdefault((finding.host, finding.said), []).append(finding.check)
    hosts_of: dict[tuple[str, str], list[str]] = {}
    for (host, said), checks in skipped.items():
        hosts_of.setdefault((", ".join(checks) if len(checks) < len(OF_A_HOST) - 1 else "everything else", said), []).append(host)
    lines += [line_of("skip", checks, hosts, said, colour) for (checks, said), hosts in hosts_of.items()]
    return lines, sum(key[0] == "fail" for key in order)


def for_any(host: str, text: str) -> str:
    """With HOST in the place of its name."""
    return re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "HOST", text)


def line_of(state: str, checks: str, hosts: Sequence[str], text: str, colour: bool) -> str:
    names = ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")
    mark = f"\x1b[{COLOURS[state]}m{MARKS[state]}\x1b[0m" if colour else MARKS[state]
    return f"{mark} {checks}, {names}: {text}"

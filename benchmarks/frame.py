"""Turns, rows of the table, and the JSON file that the next run is compared with."""

from __future__ import annotations

import json
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sycoca_ds.eval.provenance import git_sha, hardware, versions

STALLED = 0.1
"""Share of a turn in which some runnable task of the machine waited for a processor: above it other work disturbed the turn."""
FALLEN = 0.9
"""A ratio below this share of the one in the last file is named."""
PRESSURE = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Turn:
    """One measured piece of work."""

    seconds: float
    processor: float
    """Seconds of processor time, of all threads; 0 where nobody looked."""
    stalled: float = 0.0
    """Share of the turn in which some task waited for a processor, by /proc/pressure/cpu; 0 where there is none."""

    @property
    def disturbed(self) -> bool:
        return self.stalled > STALLED


class Clock:
    """Measures what runs between `start` and `stop`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.synchronise = torch.cuda.synchronize if device is not None and device.type == "cuda" else lambda: None

    def start(self) -> None:
        self.synchronise()
        self._since = time.perf_counter(), time.process_time(), waited()

    def stop(self) -> Turn:
        self.synchronise()
        began, processor, stalled = self._since
        seconds = time.perf_counter() - began
        return Turn(seconds, time.process_time() - processor, min(1.0, (waited() - stalled) / max(seconds, 1e-9)))


def waited() -> float:
    """Seconds since the start of the machine in which some task waited for a processor."""
    try:
        return int(re.search(r"some .*total=(\d+)", PRESSURE.read_text())[1]) / 1e6
    except (OSError, TypeError):
        return 0.0


def in_turns(ways: Mapping[str, Callable[[], Turn]], turns: int) -> dict[str, list[Turn]]:
    """Every way once a turn, in order; what each says of itself."""
    found: dict[str, list[Turn]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            found[name].append(way())
    return found


def timed(work: Callable[[], object], device: torch.device | None = None) -> Callable[[], Turn]:
    def turn() -> Turn:
        clock = Clock(device)
        clock.start()
        work()
        return clock.stop()

    return turn


@dataclass
class Row:
    """One line of the table: the same work by us and by others, in turns."""

    part: str
    what: str
    unit: str
    """Of the rates: `work` units a second."""
    work: float
    """Units in one turn."""
    ours: list[Turn]
    peers: dict[str, list[Turn]] = field(default_factory=dict)
    limit: float | None = None
    """The rate that the machine allows, or by what was measured of it: """
    limit_turns: list[Turn] = field(default_factory=list)
    """turns of what cannot be left out,"""
    limit_work: float = 0.0
    """each of which stands for so many units."""
    limited_by: str = ""
    expected: float | None = None
    """The ratio to the first peer that a formula gives: then being above it is what counts."""
    more: dict[str, Any] = field(default_factory=dict)

    def of_processor(self) -> bool:
        """Whether so few turns were left alone that processor time has to stand for time."""
        turns = [turn for turns in (self.ours, *self.peers.values()) for turn in turns]
        quiet = sum(not turn.disturbed for turn in turns)
        return quiet < max(1, len(turns) // 2) and all(turn.processor > 0 for turn in turns)

    def seconds(self, turns: list[Turn]) -> list[float]:
        if self.of_processor():
            return [turn.processor for turn in turns]
        return [turn.seconds for turn in turns if not turn.disturbed] or [turn.seconds for turn in turns]

    def ratios(self, peer: str) -> list[float]:
        """How many times as fast as the peer, a turn each: both sides of a turn saw the same machine."""
        if self.of_processor():
            pairs = [(a.processor, b.processor) for a, b in zip(self.ours, self.peers[peer], strict=True)]
        else:
            both = list(zip(self.ours, self.peers[peer], strict=True))
            quiet = [(a, b) for a, b in both if not a.disturbed and not b.disturbed] or both
            pairs = [(a.seconds, b.seconds) for a, b in quiet]
        return [b / a for a, b in pairs]

    def facts(self) -> dict[str, Any]:
        taken = self.seconds(self.ours)
        rate = self.work / statistics.median(taken)
        limit = self.limit_work / statistics.median(self.seconds(self.limit_turns)) if self.limit_turns else self.limit
        facts = {**asdict(self), "limit": limit, "rate": rate, "processor_time": self.of_processor()}
        facts["spread"] = [self.work / max(taken), self.work / min(taken)]
        facts["disturbed"] = sum(turn.disturbed for turn in self.ours), len(self.ours)
        facts["of_limit"] = rate / limit if limit else None
        facts["peer_rates"] = {name: self.work / statistics.median(self.seconds(turns)) for name, turns in self.peers.items()}
        facts["ratios"] = {
            name: {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
            for name in self.peers
            for ratios in [self.ratios(name)]
        }
        return facts


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(facts: Mapping[str, Any]) -> list[str]:
    """A row's lines in the table, one a peer."""
    rate = f"{number(facts['rate'])} {facts['unit']} ({number(facts['spread'][0])} to {number(facts['spread'][1])})"
    limit = "" if facts["of_limit"] is None else f"{100 * facts['of_limit']:.0f} % of {facts['limited_by']}"
    if facts["expected"] is not None:
        limit = f"{facts['expected']:.3f} by {facts['limited_by']}"
    turns = f"{facts['disturbed'][0]} of {facts['disturbed'][1]}{', by processor time' if facts['processor_time'] else ''}"
    found = []
    for peer, ratio in facts["ratios"].items() or [("", None)]:
        said = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        theirs = "" if ratio is None else f"{peer}: {number(facts['peer_rates'][peer])}"
        found.append(f"| {facts['part']} | {facts['what']} | {rate} | {theirs} | {said} | {limit} | {turns} |")
    return found


HEAD = [
    "| part | work | ours | peer | ours is times as fast | limit | turns disturbed |",
    "|---|---|---|---|---|---|---|",
]


def machine(device: torch.device) -> dict[str, Any]:
    facts = hardware(device)
    kind = re.sub(r"[^a-z0-9]+", "_", f"{facts['gpu'] or facts['cpu']}_{facts['cores']}".lower()).strip("_")
    capability = torch.backends.cpu.get_cpu_capability()
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else None
    threads = torch.get_num_threads()
    return {"kind": kind, **facts, "threads": threads, "capability": capability, "load": load, **versions(), "commit": git_sha()}


def last_of(folder: Path, kind: str, before: str) -> dict[str, Any] | None:
    """The newest kept file of this kind of machine."""
    names = sorted(path for path in folder.glob("*.json") if path.name < before)
    for path in reversed(names):
        record = json.loads(path.read_text())
        if record.get("machine", {}).get("kind") == kind:
            return {**record, "file": str(path)}
    return None


def fallen(rows: list[dict[str, Any]], last: Mapping[str, Any] | None) -> list[str]:
    """Ratios to a peer, or shares of a limit, that are more than a tenth below the last file's."""
    if last is None:
        return []
    before = {(row["part"], row["what"]): row for row in last["rows"]}
    found = []
    for row in rows:
        old = before.get((row["part"], row["what"]))
        if old is None:
            continue
        pairs = [(f"beside {p}", r["median"], old["ratios"][p]["median"]) for p, r in row["ratios"].items() if p in old["ratios"]]
        if not pairs and row["of_limit"] and old["of_limit"]:
            pairs = [(f"of {row['limited_by']}", row["of_limit"], old["of_limit"])]
        for what, now, then in pairs:
            if now < FALLEN * then and not math.isnan(then):
                found.append(f"{row['part']}, {row['what']}: {now:.2f} {what}, {then:.2f} in {last['file']}")
    return found

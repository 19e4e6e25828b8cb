"""Turns, rows of the table, and the JSON file that the next run is compared with."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sycoca_ds.eval.provenance import git_sha, hardware, versions

STALLED = 0.1
"""Share of a turn in which some runnable task of the machine waited for a processor: above it other work disturbed the turn."""
FALLEN = 0.9
"""A number below this share of what it was is named."""
PRESSURE = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Turn:
    """One measured piece of work."""

    seconds: float
    processor: float
    """Seconds of processor time, of all threads; 0 where nobody looked, and where a GPU does the work."""
    stalled: float | None = None
    """Share of the turn in which some task waited for a processor, by /proc/pressure/cpu; None where nobody looked."""

    @property
    def disturbed(self) -> bool:
        return self.stalled is not None and self.stalled > STALLED


Way = Callable[[], AbstractContextManager[Callable[[], Turn]]]
"""Holds what one way of doing the work needs, and gives a turn of it."""


class Clock:
    """Measures what runs between `start` and `stop`."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.on_gpu = device is not None and device.type == "cuda"
        self.synchronise = torch.cuda.synchronize if self.on_gpu else lambda: None

    def start(self) -> None:
        self.synchronise()
        self._since = time.perf_counter(), time.process_time(), waited()

    def stop(self) -> Turn:
        self.synchronise()
        began, processor, stalled = self._since
        seconds = time.perf_counter() - began
        used = 0.0 if self.on_gpu else time.process_time() - processor
        return Turn(seconds, used, stalled_share(stalled, seconds))


def waited() -> float | None:
    """Seconds since the start of the machine in which some task waited for a processor; None where the kernel does not say."""
    try:
        return int(re.search(r"some .*total=(\d+)", PRESSURE.read_text())[1]) / 1e6
    except (OSError, TypeError):
        return None


def stalled_share(before: float | None, seconds: float) -> float | None:
    """Of the `seconds` since `waited` was `before`."""
    return None if before is None else min(1.0, (waited() - before) / max(seconds, 1e-9))


def in_turns(ways: Mapping[str, Callable[[], Turn]], turns: int) -> dict[str, list[Turn]]:
    """Every way once a turn, in order; what each says of itself."""
    found: dict[str, list[Turn]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            found[name].append(way())
    return found


def measured(ways: Mapping[str, Way], turns: int, device: torch.device) -> dict[str, list[Turn]]:
    """Turns of every way after one that does not count: kernels are chosen, a compiler does its work. On a GPU a way is closed
    before the next one is opened; a peer's that does not fit into its memory is left out, with a word.

    Raises:
        torch.OutOfMemoryError: ours does not fit.
    """
    if device.type != "cuda":
        with ExitStack() as stack:
            opened = {name: stack.enter_context(way()) for name, way in ways.items()}
            for turn in opened.values():
                turn()
            return in_turns(opened, turns)
    found = {}
    for name, way in ways.items():
        try:
            with way() as turn:
                turn()
                found[name] = [turn() for _ in range(turns)]
                del turn  # and with it what the way holds: before the way ends, which frees its memory
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "OutOfMemoryError" not in str(error):
                raise
            print(f"{name}: does not fit into this GPU's memory")
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
    detail: str = ""
    """Of the work, that another run may have otherwise and is still compared."""
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
        facts["quiet"] = {name: quiet_of(turns) for name, turns in {"ours": self.ours, **self.peers}.items()}
        facts["of_limit"] = rate / limit if limit else None
        facts["peer_rates"] = {name: self.work / statistics.median(self.seconds(turns)) for name, turns in self.peers.items()}
        facts["ratios"] = {
            name: {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
            for name in self.peers
            for ratios in [self.ratios(name)]
        }
        return facts


def quiet_of(turns: list[Turn]) -> tuple[int, int] | None:
    """(turns that were left alone, turns); None where nobody looked."""
    looked = [turn for turn in turns if turn.stalled is not None]
    return (sum(not turn.disturbed for turn in looked), len(looked)) if looked else None


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lines(facts: Mapping[str, Any]) -> list[str]:
    """A row's lines in the table, one a peer."""
    rate = f"{number(facts['rate'])} {facts['unit']} ({number(facts['spread'][0])} to {number(facts['spread'][1])})"
    limit = "" if facts["of_limit"] is None else f"{100 * facts['of_limit']:.0f} % of {facts['limited_by']}"
    if facts["expected"] is not None:
        limit = f"{facts['expected']:.3f} by {facts['limited_by']}"
    what = ", ".join(filter(None, (facts["what"], facts["detail"])))
    found = []
    for peer, ratio in facts["ratios"].items() or [("", None)]:
        said = "" if ratio is None else f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        theirs = "" if ratio is None else f"{peer}: {number(facts['peer_rates'][peer])}"
        found.append(f"| {facts['part']} | {what} | {rate} | {theirs} | {said} | {limit} | {quiet_said(facts, peer)} |")
    return found


def quiet_said(facts: Mapping[str, Any], peer: str) -> str:
    """`3 of 3, peer 2 of 3`, and what stands in where none was left alone."""
    ours, theirs = facts["quiet"]["ours"], facts["quiet"].get(peer)
    said = "unknown" if ours is None else f"{ours[0]} of {ours[1]}"
    if theirs is not None and ours is not None:
        said += f", peer {theirs[0]} of {theirs[1]}"
    if facts["processor_time"]:
        return f"{said}: by processor time"
    return f"{said}: all counted" if any(pair is not None and pair[0] == 0 for pair in (ours, theirs)) else said


HEAD = [
    "| part | work | ours | peer | ours is times as fast | limit | quiet turns |",
    "|---|---|---|---|---|---|---|",
]


def processor_name(processor: str) -> str:
    """A processor's name with family and model, where the kernel tells them: clouds call many of one name."""
    try:
        told = dict(re.findall(r"^(cpu family|model)\s*: (\d+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        return processor
    return " ".join([processor, *(told[name] for name in ("cpu family", "model") if name in told)])


def machine(device: torch.device) -> dict[str, Any]:
    facts = hardware(device)
    kind = re.sub(r"[^a-z0-9]+", "_", f"{facts['gpu'] or processor_name(facts['cpu'])}_{facts['cores']}".lower()).strip("_")
    capability = torch.backends.cpu.get_cpu_capability()
    load = Path("/proc/loadavg").read_text().split()[0] if Path("/proc/loadavg").exists() else None
    threads = torch.get_num_threads()
    return {"kind": kind, **facts, "threads": threads, "capability": capability, "load": load, **versions(), "commit": git_sha()}


def earlier(kept: Path, notes: Path, facts: Mapping[str, Any], before: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What each (part, work) came to before on this kind of machine with as many threads, its file under `file`: in the newest note
    that has it, else in the newest kept file; of quick runs nothing."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in (kept, notes):
        for path in sorted(path for path in folder.glob("*.json") if folder == notes or path.name < before):
            record = json.loads(path.read_text())
            same = all(record.get("machine", {}).get(name) == facts[name] for name in ("kind", "threads"))
            if same and not record.get("quick"):
                found |= {(row["part"], row["what"]): {**row, "file": str(path)} for row in record["rows"]}
    return found


def fallen(rows: list[dict[str, Any]], before: Mapping[tuple[str, str], Mapping[str, Any]]) -> list[str]:
    """Ratios to a peer, where there is none shares of a limit, else rates, that are more than a tenth below what they were."""
    found = []
    for row in rows:
        old = before.get((row["part"], row["what"]))
        if old is None:
            continue
        pairs = [(f"beside {p}", r["median"], old["ratios"][p]["median"]) for p, r in row["ratios"].items() if p in old["ratios"]]
        if not pairs and row["of_limit"] and old["of_limit"]:
            pairs = [(f"of {row['limited_by']}", row["of_limit"], old["of_limit"])]
        for what, now, then in pairs or [(row["unit"], row["rate"], old["rate"])]:
            if now < FALLEN * then:
                found.append(f"{row['part']}, {row['what']}: {number(now)} {what}, {number(then)} in {old['file']}")
    return found

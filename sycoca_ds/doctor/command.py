"""`sycoca doctor`: asks this machine and says what is red, and what to do."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from data_pipeline.command_line import parse_command
from sycoca_ds.doctor.lines import ASK_TORCH, PURPOSES, Line, all_lines
from sycoca_ds.launch.findings import COLOURS, MARKS

PROGRAM = "sycoca doctor"


@dataclass(frozen=True)
class DoctorOptions:
    """Looks whether this machine has what data, training, evaluation and the page of explore need. Status 1 if a line is red. For
    several hosts: launch check."""

    purposes: Annotated[tuple[Literal["data", "train", "eval", "explore"], ...], tyro.conf.arg(name="for")] = PURPOSES
    """What is to be done here; only what that needs is looked at."""
    out: str = "."
    """Folder for runs or data: the free space is that of its disk. It need not exist yet."""
    disk_gib: float = 10.0
    """Room wanted there, GiB. 10: some saves of a small model; `plan` says what yours take."""
    ds_config: str = "ds_configs/zero3.json"
    """DeepSpeed policy, as --run.ds-config will name it: it decides which operators are needed."""
    limit: float = 120.0
    """Seconds in which torch and DeepSpeed must have been imported."""
    json: bool = False
    """Print all that was found as JSON."""


def text(lines: Sequence[Line], colour: bool) -> str:
    """A line each, what to do below it, and the sum."""
    first = max(len(line.name) for line in lines)
    shown = []
    for line in lines:
        mark = MARKS[line.state].ljust(4)
        mark = f"\x1b[{COLOURS[line.state]}m{mark}\x1b[0m" if colour else mark
        shown.append(f"{mark}  {line.name.ljust(first)}  {line.said}")
        if line.mend:
            shown.append(f"      {' ' * first}  -> {line.mend}")
    red, yellow = (sum(line.state == state for line in lines) for state in ("fail", "warn"))
    shown.append(f"\n{red} red, {yellow} to know of" if red or yellow else "\nnothing red")
    return "\n".join(shown)


def main() -> int:
    options = parse_command(DoctorOptions, sys.argv[1:], PROGRAM)
    from sycoca_ds.doctor.facts import gather

    with_torch = bool(ASK_TORCH & set(options.purposes))
    if with_torch and not options.json:
        print("importing torch and DeepSpeed: seconds to a minute", file=sys.stderr, flush=True)
    facts = gather(options.out, options.ds_config, options.limit, with_torch)
    lines = all_lines(facts, options.purposes, options.disk_gib)
    red = any(line.state == "fail" for line in lines)
    if options.json:
        print(json.dumps({"ok": not red, "lines": [dataclasses.asdict(line) for line in lines]}, indent=2))
    else:
        print(text(lines, sys.stdout.isatty()))
    return int(red)

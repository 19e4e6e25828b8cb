"""Progress over the commands of a demo or of ablations: which one runs, what it is doing, how long is left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from data_pipeline.progress import format_seconds

LOG_SECONDS = 15.0


@dataclass(frozen=True)
class Stage:
    """One command of the main job. `seconds` is its time on 2 CPU cores, for the estimate of what is left."""

    name: str
    command: list[str]
    seconds: float


class Display:
    """The demo's progress: stage, what it is doing, time left. A bar on a terminal, else a line every 15 seconds."""

    def __init__(self, stages: list[Stage]):
        self.stages, self.number, self.share = stages, 0, 0.0
        self.began = self.stage_began = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (
                TextColumn("[bold]{task.fields[stage]}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[left]} left"),
                TextColumn("[dim]{task.fields[doing]}"),
            )
            self.bar = Progress(*columns, console=Console(stderr=True))
            self.task = self.bar.add_task("demo", total=1.0, stage="", left="", doing="")
            self.bar.start()

    def begin(self, number: int) -> None:
        self.number, self.share, self.stage_began = number, 0.0, time.monotonic()
        self.show({}, force=True)

    def show(self, report: dict, force: bool = False) -> None:
        """Shows a stage's progress file (`what`, `done`, `total`, `unit`, `note`)."""
        if report.get("total"):
            self.share = min(1.0, report["done"] / report["total"])
        now, stage = time.monotonic(), self.stages[self.number]
        spent = now - self.stage_began
        # the plan says how stages compare; what has passed so far says how fast this machine is
        planned_done = sum(s.seconds for s in self.stages[: self.number]) + self.share * stage.seconds
        planned = sum(s.seconds for s in self.stages)
        rest = max(0.0, stage.seconds - spent) if self.share < 0.05 else spent * (1 - self.share) / self.share
        pace = min(3.0, max(0.8, (now - self.began) / planned_done)) if planned_done > 20 else 1.0
        left = format_seconds(rest + pace * sum(s.seconds for s in self.stages[self.number + 1 :]))
        doing = " ".join(
            str(part)
            for part in (
                report.get("what", ""),
                f"{report['done']}/{report['total']} {report['unit']}" if report.get("total") else "",
                report.get("note", ""),
            )
            if part
        )
        title = f"{self.number + 1}/{len(self.stages)} {stage.name}"
        if self.bar is not None:
            self.bar.update(self.task, completed=planned_done / planned, stage=title, left=left, doing=doing[:90])
        elif force or now - self.shown >= LOG_SECONDS:
            self.shown = now
            print(f"[{format_seconds(now - self.began)}] {title}: {doing or 'starts'} ({left} left)", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()

"""Progress over the commands of a demo or of ablations: which one runs, what it is doing, how long is left."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial

from data_pipeline.progress import format_seconds, terminal_bar

LOG_SECONDS = 15.0
LOADS_TORCH = "loads torch (seconds to a minute)"
TRAINING_PARTS = (("read regions", 0.02), ("train", 0.98))
"""What sycoca_ds/train.py reports one after another; without regions not the first."""
EVALUATION_PARTS = (
    ("read regions", 0.03),
    ("look at images", 0.06),
    ("read captions", 0.03),
    ("read class names", 0.05),
    ("write captions", 0.3),
    ("score captions", 0.1),
    ("rebuild hidden patches", 0.15),
    ("score patches", 0.1),
    ("rebuild by kind of patch", 0.18),
)
"""What sycoca_ds/evaluate.py reports one after another; without regions neither the first nor the last."""


@dataclass(frozen=True)
class Stage:
    """One command of the main job."""

    name: str
    command: list[str]
    seconds: float
    """Its time on 2 CPU cores, for the estimate of what is left."""
    parts: tuple[tuple[str, float], ...] = ()
    """Its progress reports one after another: how each begins (`what`), and its share of the stage. Empty: there is one."""
    start: str = "starts"
    """What it does before its first report."""


class Display:
    """The demo's progress: stage, what it is doing, time left. A bar on a terminal, else a line every 15 seconds."""

    def __init__(self, stages: list[Stage]):
        self.stages, self.number, self.share, self.percent = stages, 0, 0.0, 0.0
        self.began = self.stage_began = self.shown = time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            from rich.progress import TextColumn

            self.bar = terminal_bar(
                [partial(TextColumn, "[bold]{task.fields[stage]}")],
                [partial(TextColumn, "{task.percentage:>3.0f} %"), partial(TextColumn, "{task.fields[left]} left")],
                "{task.fields[doing]}",
            )
            self.task = self.bar.add_task("demo", total=100.0, stage="", left="", doing="")
            self.bar.start()

    def begin(self, number: int) -> None:
        self.number, self.share, self.stage_began = number, 0.0, time.monotonic()
        self.show({}, force=True)

    def show(self, report: dict, force: bool = False) -> None:
        """Shows a stage's progress file (`what`, `done`, `total`, `unit`, `note`)."""
        now, stage = time.monotonic(), self.stages[self.number]
        self.share = max(self.share, share_done(stage, report))
        spent = now - self.stage_began
        # the plan says how stages compare; what has passed so far says how fast this machine is
        planned_done = sum(s.seconds for s in self.stages[: self.number]) + self.share * stage.seconds
        planned = sum(s.seconds for s in self.stages)
        pace = min(3.0, max(0.8, (now - self.began) / planned_done)) if planned_done > 20 else 1.0
        rest = max(0.0, pace * stage.seconds - spent) if self.share < 0.05 else spent * (1 - self.share) / self.share
        left = format_seconds(rest + pace * sum(s.seconds for s in self.stages[self.number + 1 :]))
        doing = " ".join(
            str(part)
            for part in (
                report.get("what", stage.start),
                f"{report['done']}/{report['total']} {report['unit']}" if report.get("total") else "",
                report.get("note", ""),
            )
            if part
        )
        title = f"{self.number + 1}/{len(self.stages)} {stage.name}"
        # estimates are corrected as they go, and a plan may be; what has been reached stays reached
        self.percent = max(self.percent, 100 * planned_done / planned) if planned else self.percent
        if self.bar is not None:
            self.bar.update(self.task, completed=self.percent, stage=title, left=left, doing=doing)
        elif force or now - self.shown >= LOG_SECONDS:
            self.shown = now
            print(f"[{format_seconds(now - self.began)}] {title}: {doing} ({left} left)", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def share_done(stage: Stage, report: dict) -> float:
    """How much of a stage a report says is done, 0 to 1; a part that the stage does not name says nothing."""
    if not report.get("total"):
        return 0.0
    done, before = min(1.0, report["done"] / report["total"]), 0.0
    for what, share in stage.parts:
        if report["what"].startswith(what):
            return before + share * done
        before += share
    return 0.0 if stage.parts else done

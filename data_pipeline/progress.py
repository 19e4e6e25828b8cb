"""One progress report for every long stage: a bar on a terminal, a line every few seconds in a log, and a small JSON
file for a parent process that draws its own bar (the demo)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

PROGRESS_FILE_VARIABLE = "SYCOCA_PROGRESS_FILE"
LOG_SECONDS = 10.0
FILE_SECONDS = 0.2


def format_seconds(seconds: float) -> str:
    """`75` -> `1:15`, `4000` -> `1:06:40`."""
    minutes, secs = divmod(int(max(0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


def terminal_bar(before: list[Callable], after: list[Callable], last: str) -> Bar:
    """A rich bar between columns, on one line of stderr at any width from 60 on: the text `last` takes what the others leave, and
    is cut there, the first ones beyond a third. As rich lays them out by itself, a long text wraps them all and leaves no bar.

    Args:
        before, after: makers of the other columns, called with `table_column`.
        last: a format as rich's TextColumn takes it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    console = Console(stderr=True)
    left = [make(table_column=Column(no_wrap=True, overflow="ellipsis", max_width=console.width // 3)) for make in before]
    right = [make(table_column=Column(no_wrap=True)) for make in after]
    text = TextColumn(last, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"), markup=False, style="dim")
    return Bar(*left, BarColumn(min(40, console.width // 5)), *right, text, console=console, expand=True)


class Progress:
    """Progress of one stage. Use as a context manager; `advance`, `set` and `note` may be called as often as liked.

    Where it goes: the file named by the environment variable SYCOCA_PROGRESS_FILE if that is set (JSON with `what`,
    `done`, `total`, `unit`, `note`, replaced at most five times a second), else a rich bar if stderr is a terminal, else a
    line on stderr every ten seconds.
    """

    def __init__(self, what: str, total: int | None = None, unit: str = "rows", enabled: bool = True):
        self.what, self.total, self.unit, self.enabled = what, total, unit, enabled
        self.done, self._note = 0, ""
        self._start = self._shown = time.monotonic()
        name = os.environ.get(PROGRESS_FILE_VARIABLE)
        self._file = Path(name) if name else None
        self._bar = None

    def __enter__(self) -> Progress:
        self._start = self._shown = time.monotonic()
        if self.enabled and self._file is None and sys.stderr.isatty():
            from rich.progress import MofNCompleteColumn, TextColumn, TimeRemainingColumn

            self._bar = terminal_bar(
                [partial(TextColumn, "{task.description}")],
                [MofNCompleteColumn, partial(TextColumn, self.unit), TimeRemainingColumn],
                "{task.fields[note]}",
            )
            self._bar.start()
            self._task = self._bar.add_task(self.what, total=self.total, note="")
        self._show(force=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show(force=True)
        if self._bar is not None:
            self._bar.stop()
        elif self.enabled and self._file is None and kind is None:
            took = format_seconds(time.monotonic() - self._start)
            unit = self.unit.removesuffix("s") if self.done == 1 else self.unit
            print(f"{self.what}: {self.done} {unit} in {took} {self._note}".rstrip(), file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        self.set(self.done + count)

    def set(self, done: int) -> None:
        self.done = done
        self._show()

    def note(self, text: str) -> None:
        """A few words on what is being done right now (`loss 2.31, 140 samples/s`)."""
        self._note = text
        self._show()

    def _show(self, force: bool = False) -> None:
        if not self.enabled:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, note=self._note)
        elif self._file is not None:
            if force or now - self._shown >= FILE_SECONDS:
                self._shown = now
                record = {"what": self.what, "done": self.done, "total": self.total, "unit": self.unit, "note": self._note}
                temporary = self._file.with_name(f"{self._file.name}.{os.getpid()}")
                temporary.write_text(json.dumps(record))
                os.replace(temporary, self._file)
        elif now - self._shown >= LOG_SECONDS:
            self._shown = now
            left = ""
            if self.total and self.done:
                left = f", {format_seconds((now - self._start) * (self.total - self.done) / self.done)} left"
            of = f"/{self.total}" if self.total else ""
            print(f"{self.what}: {self.done}{of} {self.unit}{left} {self._note}".rstrip(), file=sys.stderr, flush=True)

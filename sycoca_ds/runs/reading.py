"""One run folder as facts: what its files say, without opening a checkpoint. Files that are damaged count as not there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sycoca_ds.engine.checkpoint.seal import sealed, step_of
from sycoca_ds.engine.ranks.process_table import process_began, whoami
from sycoca_ds.engine.safety.run_lock import DEAD_SECONDS, FILE, read_owner
from sycoca_ds.engine.safety.status import read_status
from sycoca_ds.runs import LOSSES

TAIL_BYTES = 1 << 20
"""Of metrics.jsonl that is read: the last records stand there."""
DEEPEST = 3
"""Folders below DIR in which runs are looked for."""
RUNNING, GONE, SILENT = "running", "gone", "silent"
"""A run whose status says that it trains: it does; its process is gone; on another machine, without a sign of life."""


@dataclass(frozen=True)
class Evaluation:
    """One results.json in a run folder."""

    path: str
    """Relative to the run folder."""
    step: int | None
    data: str
    """Folder or set that was evaluated on."""
    metrics: dict[str, float]
    """TASK.NUMBER: what was measured; what is null is left out."""
    intervals: dict[str, tuple[float, float]]
    """Of these, 95 % where they have one."""
    time: float
    """Of the file's change, seconds since 1970."""
    digest: str = ""
    """Names the weights."""
    ema_decay: float | None = None
    images: int | None = None


@dataclass(frozen=True)
class Run:
    """What is known of a run."""

    path: Path
    status: str
    """completed, preempted, failed, running, gone, silent, or unknown."""
    step: int | None
    steps: int | None
    checkpoint: int | None
    """Step of the newest sealed one."""
    family: str
    preset: str
    losses: dict[str, float]
    """Of the last step that was written down."""
    validation: dict[str, float]
    """The last one's numbers."""
    best: dict[str, Any] | None
    """best.json: step, metric, value."""
    evaluations: list[Evaluation]
    """Newest first."""
    config: dict[str, Any] = field(repr=False)
    time: float = 0.0
    """Of the last sign of life, seconds since 1970."""

    def metrics(self) -> dict[str, float]:
        """TASK.NUMBER of all evaluations, of each the newest."""
        found: dict[str, float] = {}
        for evaluation in self.evaluations:
            found |= {name: value for name, value in evaluation.metrics.items() if name not in found}
        return found

    def record(self) -> dict[str, Any]:
        """As JSON has it; without the configuration, which stands in the run folder."""
        values = asdict(self)
        del values["config"]
        return values | {"path": str(self.path)}


def is_run(folder: Path) -> bool:
    """Whether a training has begun there."""
    files = (folder / "run_status.json", folder / "metrics.jsonl")
    return any(map(os.path.isfile, files)) or os.path.isdir(folder / "checkpoints")  # which take a folder that is closed for none


def find_runs(folder: Path) -> list[Path]:
    """Run folders: the folder itself, or those below it, in order of their names; what lies in a run is no run."""
    found = []

    def walk(at: Path, depth: int) -> None:
        if is_run(at):
            found.append(at)
        elif depth < DEEPEST:
            try:
                inside = sorted(entry.path for entry in os.scandir(at) if entry.is_dir(follow_symlinks=True))
            except OSError:
                return
            for path in inside:
                if not os.path.basename(path).startswith("."):
                    walk(Path(path), depth + 1)

    walk(folder, 0)
    return found


def read_run(folder: Path) -> Run:
    told, config = read_status(folder), _json(folder / "config.json")
    record, validation = _last_records(folder / "metrics.jsonl")
    newest = next(iter(sealed(folder / "checkpoints")), None)
    steps = told.get("steps") or _of(config, "optim", "steps")
    return Run(
        path=folder,
        status=_status(folder, told),
        step=told.get("step") if isinstance(told.get("step"), int) else record.get("step"),
        steps=steps if isinstance(steps, int) else None,
        checkpoint=None if newest is None else step_of(newest),
        family=str(_of(config, "model", "family") or ""),
        preset=str(config.get("preset") or ""),
        losses={name: record[name] for name in LOSSES if _is_number(record.get(name))},
        validation=validation,
        best=_json(folder / "best.json") or None,
        evaluations=sorted(evaluations(folder), key=lambda one: -one.time),
        config=config,
        time=_last_sign(folder, told),
    )


def _status(folder: Path, told: dict[str, Any]) -> str:
    status = told.get("status")
    if status != "running":
        return str(status or "unknown")
    path = folder / FILE
    owner = read_owner(path)
    if owner is None:
        return GONE
    here = whoami()
    if here["boot"] and all(owner.get(name) == here[name] for name in ("boot", "process_space")):
        return RUNNING if process_began(owner["pid"]) == owner.get("began") is not None else GONE
    try:
        return RUNNING if time.time() - path.stat().st_mtime < DEAD_SECONDS else SILENT
    except OSError:
        return GONE


def _last_sign(folder: Path, told: dict[str, Any]) -> float:
    signs = [told["time"]] if _is_number(told.get("time")) else []
    for name in ("metrics.jsonl", "run_status.json", "checkpoints"):
        try:
            signs.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(signs, default=0.0)


def _last_records(path: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """(the last record of a training step, the numbers of the last validation by their names without `validation/`)."""
    record: dict[str, Any] = {}
    validation: dict[str, float] = {}
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return record, validation
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:  # the first one is cut, and the last one may be half written
            continue
        if not isinstance(found, dict):
            continue
        if not record and "loss" in found:
            record = found
        if not validation:
            validation = {
                name.removeprefix("validation/"): value
                for name, value in found.items()
                if name.startswith("validation/") and _is_number(value)
            }
        if record and validation:
            break
    return record, validation


def evaluations(folder: Path) -> Iterator[Evaluation]:
    """Those that lie in a run folder, up to two folders down."""
    for pattern in ("*/results.json", "*/*/results.json"):
        for path in folder.glob(pattern):
            values = _json(path)
            tasks = values.get("tasks")
            if not isinstance(tasks, dict):
                continue
            metrics, intervals = {}, {}
            for task, found in tasks.items():
                for name, value in (_of(found, "metrics") or {}).items():
                    if _is_number(value):
                        metrics[f"{task}.{name}"] = value
                for name, pair in (_of(found, "intervals") or {}).items():
                    if isinstance(pair, list) and len(pair) == 2 and f"{task}.{name}" in metrics:
                        intervals[f"{task}.{name}"] = tuple(pair)
            step, data = _of(values, "checkpoint", "step"), _of(values, "data", "set") or _of(values, "data", "folder")
            of, images = _of(values, "checkpoint") or {}, _of(values, "data", "images")
            more = {"digest": str(of.get("digest") or ""), "ema_decay": of.get("ema_decay"), "images": images}
            name = str(path.relative_to(folder))
            try:
                when = path.stat().st_mtime
            except OSError:  # gone since
                continue
            yield Evaluation(name, step, str(data or ""), metrics, intervals, when, **more)


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _of(values: Any, *names: str) -> Any:
    for name in names:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

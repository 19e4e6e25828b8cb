"""Which checkpoints stay: the newest for restarts, some for good, the best, within a budget of disk space."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sycoca_ds.engine.checkpoint.seal import STATE_FILE, sealed, step_of


@dataclass(frozen=True)
class Retention:
    keep: int = 3
    """The newest, for restarts."""
    keep_every: int | None = None
    """Those of steps that this number divides stay for good."""
    best: int | None = None
    """A step that stays as long as none is better."""
    budget: int | None = None
    """Most bytes of all checkpoints together: less than `keep` stay where they would take more, never less than one."""


def stays_for_good(step: int, retention: Retention) -> bool:
    return step == retention.best or (retention.keep_every is not None and step % retention.keep_every == 0)


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def dispensable(checkpoints: Path, retention: Retention, incoming: int = 0) -> list[Path]:
    """The sealed checkpoints to delete, oldest first; never the newest.

    Args:
        incoming: bytes that are to be written beside them.
    """
    newest, *older = sealed(checkpoints) or [None]
    restarts = [folder for folder in older if not stays_for_good(step_of(folder), retention)]
    spare = max(0, retention.keep - 1)
    extra, kept = restarts[spare:], restarts[:spare]
    if newest is not None and retention.budget is not None:
        used = incoming + sum(size(folder) for folder in sealed(checkpoints) if folder not in extra)
        while kept and used > retention.budget:
            extra = [kept.pop(), *extra]
            used -= size(extra[0])
    return sorted(extra, key=step_of)


def delete(folder: Path) -> None:
    """Seal first: a deletion that is interrupted leaves no checkpoint with holes."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def retire(checkpoints: Path, retention: Retention, incoming: int = 0) -> list[str]:
    """Deletes what need not stay; the names."""
    old = dispensable(checkpoints, retention, incoming)
    for folder in old:
        delete(folder)
    return [folder.name for folder in old]

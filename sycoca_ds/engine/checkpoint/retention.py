"""Which checkpoints stay: the newest for restarts, some for good, the best, within a budget of disk space."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
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
    """Bytes of a folder's files; of one that goes meanwhile, none."""
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                found += os.path.getsize(os.path.join(place, name))
    return found


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
    """Deletes what need not stay; the names. What cannot be deleted is named and stays: it costs room, and no save."""
    gone = []
    for folder in dispensable(checkpoints, retention, incoming):
        try:
            delete(folder)
            gone.append(folder.name)
        except OSError as error:
            print(f"an old checkpoint cannot be deleted ({error}): it stays", file=sys.stderr, flush=True)
    return gone

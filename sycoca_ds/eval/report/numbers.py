"""Numbers for other programs: a CSV with a row a number, TensorBoard's scalars."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text, write_text

COLUMNS = ("set", "step", "task", "metric", "value", "low", "high", "chance", "reason")
BOUNDS = ("_low", "_high")


def rows_of(results: dict[str, Any], chosen: str = "") -> Iterator[dict[str, Any]]:
    """`COLUMNS` of every number of results.json that is no bound of another one; None for what is not known."""
    for task, record in results["tasks"].items():
        metrics = record["metrics"]
        for name, value in metrics.items():
            if name.endswith(BOUNDS) and name.rsplit("_", 1)[0] in metrics:
                continue
            low, high = record.get("intervals", {}).get(name, (None, None))
            yield {
                "set": chosen,
                "step": results["checkpoint"]["step"],
                "task": task,
                "metric": name,
                "value": value,
                "low": low,
                "high": high,
                "chance": record["chance"].get(name),
                "reason": record["null_reasons"].get(name),
            }


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Numbers with all their digits; empty where there is none."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: repr(value) if isinstance(value, float) else value for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


def check_step(folder: str | Path | None, step: int | None) -> None:
    """Raises `UserError` where points are to be drawn (`--tensorboard`) at a step that nobody knows."""
    if folder is not None and step is None:
        raise UserError(f"--tensorboard {folder}: nobody knows the step of these weights; leave it out")


def write_scalars(folder: str | Path, rows: list[dict[str, Any]], evaluated: Path) -> None:
    """A point for each number at the checkpoint's step, as eval/[SET/]TASK/NUMBER, with its bounds where it has them.

    Args:
        evaluated: the evaluation's folder: its points of an earlier time at this step are replaced.

    Raises:
        UserError: the step is not known, or the folder cannot be written.
    """
    from torch.utils.tensorboard import SummaryWriter

    step = rows[0]["step"]
    check_step(folder, step)
    mark = f".eval_{sha256_text(f'{evaluated.resolve()} {step}')[:16]}"
    try:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"events.out.tfevents.*{mark}"):
            old.unlink()
        with SummaryWriter(str(folder), filename_suffix=mark) as board:
            for row in rows:
                tag = "/".join(part for part in ("eval", row["set"], row["task"], row["metric"]) if part)
                for name, value in ((tag, row["value"]), (f"{tag}_low", row["low"]), (f"{tag}_high", row["high"])):
                    if value is not None and row["value"] is not None:
                        board.add_scalar(name, value, step)
    except OSError as error:
        raise UserError(f"--tensorboard {folder}: {error}; choose a folder that can be written") from error

"""Two models on the same pictures: what each picture alone comes to, and the difference with its interval.

Most of what makes a number uncertain, which pictures are hard, is the same for both models and falls out of their difference.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.eval.stats.intervals import bootstrap_interval

KEY = "image_id"
"""Names the pictures of the other arrays."""


def each_file(out: Path, task: str) -> Path:
    """Where a task of an evaluation leaves its numbers picture by picture: {KEY: (I,) names, number: (I,) values, NaN for none}."""
    return out / "each" / f"{task}.npz"


def read_each(out: Path, task: str) -> dict[str, np.ndarray]:
    """Raises `UserError` where there is none, or it cannot be read."""
    path = each_file(out, task)
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: {error}; expected what evaluate.py leaves of {task}; run it again") from None


def paired(first: Sequence[np.ndarray], second: Sequence[np.ndarray], seed: int = 0) -> dict[str, Any] | None:
    """How far the second model lies above the first.

    Args:
        first, second: an array (I,) a training seed of the same pictures in the same order; the n-th of both have one seed.

    Returns:
        difference, low, high (95 % interval of the mean over seeds, over resampled pictures: of these trainings, not of others),
        images (that have the number in all arrays), seeds, seeds_above (of them, those with a difference above 0); None where no
        picture has it.

    Raises:
        ValueError: other seeds or pictures on one side.
    """
    if not len(first) or len(first) != len(second) or len({array.shape for array in (*first, *second)}) > 1:
        raise ValueError("expected as many arrays of one shape on both sides, and at least one")
    difference_SI = np.stack(second).astype(np.float64) - np.stack(first)
    there_I = np.isfinite(difference_SI).all(0)
    if not there_I.any():
        return None
    difference_SI = difference_SI[:, there_I]
    mean_I = difference_SI.mean(0)
    low, high = bootstrap_interval(lambda rows: float(mean_I[rows].mean()), len(mean_I), seed)
    return {
        "difference": float(mean_I.mean()),
        "low": low,
        "high": high,
        "images": len(mean_I),
        "seeds": len(difference_SI),
        "seeds_above": int((difference_SI.mean(1) > 0).sum()),
    }

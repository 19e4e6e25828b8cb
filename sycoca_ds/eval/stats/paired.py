"""What each picture alone comes to, on disk: two models on the same pictures are compared by it.

Most of what makes a number uncertain, which pictures are hard, is the same for both models and falls out of their difference.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError

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

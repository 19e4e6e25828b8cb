"""What the trainings read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

SAMPLES, SHARDS, SIDE = 2048, 8, 256


def data_of(options: argparse.Namespace) -> Path:
    """The data set folder that was given, else one of pictures in a few colours, written once."""
    if options.data is not None:
        return options.data.resolve()
    folder = options.out / "data"
    if not (folder / "tokenizer.json").exists():
        sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
        from tests.worlds.data.data_sets import write_data_set

        write_data_set(folder, [SAMPLES // SHARDS] * SHARDS, side=SIDE)
    return folder

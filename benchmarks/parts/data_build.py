"""Downloading under supervision beside bare img2dataset, the same rows from a server on loopback (download_speed.py)."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2

from benchmarks import download_speed, loader_speed
from benchmarks.frame import Row
from benchmarks.peers import PeerProcess


def measure(options: argparse.Namespace, peers: dict[str, PeerProcess]) -> Iterator[Row]:
    rows = 1_000 if options.quick else 4_000
    with tempfile.TemporaryDirectory() as name:
        folder = options.photos
        if folder is None:
            folder = Path(name)
            for number in range(100):
                cv2.imwrite(str(folder / f"{number}.jpg"), loader_speed.noise(number))
        found = download_speed.measure(folder, rows, options.turns, processes=2, threads=32, shard_size=500)
    what = f"{rows:,} pictures, 2 processes, whole command"
    yield Row("data", what, "pictures/s", rows, found["ours"], {"bare img2dataset": found["bare"]})
    yield Row("data", f"{rows:,} pictures verified, whole command", "pictures/s", rows, found["verify"])

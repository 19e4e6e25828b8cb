"""A picture of an evaluation's collection that lies nowhere."""

from __future__ import annotations

from pathlib import Path

from sycoca_ds.eval.collection import Picture


def one_picture(url: str, key: str = "000000007") -> Picture:
    return Picture("id", url, key, Path("x.tar"), 0, 0, 20, 10)

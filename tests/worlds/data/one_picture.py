"""A picture of an evaluation's collection that lies nowhere."""

from __future__ import annotations

from pathlib import Path

from sycoca_ds.eval.collection import StoredPicture


def one_picture(url: str, key: str = "000000007") -> StoredPicture:
    return StoredPicture("id", url, key, Path("x.tar"), 0, 0, 20, 10)

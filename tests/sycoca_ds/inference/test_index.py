"""What is kept of a folder that was looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sycoca_ds.inference.index import Entry, Index, load, save


def test_what_was_ended_before_its_first_batch_is_no_damage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "index.npz"
    save(place, Index(tmp_path, {"a.jpg": Entry(10, 20, "", None)}))
    assert load(place) == {} and capsys.readouterr().err == ""
    entries = {"": Entry(1, 2, "ab", np.ones(3, np.float32)), "b\n c.jpg": Entry(3, 4, "cd", None, "not a picture")}
    save(place, Index(tmp_path, entries))
    found = load(place)
    assert list(found) == list(entries) and found[""].vector.tolist() == [1, 1, 1]
    assert found["b\n c.jpg"].problem == "not a picture" and found["b\n c.jpg"].vector is None
    assert capsys.readouterr().err == ""

"""Two models on the same pictures."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.stats.paired import KEY, each_file, paired, read_each


def test_what_is_the_same_for_both_models_falls_out():
    """Hard and easy pictures differ by 100, the models by 1 +- 0.1: the interval knows only the latter."""
    random = np.random.default_rng(0)
    hard_I = random.uniform(0, 100, 400)
    first = [hard_I + random.normal(0, 0.1, 400) for _ in range(3)]
    found = paired(first, [values + 1 + random.normal(0, 0.1, 400) for values in first])
    assert found["low"] < found["difference"] < found["high"] and abs(found["difference"] - 1) < 0.02
    assert found["high"] - found["low"] < 0.03
    assert (found["images"], found["seeds"], found["seeds_above"]) == (400, 3, 3)


def test_intervals_hold_what_they_promise():
    """Of two equal models, the interval over pictures leaves out 0 in about one of twenty draws."""
    random, outside = np.random.default_rng(1), 0
    for _ in range(100):
        first, second = random.integers(0, 2, (2, 1, 150)) * 100.0
        found = paired(list(first), list(second))
        outside += not found["low"] <= 0 <= found["high"]
    assert 1 <= outside <= 13


def test_pictures_without_the_number_in_one_of_the_runs_are_left_out():
    first, second = (
        [np.array([1.0, np.nan, 3.0]), np.array([1.0, 2.0, 3.0])],
        [np.array([2.0, 5.0, 3.0]), np.array([1.0, 9.0, 4.0])],
    )
    found = paired(first, second)
    assert found["images"] == 2 and found["difference"] == 0.5 and found["seeds_above"] == 2
    assert paired([np.array([np.nan])], [np.array([1.0])]) is None
    for wrong in ([], [first[0]], [first[0][:2], first[1]]):
        with pytest.raises(ValueError, match="as many arrays"):
            paired(wrong, second)


def test_what_is_no_such_file_is_told(tmp_path):
    path = each_file(tmp_path, "retrieval")
    with pytest.raises(UserError, match="retrieval.npz.*run it again"):
        read_each(tmp_path, "retrieval")
    path.parent.mkdir()
    path.write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match="run it again"):
        read_each(tmp_path, "retrieval")
    np.savez(path, **{KEY: np.array(["a", "b"]), "mTR": np.array([1.0, np.nan])})
    assert list(read_each(tmp_path, "retrieval")[KEY]) == ["a", "b"]

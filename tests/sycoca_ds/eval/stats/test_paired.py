"""What pictures come to, on disk."""

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.stats.paired import KEY, each_file, read_each


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

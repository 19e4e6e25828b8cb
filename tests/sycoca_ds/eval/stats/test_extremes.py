"""Best and worst: in a fixed order, never the same case in both."""

from __future__ import annotations

import numpy as np
import pytest

from sycoca_ds.eval.stats.extremes import extremes


@pytest.mark.parametrize(
    ("values", "best", "worst"),
    [
        ([0.5, 2.0, np.nan, 0.1, 2.0, 0.1, 1.0], [1, 4], [3, 5]),
        ([3.0, 3.0, 3.0, 3.0], [0, 1], [2, 3]),
        ([1.0, 0.0, 2.0], [2], [1]),
        ([7.0, np.nan], [], []),
        ([np.nan] * 5, [], []),
    ],
)
def test_of_equal_ones_the_first(values, best, worst) -> None:
    found = extremes(np.array(values), 2)
    assert [places.tolist() for places in found] == [best, worst]

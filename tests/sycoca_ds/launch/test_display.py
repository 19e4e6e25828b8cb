"""The bars of the demo, the ablations and a run, as they stand on a terminal."""

from __future__ import annotations

import pytest

from sycoca_ds.launch.display import Display, Stage
from tests.worlds.processes.terminal import drawn

NOTE = "loss 10.368, 140 samples/s"
DEMO = f"""
import time
from sycoca_ds.launch.display import Display, Stage
display = Display([Stage("draw the world", [], 100), Stage("pretrain", [], 400, (), "loads torch")])
display.begin(1); time.sleep(0.2)
display.show({{"what": "train", "done": 132, "total": 400, "unit": "steps", "note": {NOTE!r}}}); time.sleep(0.2)
display.close()
"""
RUN = f"""
import time
from data_pipeline.progress import Progress
with Progress("train", total=400, unit="steps") as bar:
    bar.set(132); bar.note({NOTE!r} * 9); time.sleep(0.3)
"""


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_and_what_is_being_done_stand_on_one_line(width: int) -> None:
    lines = drawn(DEMO, width)
    assert all(len(line) <= width for line in lines), lines
    assert any(line.startswith("2/2 pretrain ") and "20 %" in line and line.rstrip().endswith("left loads torch") for line in lines)
    last = lines[-1]
    assert "46 %" in last and last.count("\u2501") >= width // 8 and "train 132/400 steps loss 10.368" in last, last
    last = drawn(RUN, width)[-1]
    assert len(last) <= width and last.count("\u2501") >= width // 8 and "132/400 steps" in last and "loss 10.368" in last, last


def test_the_percentage_never_goes_back() -> None:
    """A stage of three reports one after another, one of which corrects its estimate; and a plan that grows."""
    parts = (("curate", 0.1), ("download", 0.7), ("verify", 0.2))
    display = Display([Stage("build", [], 60, parts), Stage("pretrain", [], 40)])
    display.begin(0)
    percents = []
    for what, done, expected in (
        ("curate", 50, 3),
        ("curate", 100, 6),
        ("download", 0, 6),
        ("download", 50, 27),
        ("download", 40, 27),
        ("download", 100, 48),
        ("something else", 100, 48),
        ("verify", 50, 54),
    ):
        display.show({"what": what, "done": done, "total": 100, "unit": "rows", "note": ""})
        percents.append((what, done, round(display.percent)))
        assert percents[-1] == (what, done, expected)
    display.stages[1] = Stage("pretrain", [], 400)
    display.begin(1)
    assert round(display.percent) == 54

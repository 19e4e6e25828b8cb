"""What a run writes down: the same record as a line of metrics.jsonl and as points in TensorBoard's curves, each step once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from sycoca_ds.engine.monitoring.curves import CHARTS, CLOCK, OF_ANSWERS, OF_REGIONS, TAGS, layout
from sycoca_ds.engine.monitoring.journal import EVENTS, Journal
from tests.worlds import REPOSITORY
from tests.worlds.trainings.event_files import points


def lines(run: Path) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())]


def write(journal: Journal, first: int, last: int, value: float) -> None:
    for step in range(first, last + 1):
        journal.scalars(step, {"loss": value})


def test_every_key_has_its_curve_and_the_losses_come_first(tmp_path: Path) -> None:
    """TensorBoard sorts groups by name and opens the first two."""
    record = {name: float(number) for number, name in enumerate([*TAGS, "epoch_of_source_1", "epoch_of_source_2"])}
    journal = Journal(tmp_path, 0, enabled=True)
    journal.scalars(1, record)
    journal.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, **record}
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert sorted({tag.split("/")[0] for tag in tags})[:2] == ["loss", "loss_validation"]
    assert sorted(tag for tag in tags if tag.startswith("loss")) == [
        *("loss/ic", "loss/itc", "loss/late_interaction", "loss/mim", "loss/total", "loss/vqa"),
        *(f"loss_validation/{name}" for name in ("ic", "itc", "late_interaction", "mim", "total", "vqa")),
    ]
    assert len(tags) == len(record) and all("/" in tag for tag in tags), "no curve is a group of its own"
    values = {tag: board.Scalars(tag)[0].value for tag in tags}
    assert values["loss_validation/itc"] == record["validation/itc"] and values["samples/seen"] == record["samples"]
    assert values["samples/epoch_of_source_2"] == record["epoch_of_source_2"]


def test_charts_name_numbers_that_there_are() -> None:
    assert {key for charts in CHARTS.values() for keys in charts.values() for key in keys} <= set(TAGS)
    assert set(CLOCK) <= set(TAGS)


def test_a_board_has_no_chart_of_what_its_regions_cannot_give() -> None:
    """The demo's captions name all that their pictures show."""
    whole, page = layout(regions=True), "Do the masks find what is named?"
    assert set(layout(regions=True, answers=True)) - set(whole) == {"Does it answer?"}
    left = layout(regions=True, unasked=("named_over_unnamed", "named_over_rest"))
    gone = list(whole.pop(page).keys() - left.pop(page).keys())
    assert left == whole and len(gone) == 3 and all("named over" in title or "own caption adds" in title for title in gone)
    assert layout(regions=True, unasked=("named_over_rest",))[page].keys() >= set(gone) - {t for t in gone if "everything" in t}


@pytest.mark.parametrize("regions", [False, True])
def test_the_layout_is_in_the_event_files(regions: bool, tmp_path: Path) -> None:
    """Without regions no page of empty charts for what needs them."""
    journal = Journal(tmp_path, 0, enabled=True, regions=regions)
    write(journal, 1, 2, 1.0)
    journal.go_back(1)
    journal.close()
    board = EventMultiplexer(tensor_size_guidance={"custom_scalars": 0})
    board.AddRunsFromDirectory(str(tmp_path / "tensorboard"))
    board.Reload()
    (event,) = board.Tensors(".", "custom_scalars__config__")[-1:]
    found = Layout.FromString(event.tensor_proto.string_val[0])
    pages = [page for page in CHARTS if page != OF_ANSWERS and (regions or page != OF_REGIONS)]
    assert [category.title for category in found.category] == list(layout(regions)) == pages
    first = found.category[0]
    assert [chart.title for chart in first.chart] == list(CHARTS["Does it learn?"])
    assert list(first.chart[0].multiline.tag) == ["loss/total$", "loss_validation/total$"]


@pytest.mark.parametrize("way", ["resumed", "rewound"])
def test_a_run_that_goes_back_has_each_step_once(way: str, tmp_path: Path) -> None:
    """Three starts: to step 9, back to 5 and on to 7, back to 6 and on to 8."""
    journal = Journal(tmp_path, 0, enabled=True)
    write(journal, 0, 9, 1.0)
    for number, (back, last) in enumerate([(5, 7), (6, 8)], 2):
        if way == "rewound":
            journal.go_back(back)
        else:
            journal.close()
            with open(tmp_path / "metrics.jsonl", "a") as file:
                file.write('{"step": 4, "lo')  # killed in the middle of a line
            journal = Journal(tmp_path, back, enabled=True)
        write(journal, back + 1, last, float(number))
    journal.close()
    expected = [*((step, 1.0) for step in range(6)), (6, 2.0), (7, 3.0), (8, 3.0)]
    assert lines(tmp_path) == expected
    assert points(tmp_path) == expected


def test_what_was_written_of_a_step_can_be_asked_for(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, enabled=True)
    assert journal.at(2) == {}
    for step in (1, 2, 3):
        journal.scalars(step, {"loss": float(step)})
        journal.scalars(step, {"validation/loss": 10.0 * step})
    journal.close()
    assert Journal(tmp_path, 2, enabled=True).at(2) == {"loss": 2.0, "validation/loss": 20.0}


def test_a_run_that_begins_again_keeps_nothing(tmp_path: Path) -> None:
    """Killed before its first checkpoint, it validates at step 0 once more."""
    for value in (1.0, 2.0):
        journal = Journal(tmp_path, 0, enabled=True)
        write(journal, 0, 2, value)
        journal.show(1, texts={"run/environment": str(value)})
        journal.close()
    assert lines(tmp_path) == points(tmp_path) == [(0, 2.0), (1, 2.0), (2, 2.0)]


def test_a_clock_that_was_set_back_brings_nothing_back(tmp_path: Path) -> None:
    """TensorBoard reads event files in the order of the seconds in their names."""
    journal = Journal(tmp_path, 0, enabled=True)
    write(journal, 1, 9, 1.0)
    journal.close()
    (old,) = (tmp_path / "tensorboard").iterdir()
    old.rename(old.with_name(f"{EVENTS}9999999999.host.1.0"))
    journal = Journal(tmp_path, 5, enabled=True)
    write(journal, 6, 7, 2.0)
    journal.close()
    assert points(tmp_path) == [*((step, 1.0) for step in range(1, 6)), (6, 2.0), (7, 2.0)]


def test_a_number_that_is_not_finite_is_null_in_json_and_itself_in_tensorboard(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, enabled=True)
    journal.scalars(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    journal.close()
    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.5}
    assert np.isnan(points(tmp_path)[0][1]) and points(tmp_path, "optimizer/grad_norm")[0][1] == float("inf")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from sycoca_ds.engine.monitoring.journal import Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(Path(sys.argv[1]), 0, enabled=True)
journal.scalars(1, {"loss": 1.0})
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
for step in range(2, 200):
    journal.scalars(step, {"loss": 1.0})
    journal.show(step, texts={"run/environment": "x" * 1000})
journal.close()
print("still here")
"""


def test_a_full_disk_costs_the_record_and_never_the_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "still here" in done.stdout, done.stderr[-3000:]
    assert done.stderr.count("what the run measures cannot be written") == 1
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {"step": 1, "loss": 1.0}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, enabled=False)
    journal.scalars(1, {"loss": 1.0})
    journal.show(1, texts={"run/environment": "x"})
    journal.go_back(0)
    journal.close()
    assert not list(tmp_path.iterdir())

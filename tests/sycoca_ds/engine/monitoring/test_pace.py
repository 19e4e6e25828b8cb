"""Who holds the others up: by hand, and in a run in which one rank does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch

from sycoca_ds.engine.monitoring.pace import Pace
from sycoca_ds.engine.ranks.runtime import Runtime
from tests.worlds import REPOSITORY
from tests.worlds.trainings.training import SMALL, finish, start_warm


def pace(hosts: list[str]) -> Pace:
    found = Pace(Runtime(0, 0, 1, torch.device("cpu"), 1))
    found.hosts = hosts
    return found


def test_a_rank_is_named_once_when_it_was_slow_three_times_in_a_row() -> None:
    own, usual = pace(["node-a", "node-a", "node-b", "node-b"]), [0.0] * 4
    slow = [0.010, 0.011, 0.010, 0.021]
    assert own.judge(slow, usual) == own.judge(slow, usual) == []
    (said,) = own.judge(slow, usual)
    assert said == (
        "rank 3 on node-b holds the others up: its device takes 2.1 times as long as the median rank's for one product, "
        "3 reports in a row"
    )
    assert own.judge(slow, usual) == [], "said already"
    assert own.judge([0.01] * 4, usual) == own.judge(slow, usual) == own.judge(slow, usual) == []
    assert len(own.judge(slow, usual)) == 1, "it was well in between"


def test_loaders_are_judged_by_the_time_that_they_let_wait() -> None:
    own, device = pace(["node-a", "node-b"]), [0.01, 0.01]
    for _ in range(2):
        assert own.judge(device, [0.02, 0.35]) == []
    (said,) = own.judge(device, [0.02, 0.35])
    assert said.startswith("rank 1 on node-b holds the others up: it waits for samples 35% of the time, the median rank 2%")
    every = pace(["node-a", "node-b"])
    assert [every.judge(device, [0.5, 0.55]) for _ in range(4)] == [[]] * 4, "all alike: nobody holds the others up"
    # of two ranks the faster one is what is usual
    two = pace(["node-a", "node-b"])
    assert [len(two.judge([0.01, 0.02], [0.0, 0.0])) for _ in range(3)] == [0, 0, 1]
    assert two.numbers([0.01, 0.02], [0.3, 0.0]) == {"slowest_device": 2.0, "slowest_device_rank": 1, "slowest_loader_rank": 0}


SLOW = """
import os, sys, time
sys.path[0] = {repository!r}
from sycoca_ds.engine.monitoring.pace import Pace
from sycoca_ds.engine.start import Session
if os.environ["RANK"] == "1":
    product, feed = Pace._product, Session.feed
    Pace._product = lambda pace: time.sleep(0.05) or product(pace) + 0.05
    def slowly(session):
        for batch in feed(session):
            time.sleep(0.5)
            yield batch
    Session.feed = slowly
from sycoca_ds.train import end_process, on_every_rank, run_command
end_process(run_command(on_every_rank))
"""


def test_a_run_names_the_rank_with_the_slow_device_and_the_slow_loader(data_set: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "slow_train.py", tmp_path / "run"
    script.write_text(SLOW.format(repository=str(REPOSITORY)))
    words = [*SMALL, "--data.train", str(data_set), "--run.out", str(out)]
    status, output = finish(start_warm(words, ranks=2, script=script))
    assert status == 0, output[-3000:]
    said = re.findall(r"rank (\d) on \S+ holds the others up: (its device|it waits)", output)
    assert sorted(said) == [("1", "it waits"), ("1", "its device")], output[-3000:]
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if "slowest_device" in record]
    assert len(records) == 4 and all(record["slowest_device"] > 3 for record in records)
    assert {(record["slowest_device_rank"], record["slowest_loader_rank"]) for record in records} == {(1, 1)}

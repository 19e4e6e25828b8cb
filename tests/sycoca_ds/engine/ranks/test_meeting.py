"""Ranks meet, or say in one line and within seconds why not."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks import launcher
from sycoca_ds.engine.ranks.launcher import check_world_size
from sycoca_ds.engine.ranks.meeting import Arrival, _receive, _report, missing, ranges
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import free_port, start_warm
from tests.worlds.processes.warm import WarmProcess

PLAN = {"a": [0, 1], "b": [0, 1]}


def arrival(rank: int, **changes) -> Arrival:
    return dataclasses.replace(Arrival(rank, "ab"[rank // 2], 4, PLAN, ""), **changes)


def gather(arrivals: list[Arrival], seconds: float = 5.0) -> list[object]:
    """What each of the ranks gets, its answer or its refusal, in threads over a real store; the first one is rank 0."""
    server = dist.TCPStore("127.0.0.1", 0, len(arrivals), is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)
    results: list[object] = [None] * len(arrivals)

    def one(number: int, own: Arrival) -> None:
        client = dist.TCPStore("127.0.0.1", server.port, len(arrivals), is_master=False, timeout=timedelta(seconds=20))
        part = _receive if number == 0 else _report
        try:
            results[number] = part(dist.PrefixStore("meeting", client), own, time.monotonic() + seconds)
        except UserError as error:
            results[number] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(arrivals)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture(autouse=True)
def master(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MASTER_ADDR", "10.0.0.1"), ("MASTER_PORT", "29500"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)


def test_all_come_and_learn_where_everyone_is() -> None:
    assert gather([arrival(0), arrival(3), arrival(1), arrival(2)]) == [("a", "a", "b", "b")] * 4


def test_who_is_missing_is_said_on_every_rank_that_came(capsys: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    told = gather([arrival(0), arrival(2)], seconds=1.0)
    assert time.monotonic() - began < 10 and len(set(told)) == 1
    assert told[0].startswith("2 of 4 ranks have come, missing: rank 1 of a, rank 3 of b; `python -m sycoca_ds.launch check")


@pytest.mark.parametrize(
    "other, words",
    [
        (
            arrival(2, world_size=6, plan={**PLAN, "c": [0, 1]}),
            "rank 2 on b was launched for 6 ranks (a: 2, b: 2, c: 2), rank 0 on a for",
        ),
        (arrival(2, world_size=6, plan={}), "rank 2 on b was launched for ranks that another launcher than `deepspeed` counts"),
        (arrival(0, host="b"), "rank 0 came twice, from b and from a"),
    ],
)
def test_a_rank_that_was_told_something_else_ends_the_meeting_for_all(other: Arrival, words: str) -> None:
    """Long before all could be there, and long before the wait would be over."""
    began = time.monotonic()
    told = gather([arrival(0), arrival(1), other], seconds=60)
    assert time.monotonic() - began < 10 and len(set(told)) == 1 and words in told[0], told


def test_another_number_of_ranks_under_torchrun_or_slurm() -> None:
    told = gather([arrival(0, plan={}), arrival(1, plan={}, world_size=2)], seconds=60)
    assert len(set(told)) == 1 and "rank 1 on a was told of 2 ranks, rank 0 on a of 4: start all with the same number" in told[0]


def test_where_gloo_would_listen_matters_between_machines_only() -> None:
    bad = "its own name resolves to 127.0.1.1"
    alone = [arrival(rank, host="a", unreachable=bad) for rank in range(4)]
    assert gather(alone) == [("a",) * 4] * 4
    told = gather([*alone[:3], arrival(3, unreachable=bad)])
    assert told == [f"a: {bad}"] * 4


def test_the_ranks_of_another_launch_are_sent_away() -> None:
    server = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, timeout=timedelta(seconds=20), wait_for_workers=False)
    store = dist.PrefixStore("meeting", server)
    own = arrival(0, world_size=1, plan={})
    assert _receive(store, own, time.monotonic() + 5) == ("a",)
    with pytest.raises(UserError, match="10.0.0.1:29500 is the port of another launch"):
        _report(store, arrival(2), time.monotonic() + 5)


def test_ranges() -> None:
    assert ranges({0}) == "0" and ranges({3, 1, 2}) == "1-3" and ranges({0, 1, 4, 6, 7, 8}) == "0-1, 4, 6-8" and ranges(set()) == ""
    assert missing(arrival(0, plan={}), {0, 2}) == "ranks 1, 3" and missing(arrival(0), {0, 1, 2, 3}) == ""


MEET = """
import datetime, sys, torch
from data_pipeline.errors import run_command
from sycoca_ds.engine.ranks import meeting
meeting.SAID_SECONDS, meeting.JOIN_SECONDS = 1.0, 2.0
def main():
    hosts = meeting.meet("gloo", torch.device("cpu"), datetime.timedelta(seconds=60), limit=float(sys.argv[1]))
    torch.distributed.barrier()  # rank 0 holds the store, which the other may still be reading from
    print(hosts)
run_command(main)
"""


def test_processes_meet_and_one_that_nobody_meets_says_so(tmp_path: Path) -> None:
    script, port = tmp_path / "meet.py", free_port()
    script.write_text(MEET)

    def rank(number: int, world_size: int, port: int, limit: float) -> WarmProcess:
        names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = {name: str(value) for name, value in names.items()}
        return start_warm([str(limit)], ranks=0, script=script, **place)

    both = [rank(number, 2, port, 60) for number in range(2)]
    outputs = [process.communicate(timeout=100)[0] for process in both]
    assert outputs == [f"{(socket.gethostname(),) * 2}\n"] * 2
    lonely, other = rank(0, 2, free_port(), 3), rank(1, 2, free_port(), 3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        text = rank(1, 2, mute.getsockname()[1], 30).communicate(timeout=60)[0]
    assert "answers, but not as rank 0 does" in text and "another --master_port" in text and "Traceback" not in text, text
    text = lonely.communicate(timeout=60)[0]
    assert "1 of 2 ranks have come, missing: rank 1\n" in text and "error: 1 of 2 ranks have come" in text, text
    text = other.communicate(timeout=60)[0]
    assert "error: rank 1 on" in text and "does not reach rank 0 at 127.0.0.1:" in text and "Connection refused" in text, text


def test_another_world_size_than_expected_is_refused_before_anyone_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(UserError, match="expected-world-size = 16 but the launcher started 8 ranks: check that the hostfile"):
        check_world_size(16)
    check_world_size(8)


@pytest.mark.parametrize("words", [["-H", "nowhere"], ["--hostfile=nowhere"]])
def test_a_hostfile_that_does_not_exist_is_refused(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The words of a runner and its launch.py, which this process plays; real ones: test_launcher.py."""
    runner = ["python", "bin/deepspeed", *words, "train.py", "-a"]
    above = {os.getppid(): ["python", "-u", "-m", launcher.LAUNCH], os.getpid(): runner}
    monkeypatch.setattr(launcher, "words_of", above.__getitem__)
    monkeypatch.setattr(launcher, "parent_and_begin", lambda pid: (os.getpid(), "0"))
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(UserError, match=f"--hostfile {Path.cwd()}/nowhere does not exist.*--run.expected-world-size 1"):
        check_world_size(None)
    check_world_size(1)


def test_what_the_launcher_planned_is_read_from_its_words(tmp_path: Path) -> None:
    """The real launch.py of DeepSpeed, two hosts in its --world_info, of which this one plays the second."""
    script = tmp_path / "plan.py"
    script.write_text(
        f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\n"
        "from sycoca_ds.engine.ranks.launcher import check_world_size, find_launcher\n"
        "check_world_size(None)\nprint(find_launcher().plan, find_launcher().port_given)\n"
        "import os\nos.environ['WORLD_SIZE'] = '2'\ncheck_world_size(None)\n"
    )
    coded = base64.urlsafe_b64encode(json.dumps({"n0": [0, 1], "n1": [0]}).encode()).decode()
    words = ["-m", "deepspeed.launcher.launch", f"--world_info={coded}", "--node_rank=1", str(script)]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=100, env=environment)
    assert "{'n0': [0, 1], 'n1': [0]} True" in done.stdout, done.stdout + done.stderr
    assert "UserError: WORLD_SIZE is 2 but `deepspeed` planned 3 ranks (n0: 2, n1: 1)" in done.stderr

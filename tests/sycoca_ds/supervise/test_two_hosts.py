"""Two real hosts, the literal launch under the supervisor, and what happens to hosts: the run is finished, no number changes."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sycoca_ds.supervise.verdict import read_history
from tests.worlds.data_sets import write_data_set
from tests.worlds.launching import LIMIT
from tests.worlds.training import SMALL
from tests.worlds.two_hosts import TwoHosts, needs_two_hosts, two_hosts
from tests.worlds.watching import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_two_hosts]
STEPS = 14
WATCH = ["--watch.beat-seconds", "0.5", "--watch.silent-seconds", "8", "--watch.step-seconds", "20"]
PATIENCE = ["--back-off-seconds", "0.1", "--grace-seconds", "10", "--silent-seconds", "20", "--restarts", "8"]


def curve(out: Path) -> list[tuple[int, float]]:
    path = out / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(record["step"], record["loss"]) for record in records if "loss" in record]


def options(data: Path, out: Path) -> list[str]:
    lasting = ["--optim.steps", str(STEPS), "--run.checkpoint-every", "3", "--run.ds-config", "ds_configs/zero3.json"]
    return [*SMALL, "--data.train", str(data), "--run.out", str(out), *lasting, *WATCH]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("two_hosts") / "train", [31, 7, 25, 1, 32])


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with two_hosts(folder / "hosts") as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        status, output = hosts.finish(hosts.deepspeed("sycoca_ds/train.py", *options(data, folder / "run")))
    assert status == 0, output[-4000:]
    return curve(folder / "run")


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def cut_the_link(hosts: TwoHosts, judged: Callable[[], bool]) -> None:
    hosts.b.link("down")
    assert wait_until(judged, LIMIT), "the job must end while the link is down"
    hosts.b.link("up")


def slow_the_link(hosts: TwoHosts, judged: Callable[[], bool]) -> None:
    hosts.b.run("tc qdisc add dev eth0 root netem delay 200ms")


FAULTS: dict[str, tuple[Callable[[TwoHosts, Callable[[], bool]], None], set[str]]] = {
    "link down": (cut_the_link, {"network"}),
    "link slow": (slow_the_link, set()),
    "remote rank": (lambda hosts, _: kill(hosts.b.pids("--local_rank=")), {"killed"}),
    "remote launcher": (lambda hosts, _: kill(hosts.b.pids("deepspeed.launcher.launch")[:1]), {"killed", "network"}),
    "local launcher": (lambda hosts, _: kill(hosts.a.pids("deepspeed.launcher.launch")[:1]), {"killed"}),
    "runner": (lambda hosts, _: kill(hosts.a.pids("bin/deepspeed")[:1]), {"killed"}),
    "sshd": (lambda hosts, _: kill(hosts.b.pids("sshd:")), {"killed", "network"}),
}


@pytest.mark.parametrize("fault", [name if name == "link down" else pytest.param(name, marks=pytest.mark.full) for name in FAULTS])
def test_what_happens_to_a_host_costs_a_restart_and_no_number(
    fault: str, data: Path, undisturbed: list[tuple[int, float]], tmp_path: Path
) -> None:
    out, (do, classes) = tmp_path / "run", FAULTS[fault]
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        launch = ["deepspeed", "--hostfile", str(hosts.hostfile), "sycoca_ds/train.py", *options(data, out)]
        process = hosts.start(hosts.a, sys.executable, "-m", "sycoca_ds.supervise", *PATIENCE, "--", *launch)
        assert wait_until(lambda: len(curve(out)) >= 4 or process.poll() is not None, LIMIT)
        do(hosts, lambda: (out / "verdict.json").exists())
        status, output = hosts.finish(process, 2 * LIMIT)
    assert status == 0, output[-5000:]
    told = read_history(out / "supervise/history.jsonl")
    assert told[-1]["class"] == "completed" and {record["class"] for record in told[:-1]} <= classes, told
    assert bool(told[:-1]) == bool(classes), told
    assert curve(out) == undisturbed

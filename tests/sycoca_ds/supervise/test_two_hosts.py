"""The supervisor over two hosts, through the real ssh and pdsh: remote kills, a cut link, a host that stays away."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sycoca_ds.supervise.verdict import read_history
from tests.worlds.data_sets import write_data_set
from tests.worlds.hurting import hurt
from tests.worlds.launching import LIMIT, finish, start_warm
from tests.worlds.training import SMALL, losses
from tests.worlds.two_hosts import TwoHosts, needs_two_hosts, two_hosts
from tests.worlds.watching import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_two_hosts]
STEPS = 24
PATIENCE = ["--back-off-seconds", "2", "--restarts", "9", "--grace-seconds", "12", "--silent-seconds", "40"]


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as pair:
        pair.accept_keys()
        pair.write_settings("GLOO_SOCKET_IFNAME=eth0")
        yield pair


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("two_hosts") / "train", [31, 7, 25, 1, 32])


def options(data: Path, out: Path) -> list[str]:
    lasting = ["--optim.steps", str(STEPS), "--run.checkpoint-every", "4", "--run.ds-config", "ds_configs/zero1.json"]
    watch = ["--watch.beat-seconds", "0.5", "--watch.silent-seconds", "8", "--watch.step-seconds", "20"]
    return [*SMALL, "--data.train", str(data), "--run.out", str(out), *lasting, *watch]


def supervise(hosts: TwoHosts, script: Path | str, words: list[str], *own: str) -> subprocess.Popen:
    launch = ["deepspeed", "--hostfile", str(hosts.hostfile), "--master_port", "29471", str(script), *words]
    return hosts.start(hosts.a, "python", "-m", "sycoca_ds.supervise", *PATIENCE, *own, "--", *launch)


def history(out: Path) -> list[dict]:
    return read_history(out / "supervise/history.jsonl")


def steps_done(out: Path) -> int:
    return len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks on this machine: the same numbers as on two hosts."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = finish(start_warm(options(data, out), ranks=2))
    assert status == 0, output[-3000:]
    return out


@pytest.mark.full
def test_remote_kills_and_a_cut_link_cost_a_restart_each(hosts: TwoHosts, data: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    process = supervise(hosts, hurt(tmp_path, "time.sleep(0.4)"), options(data, out))

    def after(step: int, attempt: int, do: Callable[[], object]) -> None:
        def reached() -> bool:
            return steps_done(out) >= step and len(history(out)) == attempt - 1

        wait_until(lambda: reached() or process.poll() is not None, LIMIT)
        assert reached() and process.poll() is None, process.communicate()[0][-5000:]
        do()
        assert wait_until(lambda: len(history(out)) >= attempt, 90), "no verdict within 90 s"

    rank_1 = "--local_rank=0"
    after(5, 1, lambda: [os.kill(pid, signal.SIGKILL) for pid in hosts.b.pids(rank_1)])
    after(10, 2, lambda: [os.kill(pid, signal.SIGKILL) for pid in hosts.b.pids("deepspeed.launcher.launch")])
    after(15, 3, lambda: hosts.b.link("down"))
    hosts.b.link("up")
    status, output = hosts.finish(process)
    assert status == 0, output[-5000:]
    told = history(out)
    assert [(record["class"], record["host"]) for record in told[:1]] == [("killed", "node-b")] and told[0]["rank"] == 1
    assert told[1]["class"] == "killed" and told[2]["class"] == "network" and told[2]["host"] == "node-b"
    assert told[-1]["class"] == "completed" and {record["class"] for record in told[3:-1]} <= {"network"}
    assert losses(out, STEPS) == losses(undisturbed, STEPS)


@pytest.mark.full
def test_a_host_that_stays_away_is_left_out(hosts: TwoHosts, data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Its link is cut; the second attempt finds it away, the third runs on one host with one rank: the same samples, other sums."""
    out = tmp_path / "run"
    process = supervise(hosts, hurt(tmp_path, "time.sleep(0.3 if n < 20 else 0)"), options(data, out), "--min-hosts", "1")
    try:
        assert wait_until(lambda: steps_done(out) >= 6 or process.poll() is not None, LIMIT)
        assert process.poll() is None, process.communicate()[0][-5000:]
        hosts.b.link("down")
        status, output = hosts.finish(process)
    finally:
        hosts.b.link("up")
    assert status == 0, output[-5000:]
    told = history(out)
    *failed, last = told
    # on a busy machine the ranks' own watchdog may be first to speak, or a start fail while the link is going
    assert last["class"] == "completed" and {record["class"] for record in failed} <= {"network", "hang"}, output[-5000:]
    assert [record["action"] for record in failed] == ["RESTART"] * (len(failed) - 1) + ["WITHOUT-HOST"]
    assert all(record["host"] == "node-b" for record in failed)
    assert (out / "supervise/hostfile").read_text() == "node-a slots=1\n" and "--force_multi" in output
    assert "was saved by 2 ranks: converting it for 1" in output
    for mine, theirs in zip(losses(out, STEPS), losses(undisturbed, STEPS), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5), mine["step"]

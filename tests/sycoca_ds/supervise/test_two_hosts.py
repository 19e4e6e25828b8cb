"""The supervisor over two hosts, through the real ssh and pdsh: remote kills, a cut link, a host that stays away."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sycoca_ds.engine.checkpoint.seal import sealed
from sycoca_ds.supervise.verdict import read_history
from tests.worlds.data.data_sets import write_data_set
from tests.worlds.machines.two_hosts import SYSTEM_PATH, Node, TwoHosts, needs_two_hosts, two_hosts
from tests.worlds.processes.launching import LIMIT, finish, start_warm
from tests.worlds.processes.watching import wait_until
from tests.worlds.trainings.hurting import hurt
from tests.worlds.trainings.training import SMALL, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_two_hosts]
STEPS = 40
"""A busy machine is late to end an attempt: the third fault of a run still has to find steps before it."""
DISK_MIB = 300
PATIENCE = ["--back-off-seconds", "2", "--restarts", "9", "--grace-seconds", "12", "--silent-seconds", "40"]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small one, which both hosts share: it can be filled."""
    folder = tmp_path_factory.mktemp("disk")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def hosts(disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoHosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts"), slow=True) as pair:
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


def kill(node: Node, words: str) -> None:
    found = node.pids(words)
    assert found, f"nothing on {node.name} is called {words}"
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def steps_done(out: Path) -> int:
    return len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks on this machine: the same numbers as on two hosts."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = finish(start_warm(options(data, out), ranks=2))
    assert status == 0, output[-3000:]
    return out


class Disturbed:
    """A supervised run over both hosts that is disturbed at some of its steps, one attempt after another."""

    def __init__(self, hosts: TwoHosts, out: Path, process: subprocess.Popen) -> None:
        self.hosts, self.out, self.process, self.attempts, self.least = hosts, out, process, 0, 0

    def at(self, step: int, do: Callable[[], object]) -> None:
        """Does something when a step is done, and one or two of this attempt: the one before may have gone on for a while."""
        step = max(step, self.least)
        wait_until(lambda: self._reached(step) or self.process.poll() is not None, LIMIT)
        assert self._reached(step) and self.process.poll() is None, self.process.communicate()[0][-5000:]
        do()

    def ends_attempt(self, step: int, do: Callable[[], object]) -> None:
        """Does something that must end an attempt with a verdict soon."""
        self.at(step, do)
        self.attempts = len(history(self.out)) + 1
        assert wait_until(lambda: len(history(self.out)) >= self.attempts, 90), "no verdict within 90 s"
        self.attempts, self.least = len(history(self.out)), steps_done(self.out) + 2

    def _reached(self, step: int) -> bool:
        return steps_done(self.out) >= step and len(history(self.out)) >= self.attempts


@pytest.mark.full
def test_remote_kills_and_a_cut_link_cost_a_restart_each(hosts: TwoHosts, data: Path, tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "run"
    run = Disturbed(hosts, out, supervise(hosts, hurt(tmp_path, "time.sleep(0.4)"), options(data, out)))
    run.ends_attempt(5, lambda: kill(hosts.b, "--local_rank=0"))
    run.ends_attempt(10, lambda: kill(hosts.b, "deepspeed.launcher.launch"))
    run.ends_attempt(15, lambda: hosts.b.link("down"))
    hosts.b.link("up")
    status, output = hosts.finish(run.process)
    assert status == 0, output[-5000:]
    told = history(out)
    assert [(record["class"], record["host"]) for record in told[:1]] == [("killed", "node-b")] and told[0]["rank"] == 1
    assert told[1]["class"] == "killed" and told[2]["class"] == "network" and told[2]["host"] == "node-b"
    assert told[-1]["class"] == "completed" and {record["class"] for record in told[3:-1]} <= {"network"}
    assert losses(out, STEPS) == losses(undisturbed, STEPS)


@pytest.mark.full
def test_launchers_and_ssh_that_end_cost_a_restart_each(hosts: TwoHosts, data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Where the launch starts: `deepspeed` itself, then pdsh; on the other host sshd with all its sessions, which stays away for a
    while: nobody can look there meanwhile what is left."""
    out = tmp_path / "run"
    run = Disturbed(hosts, out, supervise(hosts, hurt(tmp_path, "time.sleep(0.4)"), options(data, out)))
    run.ends_attempt(5, lambda: kill(hosts.a, "bin/deepspeed --hostfile"))
    run.ends_attempt(10, lambda: kill(hosts.a, "pdsh"))
    run.ends_attempt(15, lambda: kill(hosts.b, "sshd"))
    time.sleep(5)
    hosts.b.run(f"{shutil.which('sshd', path=SYSTEM_PATH)} -f {hosts.b.folder}/sshd_config -E {hosts.b.folder}/sshd.log")
    status, output = hosts.finish(run.process)
    assert status == 0, output[-5000:]
    told = history(out)
    assert [record["class"] for record in told[:2]] == ["killed", "killed"], output[-5000:]
    assert (told[2]["class"], told[2]["host"]) == ("network", "node-b"), output[-5000:]
    assert told[-1]["class"] == "completed" and {record["class"] for record in told[3:-1]} <= {"network"}, output[-5000:]
    assert losses(out, STEPS) == losses(undisturbed, STEPS)


@pytest.mark.full
def test_a_slow_link_slows_the_run_and_a_full_disk_costs_saves(
    hosts: TwoHosts, disk: Path, data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    """200 ms more there and back are no fault; nor is a disk that the other host fills, until room is made again."""
    out, filler = disk / "run", disk / "filler"
    run = Disturbed(hosts, out, supervise(hosts, hurt(tmp_path, "time.sleep(0.2)"), options(data, out)))

    def there_and_back() -> float:
        connect = "import socket, time; t = time.monotonic(); socket.create_connection(('node-b', 22)); print(time.monotonic() - t)"
        return float(hosts.a.run(f'{sys.executable} -c "{connect}"'))

    run.at(5, lambda: hosts.delay(0.1))
    assert there_and_back() >= 0.2
    run.at(8, lambda: hosts.delay(0.0))
    assert there_and_back() < 0.1
    run.at(10, lambda: hosts.b.run(f"dd if=/dev/zero of={filler} bs=1M 2>/dev/null; true"))
    run.at(18, filler.unlink)
    status, output = hosts.finish(run.process)
    assert status == 0, output[-5000:]
    assert [record["class"] for record in history(out)] == ["completed"], output[-5000:]
    assert "is NOT saved" in output and [folder.name for folder in sealed(out / "checkpoints")][0] == f"step_{STEPS:08d}"
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

"""One run, four ways to start it: by `deepspeed` on one host and on two, by torchrun, by Slurm's template. The same numbers, bit
for bit. Who starts it knows nothing of ZeRO's stage, of which the third takes twice as long: it has a cell of the night."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sycoca_ds.engine.checkpoint.seal import sealed
from sycoca_ds.engine.monitoring.curves import CLOCK
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import write_data_set
from tests.worlds.machines.slurm import JOB, sbatch
from tests.worlds.machines.two_hosts import needs_two_hosts, two_hosts
from tests.worlds.processes.launching import LIMIT, finish, free_port, start, start_warm
from tests.worlds.processes.watching import alive_in, wait_until
from tests.worlds.trainings.training import SMALL

STEPS = 12
SCRIPT = "sycoca_ds/train.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("same_run") / "train", [31, 7, 25, 1, 32])


def options(data: Path, out: Path, stage: str = "zero1") -> list[str]:
    lasting = ["--optim.steps", str(STEPS), "--run.checkpoint-every", "1000", "--run.ds-config", f"ds_configs/{stage}.json"]
    return [*SMALL, *lasting, "--data.train", str(data), "--run.out", str(out)]


def numbers(out: Path) -> list[dict[str, float]]:
    """Every step's record but what depends on the clock."""
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [{k: v for k, v in r.items() if k not in CLOCK} for r in records if "loss" in r]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return records


def completed(out: Path, status: int, output: str) -> list[dict[str, float]]:
    assert status == 0, output[-4000:]
    assert json.loads((out / "run_status.json").read_text())["status"] == "completed", output[-3000:]
    return numbers(out)


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Two ranks on this machine, started by no launcher at all."""
    out = tmp_path_factory.mktemp("reference") / "run"
    return completed(out, *finish(start_warm(options(data, out), ranks=2)))


@pytest.mark.full
def test_by_deepspeed_on_one_host(data: Path, reference: list, tmp_path: Path) -> None:
    assert completed(tmp_path / "run", *finish(start(options(data, tmp_path / "run"), ranks=2))) == reference


def by_torchrun(port: int, *more: str) -> list[str]:
    return [*more, "--master-port", str(port), SCRIPT, "--run.expected-world-size", "2"]


@pytest.mark.full
def test_by_torchrun(data: Path, reference: list, tmp_path: Path) -> None:
    """On the port that torchrun was given, on which its own store listens; none of ours is looked for."""
    out, port = tmp_path / "run", free_port()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", *by_torchrun(port), *options(data, out)],
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert completed(out, *finish(process)) == reference
    assert not list(tmp_path.glob("sycoca_ds_*")) and not list(Path("/dev/shm").glob(f"deepspeed_*_{port}_*"))


@pytest.mark.full
def test_by_slurm_through_a_time_limit(data: Path, reference: list, tmp_path: Path) -> None:
    """Slurm's warning comes in the middle: the run saves, goes back into the queue, and goes on when it is started again."""
    out = tmp_path / "run"
    job = sbatch(tmp_path, *options(data, out))
    assert wait_until(lambda: (out / "metrics.jsonl").exists() or job.poll() is not None, LIMIT)
    for pid in alive_in(job.pid):
        if b"srun" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGUSR1)
    status, output = finish(job)
    stopped = json.loads((out / "run_status.json").read_text())
    assert status == 75 and stopped["status"] == "preempted" and 0 < stopped["step"] < STEPS, output[-3000:]
    assert (tmp_path / "requeued").read_text().split() == [str(JOB)] and len(sealed(out / "checkpoints")) == 1
    status, output = finish(sbatch(tmp_path, *options(data, out)))
    assert f"resumed from {out}/checkpoints/step_{stopped['step']:08d}" in output
    assert completed(out, status, output) == reference
    assert (tmp_path / "requeued").read_text().split() == [str(JOB)]


def test_by_slurm_an_error_ends_all_tasks_and_is_not_queued_again(tmp_path: Path) -> None:
    status, output = finish(sbatch(tmp_path, "--run.out", str(tmp_path / "run")))
    assert status not in (0, 75) and output.count("error: data.train is not set") == 1 and "Traceback" not in output, output[-3000:]
    assert not (tmp_path / "requeued").exists()


@needs_two_hosts
@pytest.mark.parametrize("stage", ["zero1", pytest.param("zero3", marks=pytest.mark.full)])
def test_over_two_hosts(stage: str, data: Path, reference: list, tmp_path: Path) -> None:
    """The literal command, over pdsh, ssh and sshd, from a login's environment."""
    out = tmp_path / "run"
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        status, output = hosts.finish(hosts.deepspeed(SCRIPT, *options(data, out, stage)))
    if stage != "zero1":
        here = tmp_path / "here"
        reference = completed(here, *finish(start_warm(options(data, here, stage), ranks=2)))
    assert completed(out, status, output) == reference
    assert "node-a: ranks: 2 on node-a (1), node-b (1)" in output


@needs_two_hosts
@pytest.mark.full
def test_by_torchrun_over_two_hosts(data: Path, reference: list, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with two_hosts(tmp_path / "hosts") as hosts:
        hosts.write_settings()
        both = [
            hosts.start(
                node,
                "torchrun",
                "--nnodes",
                "2",
                "--node-rank",
                str(n),
                *by_torchrun(29500, "--master-addr", hosts.a.address),
                *options(data, out),
            )
            for n, node in enumerate((hosts.a, hosts.b))
        ]
        for process in both:
            process.wait(LIMIT)
        results = [hosts.finish(process) for process in both]
    assert [status for status, _ in results] == [0, 0], results
    assert completed(out, *results[0]) == reference


@needs_two_hosts
@pytest.mark.full
def test_a_name_that_the_other_host_does_not_reach_is_refused_in_seconds(data: Path, tmp_path: Path) -> None:
    """Debian's /etc/hosts. gloo would listen at 127.0.1.1 and the ranks look for each other for half an hour; one line of one rank
    says so, and with the line in .deepspeed_env that it names the same launch trains."""
    with two_hosts(tmp_path / "hosts", debian=True) as hosts:
        hosts.accept_keys()
        hosts.write_settings()
        status, output = hosts.finish(hosts.deepspeed(SCRIPT, *options(data, tmp_path / "run")), limit=120)
        assert status == 2 and output.count("its own name resolves to 127.0.1.1") == 1 and "Traceback" not in output, output[-3000:]
        mend = output.split("write ")[1].split(" into .deepspeed_env")[0]
        hosts.write_settings(mend)
        status, output = hosts.finish(hosts.deepspeed(SCRIPT, *options(data, tmp_path / "run")))
    completed(tmp_path / "run", status, output)

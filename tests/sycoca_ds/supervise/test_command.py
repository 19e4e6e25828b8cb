"""Real trainings under the supervisor: what is done to them costs a restart, and no number changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.command_line import CALLED
from data_pipeline.errors import UserError
from data_pipeline.lock import only_one
from sycoca_ds.engine.checkpoint.seal import sealed
from sycoca_ds.supervise import ledger, orphans
from sycoca_ds.supervise.command import parse
from sycoca_ds.supervise.verdict import read_history
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import LIMIT, finish, free_port, start_warm
from tests.worlds.processes.warm_launch import listening
from tests.worlds.processes.watching import wait_until
from tests.worlds.trainings.hurting import hurt
from tests.worlds.trainings.training import SMALL, losses

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 10
WATCH = ["--watch.beat-seconds", "0.5", "--watch.silent-seconds", "8", "--watch.step-seconds", "20"]
PATIENCE = ["--back-off-seconds", "0.1", "--grace-seconds", "10", "--silent-seconds", "20"]
ONCE = "if rank == {rank} and n == {n} and not os.path.exists({flag!r}): open({flag!r}, 'w').close(); {fault}"
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


def options(data: Path, out: Path, *more: str) -> list[str]:
    lasting = ["--optim.steps", str(STEPS), "--run.checkpoint-every", "3", "--run.ds-config", "ds_configs/zero1.json"]
    return [*SMALL, "--data.train", str(data), "--run.out", str(out), *lasting, *WATCH, *more]


def supervise(words: list[str], *own: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "sycoca_ds.supervise", *PATIENCE, *own, "--", *words],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def deepspeed(ranks: int, script: Path | str, words: list[str]) -> list[str]:
    return [DEEPSPEED, "--num_accelerators", str(ranks), "--master_port", str(free_port()), str(script), *words]


def once(folder: Path, *faults: tuple[int, int, str]) -> Path:
    """train.py in which each (rank, call, fault) is done once, one a start."""
    texts = [ONCE.format(rank=rank, n=n, flag=str(folder / f"flag_{k}"), fault=f) for k, (rank, n, f) in enumerate(faults)]
    chain = [texts[0], *(f"if os.path.exists({str(folder / f'flag_{k}')!r}) and n == {faults[k + 1][1]}:\n        {text}"
                         for k, text in enumerate(texts[1:]))]  # fmt: skip
    return hurt(folder, "\n    ".join(reversed(chain)))


def steps_done(out: Path) -> int:
    return (out / "metrics.jsonl").read_text().count('"loss"') if (out / "metrics.jsonl").exists() else 0


def history(out: Path) -> list[dict[str, Any]]:
    return read_history(out / "supervise/history.jsonl")


def nothing_left(out: Path) -> bool:
    return not orphans.marked((out / "supervise/id").read_text().strip() + ".")


@pytest.fixture(scope="module")
def undisturbed(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    status, output = finish(start_warm(options(data_set, out), ranks=2))
    assert status == 0, output[-3000:]
    return out


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with listening(tmp_path_factory.mktemp("door")) as environment:
        yield environment


def test_a_killed_rank_costs_a_restart(data_set: Path, tmp_path: Path, undisturbed: Path, warm: dict[str, str]) -> None:
    """The night adds DeepSpeed's launcher, and what else can happen to a run."""
    out = tmp_path / "run"
    script = once(tmp_path, (1, 5, "os.kill(os.getpid(), 9)"))
    launch = [sys.executable, "-m", "tests.worlds.processes.warm_launch", "2"]
    status, output = finish(supervise([*launch, str(script), *options(data_set, out)], **warm))
    assert status == 0, output[-5000:]
    told = history(out)
    assert [(record["class"], record["rank"], record["action"]) for record in told] == [
        ("killed", 1, "RESTART"),
        ("completed", None, "DONE"),
    ]
    assert (told[0]["host"], told[0]["before"], told[0]["after"]) == (os.uname().nodename, None, 3)
    assert json.loads((out / "verdict.json").read_text()) == told[-1]
    assert losses(out, STEPS) == losses(undisturbed, STEPS)
    lines = ledger.read_ledger(out)
    assert [line.first for line in lines] == [1, 4] and lines[-1].kept == STEPS
    assert sum(ledger.shares(lines).values()) == pytest.approx(sum(line.total + line.down for line in lines))
    assert "2 attempts in" in output and "step 5/10" in output, "the command's output is shown"
    assert "step 5/10" not in (out / "supervise/attempt_0001.log").read_text() and "Fatal" not in output
    assert "resumed from" in (out / "supervise/attempt_0002.log").read_text()


@pytest.mark.full
def test_killed_ranks_and_launchers_cost_a_restart_each(data_set: Path, tmp_path: Path, undisturbed: Path) -> None:
    """Through DeepSpeed's launcher: kill -9 of a rank, then of launch.py, whose ranks save first."""
    out = tmp_path / "run"
    script = once(tmp_path, (1, 5, "os.kill(os.getpid(), 9)"), (0, 2, "os.kill(os.getppid(), 9); time.sleep(3)"))
    process = supervise(deepspeed(2, script, options(data_set, out)))
    status, output = finish(process)
    assert status == 0, output[-5000:]
    told = history(out)
    assert [record["class"] for record in told] == ["killed", "killed", "completed"]
    assert [record["action"] for record in told] == ["RESTART", "RESTART", "DONE"]
    assert (told[0]["rank"], told[0]["host"], told[0]["before"], told[0]["after"]) == (1, os.uname().nodename, None, 3)
    assert told[1]["rank"] is None and "the launcher is gone" in told[1]["evidence"][0] and told[1]["progress"]
    assert json.loads((out / "verdict.json").read_text()) == told[-1]
    assert losses(out, STEPS) == losses(undisturbed, STEPS)
    assert nothing_left(out)
    lines = ledger.read_ledger(out)
    assert [line.first for line in lines] == [1, 4, told[1]["after"] + 1] and lines[-1].kept == STEPS
    assert sum(ledger.shares(lines).values()) == pytest.approx(sum(line.total + line.down for line in lines))
    assert "3 attempts in" in output and "step 5/10" in output, "the command's output is shown"
    assert "step 5/10" not in (out / "supervise/attempt_0001.log").read_text() and "Fatal" not in output
    assert "resumed from" in (out / "supervise/attempt_0002.log").read_text()


@pytest.mark.full
def test_a_stopped_rank_and_an_exception_cost_a_restart_each(
    data_set: Path, tmp_path: Path, undisturbed: Path, warm: dict[str, str]
) -> None:
    out = tmp_path / "run"
    script = once(tmp_path, (1, 5, "os.kill(os.getpid(), signal.SIGSTOP)"), (0, 3, "raise LookupError('nobody expects that')"))
    launch = [sys.executable, "-m", "tests.worlds.processes.warm_launch", "2"]
    status, output = finish(supervise([*launch, str(script), *options(data_set, out)], **warm))
    assert status == 0, output[-5000:]
    told = history(out)
    assert [(record["class"], record["rank"]) for record in told] == [("hang", 1), ("error", 0), ("completed", None)]
    assert "gives no sign of life" in told[0]["evidence"][0]
    assert told[1]["evidence"] == [f"rank 0 on {os.uname().nodename}: LookupError: nobody expects that"] and told[1]["step"] == 6
    assert losses(out, STEPS) == losses(undisturbed, STEPS)


@pytest.mark.full
def test_a_lone_rank_that_is_stopped_has_nobody_else_to_say_so(data_set: Path, tmp_path: Path, warm: dict[str, str]) -> None:
    out = tmp_path / "run"
    script = once(tmp_path, (0, 5, "os.kill(os.getpid(), signal.SIGSTOP)"))
    words = [sys.executable, "-m", "tests.worlds.processes.warm_launch", "1", str(script), *options(data_set, out)]
    status, output = finish(supervise(words, "--silent-seconds", "8", **warm))
    assert status == 0, output[-5000:]
    told = history(out)
    assert [(record["class"], record["rank"], record["status"]) for record in told] == [("hang", 0, None), ("completed", None, 0)]
    assert "rank 0 gives no sign of life" in told[0]["evidence"][0]


def test_an_error_of_the_user_stops_at_once(data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [sys.executable, "sycoca_ds/train.py", *options(data_set, out, "--data.train", str(tmp_path / "nowhere"))]
    status, output = finish(supervise(words))
    assert status == 2, output[-5000:]
    (told,) = history(out)
    assert (told["class"], told["action"]) == ("user error", "STOP") and "nowhere: no such folder" in told["evidence"][0]
    assert output.count("supervise: attempt") == 2, "its begin and its end"


@pytest.mark.parametrize(
    "words, said",
    [
        (["nosuch", "sycoca_ds/train.py"], "'nosuch' is no command here"),
        ([DEEPSPEED, "sycoca_ds/train.py", "--run.owt", "x"], "unknown option --run.owt; did you mean --run.out?"),
        ([DEEPSPEED], "names no training script"),
        ([], "there is no command"),
    ],
)
def test_what_could_not_work_is_refused_before_anything_starts(words: list[str], said: str) -> None:
    status, output = finish(supervise(words))
    assert status == 2 and output.startswith("error: ") and said in output and output.count("\n") == 1


def test_a_command_without_its_dashes_is_told_of_them() -> None:
    """And not that each of its words is an unknown option."""
    with pytest.raises(UserError, match="^there is no command after `--`: expected `python -m sycoca_ds.supervise "):
        parse([DEEPSPEED, "sycoca_ds/train.py", "--data.train", "x"])
    with pytest.raises(SystemExit):
        parse(["--help"])


def test_it_is_called_as_the_user_has_called_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CALLED, "python -m sycoca_ds.supervise", "sycoca supervise")
    with pytest.raises(UserError) as error:
        parse(["--dry-run"])
    assert str(error.value) == "there is no command after `--`: expected `sycoca supervise [options] -- sycoca train ...`"


@pytest.mark.full
def test_it_is_stopped_killed_and_goes_on(data_set: Path, tmp_path: Path, undisturbed: Path) -> None:
    """SIGTERM is passed on. After kill -9 of the supervisor the training saves and ends by itself; the next one books that."""
    out = tmp_path / "run"
    words = deepspeed(2, hurt(tmp_path, "time.sleep(0.7)"), options(data_set, out, "--run.checkpoint-every", "100"))
    process = supervise(words)
    assert wait_until(lambda: steps_done(out) >= 2, LIMIT)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75 and "asked to stop: the training saves first" in output, output[-5000:]
    first = json.loads((out / "run_status.json").read_text())
    assert first["status"] == "preempted" and sealed(out / "checkpoints")[0].name == f"step_{first['step']:08d}"
    assert nothing_left(out)

    process = supervise(words)
    assert wait_until(lambda: steps_done(out) >= first["step"] + 2, LIMIT)
    process.kill()
    assert wait_until(lambda: json.loads((out / "run_status.json").read_text())["status"] == "preempted", 60)
    assert wait_until(lambda: nothing_left(out), 60)
    process.communicate()
    stopped = json.loads((out / "run_status.json").read_text())
    assert stopped["step"] > first["step"] and sealed(out / "checkpoints")[0].name == f"step_{stopped['step']:08d}"

    status, output = finish(supervise(words))
    assert status == 0, output[-5000:]
    told = history(out)[-2:]
    assert [record["class"] for record in told] == ["preempted", "completed"]
    assert told[0]["evidence"][0] == "its supervisor was killed" and told[0]["after"] == stopped["step"]
    assert losses(out, STEPS) == losses(undisturbed, STEPS)
    lines = ledger.read_ledger(out)[-2:]
    assert lines[0].first == first["step"] + 1 and lines[0].reached == stopped["step"] and lines[0].total > 1


@pytest.mark.full
def test_a_second_signal_ends_everything_at_once(data_set: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "run", tmp_path / "in_step_3"
    script = hurt(tmp_path, f"n == 3 and (open({str(there)!r}, 'w'), time.sleep(1000))")
    process = supervise([sys.executable, str(script), *options(data_set, out, "--watch.step-seconds", "500")])
    assert wait_until(there.exists, LIMIT)
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert status == 130 and time.monotonic() - began < 15, output[-3000:]
    assert nothing_left(out) and history(out)[-1]["action"] == "DONE"


def test_a_run_has_one_supervisor(tmp_path: Path) -> None:
    (tmp_path / "supervise").mkdir()
    with only_one(tmp_path / "supervise/.lock", "held"):
        status, output = finish(supervise([DEEPSPEED, "sycoca_ds/train.py", "--run.out", str(tmp_path)]))
    assert status == 2 and f"error: {tmp_path} has a supervisor already" in output


@pytest.mark.full
def test_a_training_that_someone_else_started_is_left_alone(data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    other = start_warm(options(data_set, out), ranks=2, script=hurt(tmp_path, "time.sleep(0.5)"))
    assert wait_until(lambda: (out / "heartbeats/rank_00001.json").exists(), LIMIT)
    status, output = finish(supervise([DEEPSPEED, "sycoca_ds/train.py", *options(data_set, out)]))
    assert status == 2 and "is in use: process" in output, output[-3000:]
    status, output = finish(other)
    assert status == 0, output[-3000:]

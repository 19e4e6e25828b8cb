"""DeepSpeed's runner as `sycoca train` becomes it: at a Ctrl-C it waits for the ranks, without a traceback, and has a status."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from sycoca_ds.cli import deepspeed_runner
from sycoca_ds.cli.deepspeed_runner import RUN, several_hosts, status_of
from sycoca_ds.engine.ranks.launcher import RUNNERS
from sycoca_ds.launch.processes import train_script
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import LIMIT
from tests.worlds.processes.terminal import OnTerminal
from tests.worlds.processes.watching import members, wait_until
from tests.worlds.trainings.training import SMALL

RANK = """
import json, signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: (asked.append(1), signal.signal(signal.SIGINT, signal.SIG_DFL)))
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as StopSignal
if sys.argv[4] == "now":
    open(sys.argv[1], "w").write('{"status": "running"}')
print("a rank trains", flush=True)
while not asked:
    time.sleep(0.05)
print("a rank saves", flush=True)
time.sleep(float(sys.argv[2]))
open(sys.argv[1], "w").write(json.dumps({"status": sys.argv[3], "time": time.time()}))
"""
RUNNER = """
import json, subprocess, sys, time
def main():
    before, begins, *rank = json.loads(sys.argv[1])
    print("a runner starts", flush=True)
    time.sleep(before)
    imports = "import time; print('a launcher imports', flush=True); time.sleep(100)"
    run = subprocess.check_call if begins == "ssh" else subprocess.call
    launch = [] if begins == "ssh" else ["deepspeed.launcher.launch"]
    run([sys.executable, "-c", *(rank or [imports, *launch])])  # as the real one, which dies of a Ctrl-C in this line
    sys.exit(1)
"""


@pytest.fixture
def runner(tmp_path: Path):
    """Starts the runner around one rank in place of DeepSpeed's: (seconds before the rank, seconds of its save, how it ends; "": a
    launcher that never comes to start one; whether the rank says at once that it has begun)."""
    (tmp_path / "deepspeed/launcher").mkdir(parents=True)
    for name, text in (("__init__.py", ""), ("launcher/__init__.py", ""), ("launcher/runner.py", RUNNER)):
        (tmp_path / "deepspeed" / name).write_text(text)
    run = tmp_path / "run"
    run.mkdir()
    (run / "run_status.json").write_text('{"status": "preempted", "step": 4}')

    def start(before: float, save: float, ended: str, begins: str = "now") -> OnTerminal:
        words = [sys.executable, deepspeed_runner.__file__]
        rank = [RANK, str(run / "run_status.json"), str(save), ended, begins]
        words.append(json.dumps([before, begins, *(rank if ended else [])]))
        return OnTerminal(words, tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path), RUN: str(run)})

    return start


@pytest.mark.parametrize("ended, status", [("preempted", 75), ("completed", 0), ("failed", 1)])
def test_a_ctrl_c_waits_for_the_ranks_and_the_status_is_what_became_of_the_run(runner, ended: str, status: int) -> None:
    process = runner(0, 0.5, ended)
    assert wait_until(lambda: "a rank trains" in process.said, 60)
    process.ctrl_c()
    assert process.finish(60) == status, process.said
    assert "a rank saves" in process.said and "Traceback" not in process.said
    assert not members(process.pid)


def test_a_second_ctrl_c_ends_at_once_and_an_old_status_is_none(runner) -> None:
    process = runner(0, 100, "preempted")
    assert wait_until(lambda: "a rank trains" in process.said, 60)
    process.ctrl_c()
    assert wait_until(lambda: "a rank saves" in process.said, 60)
    process.ctrl_c()
    assert process.finish(60) == 130 and "Traceback" not in process.said, process.said


def test_a_ctrl_c_before_there_are_ranks_starts_none(runner) -> None:
    process = runner(100, 0, "preempted")
    assert wait_until(lambda: "a runner starts" in process.said, 60)
    process.ctrl_c()
    assert process.finish(60) == 130, process.said
    assert "interrupted; give the same command again" in process.said and "Traceback" not in process.said
    assert "a rank trains" not in process.said


def test_a_ctrl_c_while_the_launcher_imports_is_one_line(runner) -> None:
    process = runner(0, 0, "")
    assert wait_until(lambda: "a launcher imports" in process.said, 60)
    process.ctrl_c()
    assert process.finish(60) == 130 and not members(process.pid), process.said
    assert process.said.count("interrupted; give the same command again") == 1 and "Traceback" not in process.said


def test_a_rank_that_can_save_but_has_not_begun_is_waited_for(runner) -> None:
    """Its start may take minutes: the weights of a large model, a checkpoint."""
    process = runner(0, 1, "preempted", begins="later")
    assert wait_until(lambda: "a rank trains" in process.said, 60)
    process.ctrl_c()
    assert process.finish(60) == 75, process.said
    assert "a rank saves" in process.said and "interrupted" not in process.said


def test_what_the_runner_says_of_a_ctrl_c_is_not_said(runner) -> None:
    """As of ssh, which it asks whether a host is there."""
    process = runner(0, 0, "", begins="ssh")
    assert wait_until(lambda: "a launcher imports" in process.said, 60)
    process.ctrl_c()
    assert process.finish(60) == 130, process.said
    assert process.said.count("interrupted; give the same command again") == 1 and "Traceback" not in process.said


def test_several_hosts_have_the_runners_own_answer(tmp_path: Path) -> None:
    script = train_script()
    (tmp_path / "one").write_text("a slots=2\n")
    (tmp_path / "two").write_text("a slots=2\nb slots=2\n")
    one, two = ["--hostfile", str(tmp_path / "one")], ["--hostfile", str(tmp_path / "two")]
    assert not several_hosts(["--num_accelerators", "2", script]) and not several_hosts([*one, script, *two])
    for words in (two, [*one, "--force_multi"], [*two, "--include", "a@b"]):
        assert several_hosts([*words, script, "--preset", "tiny"])


def test_without_a_ctrl_c_the_status_is_the_launchers() -> None:
    old, preempted = {"status": "completed", "time": 1}, {"status": "preempted", "time": 2}
    for launch in (0, 1, 2, 75, 76):
        assert status_of(launch, 0, old, preempted) == launch
    assert status_of(1, 1, old, preempted) == 75
    assert status_of(1, 1, preempted, preempted) == 130, "of an earlier launch"
    assert status_of(76, 1, old, {"status": "running"}) == 76, "the watchdog ended it meanwhile"
    assert Path(deepspeed_runner.__file__).name in RUNNERS, "by which ranks know their launcher"


@pytest.mark.slow
@pytest.mark.parametrize("by", [pytest.param("terminal", marks=pytest.mark.full), "kill"])
def test_a_training_is_stopped_by_ctrl_c(by: str, data_set: Path, tmp_path: Path) -> None:
    """With DeepSpeed's own runner and launcher, which print no traceback and wait until the ranks have saved. A terminal sends it
    to all processes, `kill -INT` to the first alone."""
    out = tmp_path / "run"
    words = [sys.executable, "-m", "sycoca_ds", "train", "--num_accelerators", "1", *SMALL, "--data.train", str(data_set)]
    words += ["--run.out", str(out), "--optim.steps", "5000", "--run.checkpoint-every", "5000"]
    process = OnTerminal(words, REPOSITORY, {**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text(), LIMIT), process.said[-3000:]
    process.ctrl_c() if by == "terminal" else os.kill(process.pid, signal.SIGINT)
    assert process.finish(LIMIT) == 75, process.said[-3000:]
    assert "Traceback" not in process.said and process.said.count("Ctrl-C: saving after this step") == (by == "terminal")
    assert json.loads((out / "run_status.json").read_text())["status"] == "preempted" and not members(process.pid)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 2, 4, 6, 8, 10, 12, 15, 18, 22])
def test_a_ctrl_c_at_any_moment_of_the_start_is_one_line(seconds: float, data_set: Path, tmp_path: Path) -> None:
    """In the imports of the command, of the runner, of launch.py, of the rank, while it compiles and meets; or it has begun."""
    words = [sys.executable, "-m", "sycoca_ds", "train", "--num_accelerators", "1", *SMALL, "--data.train", str(data_set)]
    words += ["--run.out", str(tmp_path / "run"), "--optim.steps", "5000", "--run.checkpoint-every", "5000"]
    process = OnTerminal(words, REPOSITORY, {**os.environ, "PYTHONPATH": str(REPOSITORY)})
    time.sleep(seconds)
    process.ctrl_c()
    status = process.finish(LIMIT)
    begun = "Ctrl-C: saving after this step" in process.said
    assert status == (75 if begun else 130) and "Traceback" not in process.said, process.said[-3000:]
    assert begun or process.said.count("interrupted; ") == 1, process.said[-3000:]
    assert not members(process.pid)

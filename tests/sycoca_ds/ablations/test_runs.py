"""Real processes of `python -m sycoca_ds.ablations`: nothing outlives it, killed and started again it ends with the same tables."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from data_pipeline.lock import only_one
from sycoca_ds.launch.processes import guarded
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import questions_on, write_labels
from tests.worlds.processes.warm_launch import listening
from tests.worlds.processes.watching import mentioning, wait_until

STARTER = """
import os, sys, time
from pathlib import Path
from data_pipeline.lock import only_one
from sycoca_ds.launch.processes import guarded
import signal
folder = Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(100)', {!r}])".format(str(folder))
with only_one(folder / ".lock", "taken") as lock:
    with guarded([sys.executable, "-c", child, str(folder)], folder / "log", folder / "progress", (lock,)) as process:
        time.sleep(100)
"""


@pytest.mark.parametrize("number, status", [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_no_process_outlives_its_starter(number: int, status: int, tmp_path: Path) -> None:
    """Child and grandchild are gone after a kill, and the lock with them."""
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], cwd=REPOSITORY)
    try:
        assert wait_until(lambda: len(mentioning(str(tmp_path))) == 4, 60), "starter, guard, child, grandchild"
        starter.send_signal(number)
        assert starter.wait(30) == status
        with only_one(tmp_path / ".lock", "taken"):
            assert wait_until(lambda: not mentioning(str(tmp_path)), 1)
    finally:
        for process in mentioning(str(tmp_path)):
            os.kill(process, signal.SIGKILL)


def test_a_folder_in_use_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_pipeline.lock.LOCK_SECONDS", 0.2)
    path = tmp_path / "folder/.lock"
    with only_one(path, ""), pytest.raises(UserError, match="another command"), only_one(path, "another command"):
        pass


def test_a_guarded_command_gives_its_status_and_its_output(tmp_path: Path) -> None:
    code = "import os; print('hello'); raise SystemExit(7)"
    with (
        only_one(tmp_path / ".lock", "taken") as lock,
        guarded([sys.executable, "-c", code], tmp_path / "log", tmp_path / "p", (lock,)) as process,
    ):
        assert process.wait(30) == 7
    assert (tmp_path / "log").read_text().splitlines()[1:] == ["hello"]


STEPS = 4
SMALL = (
    "--preset tiny --model.image.image-size 24 --model.image.patch-size 6 --model.image.layers 1 --model.text.layers 1 "
    "--model.text-decoder.layers 1 --model.image-decoder.layers 1 --optim.global-batch-size 16 --optim.warmup-steps 2 "
    f"--optim.steps {STEPS} --data.lanes 4 --data.workers 0 --run.log-every 1 --run.checkpoint-every 2 "
    "--run.ds-config ds_configs/zero0.json"
).split()


def command(out: Path, data: Path, labels: Path, launch: str, *more: str) -> list[str]:
    rows = ["--table", "5", "7", "--rows", "table5.itc", "table5.sycoca", "table7.lambda1.0", "--seeds", "0", "1"]
    where = ["--out", str(out), "--launch", launch, "--evaluate", f"world={data},{labels}"]
    return [sys.executable, "-m", "sycoca_ds.ablations", *rows, *where, *more, "--", *SMALL, "--data.train", str(data)]


def finish(words: list[str], seconds: float) -> tuple[int, str]:
    """(status, output) of a command from the repository's folder; it is killed, with all it started, if it takes longer."""
    done = subprocess.run(words, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds)
    return done.returncode, done.stdout


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """{file: (time of change, bytes)} of the small files of a run folder that a second training would touch."""
    names = [
        "metrics.jsonl",
        "run_status.json",
        "config.json",
        f"checkpoints/step_{STEPS:08d}/state.json",
        "eval/world/results.json",
    ]
    return {name: ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()) for name in names}


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_in_the_middle_the_same_command_ends_with_the_same_tables(data_set: Path, tmp_path: Path) -> None:
    labels = write_labels(data_set, tmp_path / "labels.json")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    status, output = finish(command(whole, data_set, labels, "python"), 280)
    assert status == 0, output[-3000:]
    page, record = (whole / "ablations.md").read_text(), json.loads((whole / "ablations.json").read_text())

    # numbers as evaluate.py left them, both rows of one configuration from one training
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == ["table5.itc", "table5.sycoca"]
    for name in ("table5.itc", "table5.sycoca"):
        for seed in ("0", "1"):
            results = json.loads((whole / name / f"seed_{seed}" / "eval/world/results.json").read_text())
            metrics = {task: results["tasks"][task]["metrics"] for task in ("retrieval", "classification")}
            numbers = record["runs"][name][seed]["numbers"]
            assert numbers["world mTR"] == metrics["retrieval"]["mTR"] and numbers["world mIR"] == metrics["retrieval"]["mIR"]
            assert numbers["world top-1"] == metrics["classification"]["top1"]
            assert results["checkpoint"]["step"] == STEPS and list(results["tasks"]) == ["retrieval", "classification"]
            saved = parse_options(["--config", str(whole / name / f"seed_{seed}" / "config.json")])
            assert saved.run.seed == int(seed) and saved.model.family == {"table5.itc": "clip", "table5.sycoca": "sycoca"}[name]
            (start,) = record["runs"][name][seed]["starts"]
            assert start["seconds"] > 0 and start["versions"]["torch"] == torch.__version__ and start["hardware"]["cpu"]
    values = [statistics.fmean(record["runs"]["table5.itc"][seed]["numbers"].values()) for seed in "01"]
    assert f"| {statistics.fmean(values):.1f} +- {statistics.stdev(values):.1f} | 30.2 |" in page
    both = [line.split("|", 3)[3] for line in page.splitlines() if line.startswith(("| `table5.sycoca`", "| `table7.lambda1.0`"))]
    assert len(both) == 2 and both[0] == both[1]

    # three runs as they are there; the last is trained by the launcher, and all is killed after its first checkpoint
    others, killed = ("table5.itc/seed_0", "table5.sycoca/seed_0", "table5.itc/seed_1"), out / "table5.sycoca/seed_1"
    for name in others:
        shutil.copytree(whole / name, out / name)
    before = {name: content(out / name) for name in others}
    words = command(out, data_set, labels, "deepspeed --num_accelerators 1")
    runner = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_until((killed / "checkpoints/step_00000002/state.json").exists, 120), (killed / "logs/training.log").read_text()
    finally:
        runner.kill()
        runner.wait()
    assert wait_until(lambda: not mentioning(str(out)), 5), mentioning(str(out))
    shutil.rmtree(killed / f"checkpoints/step_{STEPS:08d}", ignore_errors=True)  # in case it got that far
    (killed / "run_status.json").write_text(json.dumps({"status": "running", "step": 2, "steps": STEPS}))

    status, output = finish(words, 200)
    assert status == 0 and "4 of 4 runs trained and evaluated" in output, output[-3000:]
    assert "resumed from" in (killed / "logs/training.log").read_text()
    assert len(json.loads((killed / "ablation.json").read_text())["starts"]) == 2
    assert {name: content(out / name) for name in others} == before, "finished runs are left alone"
    assert json.loads((out / "ablations.json").read_text())["tables"] == record["tables"]
    assert drop_notes((out / "ablations.md").read_text()) == drop_notes(page)
    assert not mentioning(str(out))


def drop_notes(page: str) -> str:
    """Without the note that two commits were used, should somebody have committed meanwhile."""
    return "\n".join(line for line in page.splitlines() if not line.startswith(("## Notes", "- The trainings were made")))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_what_fails_is_named_and_the_rest_goes_on(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that breaks: without --keep-going the command ends there with the reason; with it the next row is
    trained and the table says what is missing. Trained in a process that has imported everything."""
    code = (
        "import os, sys\n"
        "if 'clip' in sys.argv: sys.exit('error: no such accelerator')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'tests.worlds.processes.warm_launch', '0', *sys.argv[1:]])\n"
    )
    (tmp_path / "launch.py").write_text(code)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "sycoca_ds.ablations", "--rows", "table5.itc", "table5.coca", "--out", str(out)]
    words += ["--launch", f"python {tmp_path / 'launch.py'}", "--evaluate", f"w={data_set}"]
    train = ["--", *SMALL, "--data.train", str(data_set)]
    status, output = finish([*words, *train], 120)
    assert status == 2 and not (out / "table5.coca").exists(), output[-2000:]
    reason = "training ended with status 1: no such accelerator"
    assert f"error: table5.itc seed 0: {reason}; see {out / 'table5.itc/seed_0/logs/training.log'}" in output
    with listening(tmp_path) as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        asked = str(questions_on(data_set, tmp_path / "q.json"))
        answering = ["--answering", "2", "--answering-files", asked, "--questions", f"w={asked}"]
        status, output = finish([*words, "--keep-going", *answering, *train], 250)
    assert status == 1 and "failed: table5.itc seed 0" in output, output[-2000:]
    page = (out / "ablations.md").read_text().splitlines()
    assert "| `table5.itc` | ITC | 0 | - | - | - | - | - | 30.2 |" in page
    assert f"- {reason}: `table5.itc` (w mTR, w mIR) seed 0" in page
    assert [line for line in page if line.startswith("- a model without a text decoder neither captions nor answers: `table5.itc`")]
    (line,) = [line for line in page if line.startswith("| `table5.coca`")]
    assert line.startswith("| `table5.coca` | CoCa: ITC + IC | 1 | ") and "-" not in line.split("|")[4]
    answers = json.loads((out / "table5.coca/seed_0/questions/eval/w/results.json").read_text())["tasks"]["vqa"]["metrics"]
    numbers = json.loads((out / "ablations.json").read_text())["runs"]["table5.coca"]["0"]["numbers"]
    assert numbers["w after questions accuracy"] == answers["accuracy"] > 0

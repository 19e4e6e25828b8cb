"""`python -m sycoca_ds.runs`: what it says of a run that was trained, and of those that stand otherwise."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from data_pipeline.command_line import parse_command
from data_pipeline.errors import UserError
from sycoca_ds.engine.ranks.process_table import whoami
from sycoca_ds.runs.command import RunsCommand, age
from sycoca_ds.runs.reading import find_runs, read_run
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import make_run
from tests.worlds.trainings.training import in_turn, losses, with_validation

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trainings of one rank, of other seeds; the second has an evaluation."""
    folder = tmp_path_factory.mktemp("trained")
    runs = folder / "runs"
    options = [*with_validation(data_set), "--run.ds-config", "ds_configs/zero1.json"]
    refused = in_turn(
        folder / "turn",
        data_set,
        [(runs / "a", options), (runs / "deep" / "b", [*options, "--optim.lr", "0.0005"])],
        ranks=1,
    )
    assert refused == ["", ""]
    write_results(runs / "deep/b/eval", 40.5)
    return runs


def write_results(out: Path, recall: float) -> None:
    out.mkdir(parents=True)
    tasks = {"retrieval": {"metrics": {"i2t_r1": recall, "t2i_r1": None}, "intervals": {"i2t_r1": [recall - 1, recall + 1]}}}
    results = {
        "checkpoint": {"step": 4, "digest": "x", "ema_decay": None},
        "data": {"folder": "held-out", "images": 9},
        "tasks": tasks,
    }
    (out / "results.json").write_text(json.dumps(results))


def run(*words: object) -> int:
    return parse_command(Annotated[RunsCommand, tyro.conf.OmitArgPrefixes], list(map(str, words)), "test").run()


def table(out: str) -> list[dict[str, str]]:
    header, *rows = [line.split() for line in out.splitlines()]
    return [dict(zip(header, row, strict=False)) for row in rows]


def test_a_training_is_told_as_its_own_files_tell_it(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(trained, "--json", "--sort", "run") == 0
    one, other = json.loads(capsys.readouterr().out)
    assert (one["path"], other["path"]) == (str(trained / "a"), str(trained / "deep/b"))
    last = losses(trained / "a")[-1]
    assert one["losses"] == {name: last[name] for name in ("loss", "itc", "ic", "mim")}
    assert (one["status"], one["step"], one["steps"], one["checkpoint"], one["family"]) == ("completed", 4, 4, 4, "sycoca")
    assert {"loss", "i2t_r1"} <= one["validation"].keys() and one["evaluations"] == []
    (evaluation,) = other["evaluations"]
    assert evaluation["metrics"] == {"retrieval.i2t_r1": 40.5} and evaluation["intervals"] == {"retrieval.i2t_r1": [39.5, 41.5]}

    assert run(trained, "--sort", "loss") == 0
    rows = table(capsys.readouterr().out)
    assert [row["run"] for row in rows] == sorted(("a", "deep/b"), key=lambda name: losses(trained / name)[-1]["loss"])
    by_name = {row["run"]: row for row in rows}
    assert by_name["deep/b"]["retrieval.i2t_r1"] == "40.5" and by_name["a"]["retrieval.i2t_r1"] == "-"
    assert run(trained, "--sort", "retrieval.i2t_r1") == 0
    assert [row["run"] for row in table(capsys.readouterr().out)] == ["deep/b", "a"]
    assert run(trained, "--sort", "retrieval.i2t_r1", "--reverse") == 0
    assert [row["run"] for row in table(capsys.readouterr().out)] == ["deep/b", "a"], "a run without the number stays last"
    assert run(trained, "--metrics", "validation/i2t_r1") == 0
    assert {row["validation/i2t_r1"] for row in table(capsys.readouterr().out)} != {"-"}


def test_names_and_age_rise_and_numbers_fall(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, family, step, old in (("b", "sycoca", 3, 50), ("a", "clip", 9, 5000), ("c", "coca", 5, 500)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"format": 1, "model": {"family": family}}))
        status = {"status": "completed", "step": step, "steps": 9, "time": time.time() - old}
        (folder / "run_status.json").write_text(json.dumps(status))
        os.utime(folder / "run_status.json", (time.time() - old,) * 2)
    for column, order in (("run", "abc"), ("model", "acb"), ("step", "acb"), ("age", "bca")):
        for words, wanted in (((), order), (("--reverse",), order[::-1])):
            assert run(tmp_path, "--sort", column, *words) == 0
            assert "".join(row["run"] for row in table(capsys.readouterr().out)) == wanted, (column, words)


def test_where_configurations_differ(trained: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(trained, "--differences", "--sort", "run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["field", "a", "deep/b"]
    found = {row[0]: row[1:] for row in rows[1:]}
    assert found.keys() == {"optim.lr", "run.out"} and found["optim.lr"][1] == "0.0005"
    with pytest.raises(UserError, match="--differences: 1 run"):
        run(trained / "a", "--differences")


def test_how_a_run_stands(tmp_path: Path) -> None:
    """By its process, where it is of this machine; else by its signs of life."""
    folder = make_run(tmp_path / "run")
    assert read_run(folder).status == "unknown" and read_run(folder).losses == pytest.approx(
        {"loss": 9 / 7, "itc": 5 / 7, "ic": 3 / 7, "mim": 1 / 7}
    )
    for status in ("completed", "failed", "preempted"):
        (folder / "run_status.json").write_text(json.dumps({"status": status, "step": 5, "steps": 9, "time": 1e9}))
        assert read_run(folder).status == status and (read_run(folder).step, read_run(folder).steps) == (5, 9)
    (folder / "run_status.json").write_text(json.dumps({"status": "running", "step": 5}))
    assert read_run(folder).status == "gone", "no process holds it"
    owner = {**whoami(), "id": "x", "beat": 1, "since": "now"}
    for change, status in (
        ({}, "running"),
        ({"began": 1}, "gone"),
        ({"pid": 2**30}, "gone"),
        ({"boot": "another", "host": "elsewhere"}, "running"),
    ):
        (folder / "running.json").write_text(json.dumps(owner | change))
        assert read_run(folder).status == status, change
    os.utime(folder / "running.json", (1e9, 1e9))
    assert read_run(folder).status == "silent"
    (folder / "run_status.json").write_text("{torn")
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_run(folder).losses == {"loss": 2.5} and read_run(folder).status == "unknown"


def test_what_is_no_run_is_passed_over_and_what_is_asked_wrongly_is_said(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x/y/z/deeper").mkdir(parents=True)
    shutil.copytree(trained / "a", tmp_path / "x/y/z/deeper/a")
    assert find_runs(tmp_path) == [] and find_runs(tmp_path / "x") == [] and find_runs(tmp_path / "x/y/z/deeper/a") != []
    for words, said in (
        ((tmp_path / "no",), "no such folder"),
        ((tmp_path,), "no run in it"),
        ((trained, "--sort", "los"), "--sort los: no such column; did you mean loss?"),
        ((trained, "--metrics", "retrieval.i2t_r2"), "--metrics retrieval.i2t_r2: no run has it; did you mean retrieval.i2t_r1?"),
        ((trained, "--status", "failed"), "no run is failed; there are 2 completed"),
        (
            (trained, "--status", "donee"),
            "--status donee: no such choice; .*expected one of running, completed, preempted, failed, ",
        ),
    ):
        with pytest.raises(UserError, match=said):
            run(*words)
    assert [age(seconds) for seconds in (5, 65, 7200, 90000)] == ["5 s", "1 min", "2 h", "1 d"]


def test_it_needs_no_torch(trained: Path) -> None:
    code = (
        "import sys\nfrom sycoca_ds.runs.command import main\nsys.argv[1:] = sys.argv[2:]\nmain()\n"
        "assert not {'torch', 'deepspeed'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "runs", str(trained)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "completed" in done.stdout, done.stderr

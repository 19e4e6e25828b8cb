"""`--run.profile`: which ranges there are, and what a trace of real steps holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.monitoring.profiling import Profile, profiled_steps
from sycoca_ds.engine.ranks.runtime import Runtime
from tests.worlds.processes.launching import finish, start_warm
from tests.worlds.trainings.training import SMALL, STEPS

ALONE = Runtime(0, 0, 1, torch.device("cpu"), 1)


@pytest.mark.parametrize(
    "text, said",
    [
        ("10", "expected FIRST:LAST"),
        ("a:b", "expected FIRST:LAST"),
        ("1:2:3", "expected FIRST:LAST"),
        ("-1:2", "expected FIRST:LAST"),
        ("", "expected FIRST:LAST"),
        ("0:3", "from 1 on"),
        ("5:4", "LAST not below it"),
        ("1:101", "at most 100 steps"),
        ("9:21", "expected steps of the run, which has 20"),
    ],
)
def test_what_is_no_range_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(UserError, match="run.profile = ") as error:
        profiled_steps(text, 20)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_range_has_both_ends() -> None:
    assert profiled_steps("10:15", 15) == (10, 15) and profiled_steps("3:3") == (3, 3)


def trace_of(run: Path, asked: str, first_step: int, steps: int = 8) -> list[dict] | None:
    """Events of the trace of a run whose step n multiplies matrices n times; None: no trace."""
    profile = Profile(asked, run, ALONE, first_step, steps)
    x = torch.randn(64, 64)
    for step in range(first_step + 1, steps + 1):
        for _ in range(step):
            x @ x
        profile.after(step)
    files = list((run / "profile").glob("*")) if (run / "profile").exists() else []
    return json.loads(files[0].read_text())["traceEvents"] if files else None


@pytest.mark.parametrize("asked, first_step, products", [("3:5", 0, 12), ("1:2", 0, 3), ("8:8", 0, 8), ("6:6", 5, 6)])
def test_the_trace_holds_these_steps_and_no_others(
    asked: str, first_step: int, products: int, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    events = trace_of(tmp_path, asked, first_step)
    assert sum(event.get("name") == "aten::mm" for event in events) == products
    said = capsys.readouterr().out
    (file,) = (tmp_path / "profile").iterdir()
    assert str(file) in said and file.name.endswith(".trace.json")
    row = next(line for line in said.splitlines() if line.endswith("aten::mm"))
    first, last = map(int, asked.split(":"))
    assert float(row.split()[3]) == pytest.approx(products / (last - first + 1), abs=0.05)


def test_a_trace_that_cannot_be_written_costs_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "profile").write_text("in its place")
    profile = Profile("1:2", tmp_path, ALONE, 0, 3)
    profile.after(1)
    profile.after(2)
    said = capsys.readouterr().out
    assert "profile of steps 1 to 2, rank 0: NOT written ([Errno 17] File exists" in said and "operation (CPU time" in said


def test_a_run_that_is_past_the_range_says_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert trace_of(tmp_path, "3:5", 4) is None
    assert "run.profile = 3:5: the run is at step 4 already, nothing is traced" in capsys.readouterr().out


def test_a_real_run_leaves_a_trace_and_its_ten_largest_costs(data_set: Path, tmp_path: Path) -> None:
    options = [
        *SMALL,
        "--data.train",
        str(data_set),
        "--run.out",
        str(tmp_path / "run"),
        "--run.ds-config",
        "ds_configs/zero0.json",
    ]
    status, output = finish(start_warm([*options, "--run.profile", f"2:{STEPS}"], ranks=0))
    assert status == 0, output[-3000:]
    lines = output.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith(f"profile of steps 2 to {STEPS}, rank 0: "))
    shares = [float(line.split()[1]) for line in lines[at + 2 : at + 12]]
    assert shares == sorted(shares, reverse=True) and shares[0] > 5 and sum(shares) <= 100.1
    events = json.loads(Path(lines[at].split(": ", 1)[1]).read_text())["traceEvents"]
    assert {"aten::addmm", "aten::_foreach_norm"} & {event.get("name") for event in events}
    status, output = finish(start_warm([*options, "--run.profile", "4:2"], ranks=0))
    assert status == 2 and "error: run.profile = 4:2: expected FIRST from 1 on" in output and "Traceback" not in output

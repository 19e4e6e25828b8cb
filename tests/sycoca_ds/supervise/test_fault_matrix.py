"""A sample of benchmarks/fault_matrix.py: some faults of every sort in one run, and no number of it changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import REPOSITORY

SAMPLE = ("sigkill", "sigsegv", "flipped_gradient", "kill_before_seal", "flipped_bit", "clock_jump", "dead_worker")


def matrix(out: Path, *more: str, patience: float) -> tuple[int, str]:
    words = [sys.executable, "benchmarks/fault_matrix.py", "--out", str(out), "--patience", str(patience), *more]
    done = subprocess.run(words, cwd=REPOSITORY, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sample_of_the_matrix(tmp_path: Path) -> None:
    more = ["--faults", str(len(SAMPLE)), "--per-run", str(len(SAMPLE)), "--ranks", "2", "--steps-between", "5", "--kinds", *SAMPLE]
    status, output = matrix(tmp_path, *more, patience=2)
    assert status == 0, output
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["faults"], found["not done"], found["equal"], found["runs"]) == (len(SAMPLE), 0, 1, 1), output
    assert found["right"] == len(SAMPLE) and set(found["kinds"]) == set(SAMPLE), output
    assert found["attempts"] == 6, "five of the seven end an attempt"
    before = (tmp_path / "run_000/result.json").stat().st_mtime_ns
    assert matrix(tmp_path, *more, patience=2)[0] == 0
    assert (tmp_path / "run_000/result.json").stat().st_mtime_ns == before, "what is there is not done again"


@pytest.mark.full
@pytest.mark.timeout(6 * 3600)
def test_the_matrix(tmp_path: Path) -> None:
    """All of it: 200 faults, 95 % of the classes right, every curve that of an undisturbed run."""
    status, output = matrix(tmp_path, "--faults", "200", patience=2)
    assert status == 0, output

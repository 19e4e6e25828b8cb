"""A plain `pip install .`: what the programs need stands in site-packages, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.worlds import REPOSITORY


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages with the project in it, not editable, built from a copy of the sources."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("sycoca_ds", "data_pipeline", "tests", "ds_configs", "hostfiles"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", site, source]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return site


def test_every_file_of_the_packages_is_installed_and_no_test(installed: Path) -> None:
    def files(root: Path) -> set[str]:
        found = (path for name in ("sycoca_ds", "data_pipeline") for path in (root / name).rglob("*") if path.is_file())
        policies = {f"sycoca_ds/ds_configs/{path.name}" for path in (root / "sycoca_ds/ds_configs").iterdir()}
        return {str(path.relative_to(root)) for path in found if "__pycache__" not in path.parts} | policies

    assert files(installed) == files(REPOSITORY)
    assert {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")} == {"sycoca_ds", "data_pipeline"}


@pytest.mark.slow
def test_training_from_any_folder_finds_the_default_policy(installed: Path, data_set: Path, tmp_path: Path) -> None:
    """It is read before the weights that this command lacks."""
    words = ["-m", "sycoca_ds.train", "--preset", "tiny", "--data.train", str(data_set), "--run.weights", "nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2 and "error: run.weights = nowhere does not exist" in done.stderr, done.stderr[-3000:]


@pytest.mark.full
def test_from_any_folder_it_names_the_policies_that_are_installed(installed: Path, data_set: Path, tmp_path: Path) -> None:
    words = ["-m", "sycoca_ds.train", "--preset", "tiny", "--data.train", str(data_set), "--run.weights", "nowhere"]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run([sys.executable, *words, "--run.ds-config", "zero3"], cwd=tmp_path, env=environment, capture_output=True)
    assert b"run.ds-config = zero3: no such file (shipped: ds_configs/zero0.json, " in done.stderr


RECORDS = """#!/bin/sh
if [ "$1 $2" = "-m venv" ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; else echo "ran $*"; fi
"""


def test_what_make_install_costs_is_said_before_and_pip_is_not_silent_in_the_minutes_of_it(tmp_path: Path) -> None:
    """With a Python that writes down what it is asked to do."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "python").write_text(RECORDS)
    (tmp_path / "python").chmod(0o755)
    words = ["make", "install", f"PYTHON={tmp_path}/python", "VENV=environment"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and (tmp_path / "environment/.installed").exists(), done.stderr
    lines = done.stdout.splitlines()
    said = next(n for n, line in enumerate(lines) if line.startswith("installing torch") and "2 to 9 minutes and 2.1 GB" in line)
    ran = [line for line in lines[said:] if line.startswith("ran ")]
    assert ran == ["ran -m pip install --quiet --upgrade pip", "ran -m pip install -e .[all]", "ran -m sycoca_ds.engine.operators"]
    assert "2.7 GB to download" in lines[said + 1] and "2.1 GB" in (REPOSITORY / "README.md").read_text().split("```sh")[0]

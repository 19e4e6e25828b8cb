"""A plain `pip install .`: what the programs need stands in site-packages, and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import REQUIRED, run_command
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


PROGRAMS = {
    **{
        f"-m {path.parent.relative_to(REPOSITORY).as_posix().replace('/', '.')}": ()
        for path in sorted(REPOSITORY.glob("*/**/__main__.py"))
        if path.parts[len(REPOSITORY.parts)] in ("data_pipeline", "sycoca_ds")
    },
    "-m data_pipeline": ("report",),
    "-m sycoca_ds.data": ("inspect",),
    "-m sycoca_ds.eval": ("datasets",),
    "-m sycoca_ds.inference": ("caption",),
    **{f"sycoca_ds/{name}.py": () for name in ("train", "evaluate", "export")},
    "-m sycoca_ds.train": (),
    "-m sycoca_ds.engine.operators": (),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_outside_the_environment_a_line_says_so(program: str) -> None:
    """Python without site-packages, as it is where the environment is not active."""
    words = [sys.executable, "-S", *program.split(), *PROGRAMS[program]]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert re.fullmatch(
        rf"error: (tyro|numpy|torch) is not installed for {re.escape(sys.executable)}: activate the environment "
        r"\(`\. .venv/bin/activate` in the project's folder\); if there is none yet, `make install` makes it, or .*\n",
        done.stderr,
    )


def test_all_programs_are_among_them() -> None:
    assert len(PROGRAMS) == 16 and "-m sycoca_ds.launch" in PROGRAMS


def test_modules_whose_absence_means_that_are_those_that_pyproject_requires() -> None:
    lists = re.findall(r"^(dependencies|data|train|eval) = \[(.*?)^\]", (REPOSITORY / "pyproject.toml").read_text(), re.M | re.S)
    required = {name.lower() for _, lines in lists for name in re.findall(r'^ +"([\w.-]+)', lines, re.M)} - {"sycoca-ds"}
    assert len(lists) == 4
    owners = importlib.metadata.packages_distributions()
    assert {owner.lower().replace("_", "-") for name in REQUIRED for owner in owners[name]} == required


@pytest.mark.parametrize("name", ["nunpy", "data_pipeline.nothing", "sycoca_ds.nothing"])
def test_a_module_that_we_misspell_is_no_error_of_the_user(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: importlib.import_module(name))


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

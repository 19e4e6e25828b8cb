"""`sycoca doctor`: what facts mean, and that the facts are those of this machine."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sycoca_ds.doctor import lines
from sycoca_ds.doctor.command import text
from sycoca_ds.doctor.facts import Package, packages
from sycoca_ds.doctor.lines import Line, all_lines
from tests.worlds import REPOSITORY

GOOD = {
    "python": "3.11.7",
    "processor": "x",
    "cores": 8,
    "gpus": [["A100", 81920, 10], ["A100", 81920, 10]],
    "folder": "/runs",
    "disk_gib": 500.0,
    "shm_gib": 60.0,
    "look": {
        "installed": {
            "torch": "2.13.0",
            "gpus_of_torch": 2,
            "cuda": "13.0",
            "nccl": "2.28.9",
            "deepspeed": "0.19.8",
            "numpy": "2.0",
        },
        "operators": [{"name": "cpu_adam", "folder": "/x", "state": "ready"}],
        "problems": {},
    },
    "packages": [Package("torch", ">=2.8,<2.14", "train", "2.13.0+cpu"), Package("pyspark", ">=3.5,<5", "spark", "4.0.0")],
    "programs": {"c++": "g++ 12", "ninja": "1.13", "java": "openjdk 17", "ssh": "OpenSSH", "pdsh": "pdsh-2.34"},
    "java_home": None,
    "imghdr": True,
    "proxies": [],
    "files": (65536, 65536),
    "memory_gib": 400.0,
}
EVERYTHING = ("data", "train", "eval", "explore")


def states(changes: dict, purposes: tuple[str, ...] = EVERYTHING) -> dict[str, Line]:
    """Lines that are not ok when some facts are others."""
    return {line.name: line for line in all_lines({**GOOD, **changes}, purposes, 10.0) if line.state != "ok"}


def looked(**changes: object) -> dict:
    return {"look": {**GOOD["look"], **changes}}


def test_nothing_is_red_where_nothing_is_missing() -> None:
    assert states({}) == {}
    names = [line.name for line in all_lines(GOOD, EVERYTHING, 10.0)]
    assert len(names) == len(set(names)) == 20 and {"NCCL", "DeepSpeed's operators", "open files", "/dev/shm"} <= set(names)


@pytest.mark.parametrize(
    "changes, name, state, said, mend",
    [
        ({"python": "3.13.0"}, "Python", "fail", "Python 3.13", "make an environment"),
        (
            {"packages": [Package("torch", ">=2.8,<2.14", "train", "2.7.1")]},
            "packages, train",
            "fail",
            "torch>=2.8,<2.14 (2.7.1)",
            "pip install 'sycoca-ds[train]'",
        ),
        (
            {"packages": [Package("flask", ">=3.1,<4", "explore", None), Package("waitress", ">=3,<4", "explore", "3.0.2")]},
            "packages, explore",
            "fail",
            "flask>=3.1,<4 (not installed)",
            "pip install 'sycoca-ds[explore]'",
        ),
        ({"look": {"error": "longer than 120 s"}}, "torch, DeepSpeed", "fail", "longer than 120 s", "make install"),
        (looked(problems={"installed": "ImportError: libcuda"}), "torch, DeepSpeed", "fail", "libcuda", "pip install"),
        (
            looked(installed={**GOOD["look"]["installed"], "gpus_of_torch": 0}),
            "CUDA",
            "fail",
            "the driver has 2 GPUs",
            "CUDA",
        ),
        (looked(installed={**GOOD["look"]["installed"], "nccl": None}), "NCCL", "fail", "torch has none", "install a torch"),
        ({"gpus": []}, "CUDA", "warn", "no GPU: training runs on 8 cores", "nothing"),
        ({"gpus": [["A100", 81920, 60000]] * 2}, "GPU memory", "warn", "GPU 0: 60000 of 81920 MiB", "nvidia-smi"),
        (
            looked(operators=[{"name": "cpu_adam", "folder": "/x", "state": "not compiled"}]),
            "DeepSpeed's operators",
            "warn",
            "cpu_adam: not compiled",
            "sycoca_ds.engine.operators",
        ),
        (
            looked(operators=[{"name": "cpu_adam", "folder": "/x", "state": "no ninja on PATH"}]),
            "DeepSpeed's operators",
            "fail",
            "no ninja",
            "install g++",
        ),
        ({"programs": {**GOOD["programs"], "pdsh": None}}, "pdsh", "warn", "one machine only", "install pdsh"),
        ({"programs": {**GOOD["programs"], "java": None}}, "java", "warn", "no METEOR", "Java 17"),
        ({"programs": {**GOOD["programs"], "java": None}}, "Spark", "warn", "no Java: DuckDB curates", "sycoca-ds[spark]"),
        ({"proxies": ["http"]}, "network", "warn", "http_proxy", "--proxy none"),
        ({"disk_gib": 0.5}, "disk", "fail", "0.5 GiB free in /runs, 10 wanted", "make room"),
        ({"disk_gib": 5.0}, "disk", "warn", "5.0 GiB free", "make room"),
        ({"shm_gib": 0.06}, "/dev/shm", "fail", "0.06 GiB free in /dev/shm, 0.25 wanted", "--shm-size"),
        ({"memory_gib": 0.5}, "memory", "fail", "0.5 GiB can be had", "limit of the container"),
        ({"files": (256, 4096)}, "open files", "warn", "256 a process (at most 4096)", "ulimit -n 1024"),
        ({"files": (64, 512)}, "open files", "fail", "64 a process", "ulimit -n 512"),
    ],
)
def test_what_is_missing_is_said_with_what_to_do(changes: dict, name: str, state: str, said: str, mend: str) -> None:
    line = states(changes)[name]
    assert line.state == state and said in line.said and mend in line.mend


def test_only_what_a_purpose_needs_is_looked_at() -> None:
    without_java = {"programs": dict.fromkeys(GOOD["programs"])}
    assert states(without_java, ("train",)).keys() == {"c++", "ninja", "ssh", "pdsh"}
    assert states(without_java, ("eval",)).keys() == {"java"}
    assert "torch, DeepSpeed" not in {line.name for line in all_lines({**GOOD, "look": {}}, ("data",), 10.0)}
    assert not {"files", "memory"} & states({"files": (lines.ANY, lines.ANY)}).keys()


def test_requirements_are_held_against_what_is_installed() -> None:
    found = packages(
        [
            "numpy>=1.26,<3",
            'torch<2; extra == "train"',
            'no-such-package>=7; extra == "data"',
            'sycoca-ds[train]; extra == "eval"',
            'for-the-past>=1; python_version < "3" and extra == "data"',
        ]
    )
    assert [(package.name, package.extra, package.fits) for package in found] == [
        ("numpy", "", True),
        ("torch", "train", False),
        ("no-such-package", "data", False),
    ]
    assert found[1].version == importlib.metadata.version("torch") and found[2].version is None


def test_the_text_has_what_to_do_below_each_and_a_sum() -> None:
    shown = text([Line("a", "ok", "fine"), Line("bc", "fail", "broken", "mend it"), Line("d", "warn", "odd", "look")], False)
    assert shown.splitlines() == [
        "ok    a   fine",
        "FAIL  bc  broken",
        "          -> mend it",
        "warn  d   odd",
        "          -> look",
        "",
        "1 red, 1 to know of",
    ]


def test_it_asks_this_machine(tmp_path: Path) -> None:
    """What data needs; a red line is status 1."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-m", "sycoca_ds", "doctor", "--for", "data", "--out", str(tmp_path), "--json"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    record = json.loads(done.stdout)
    said = {line["name"]: line["said"] for line in record["lines"]}
    assert said["Python"] == platform.python_version() and record["ok"] == (done.returncode == 0)
    assert said["disk"].endswith(str(tmp_path)) and shutil.which("java") is None or "java" in said
    few = ["bash", "-c", f"ulimit -n 128; exec {' '.join(words)}"]
    done = subprocess.run(few, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not json.loads(done.stdout)["ok"] and "128 a process" in done.stdout


@pytest.mark.full
def test_torch_and_deepspeed_are_imported_in_another_process(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-m", "sycoca_ds", "doctor", "--for", "train", "--json", "--out", str(tmp_path)]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    said = {line["name"]: line["said"] for line in json.loads(done.stdout)["lines"]}
    wanted = [importlib.metadata.version(name) for name in ("torch", "deepspeed")]
    assert said["torch, DeepSpeed"].startswith(f"torch {wanted[0].split('+')[0]}") and said["torch, DeepSpeed"].endswith(wanted[1])

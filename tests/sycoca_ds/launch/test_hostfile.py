"""Hostfiles and `.deepspeed_env`: read as DeepSpeed reads them, and what it would stumble over is named by line."""

from __future__ import annotations

import pwd
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.runner import _parse_hostfile

from data_pipeline.errors import UserError
from sycoca_ds.launch.hostfile import check_port, environment_files, exports, read_environment, read_hostfile, unquoted
from tests.worlds import REPOSITORY


@pytest.mark.parametrize(
    "text",
    [
        "a slots=8\nb slots=8\n",
        "# two nodes\n\n  node-1.cluster.local   slots=4   \nroot@10.0.0.2 slots=1 # the slow one\n",
        "b slots=2\r\na slots=16",
    ],
)
def test_hosts_are_those_that_deepspeed_reads(text: str, tmp_path: Path) -> None:
    (tmp_path / "hf").write_bytes(text.encode())
    hosts, problems = read_hostfile(tmp_path / "hf")
    assert not problems and hosts
    assert [(host.name, host.slots) for host in hosts] == list(_parse_hostfile(text.splitlines()).items())


def test_the_shipped_hostfile_is_right() -> None:
    hosts, problems = read_hostfile(REPOSITORY / "hostfiles/a100x16")
    assert not problems and sum(host.slots for host in hosts) == 16


@pytest.mark.parametrize(
    "line, words",
    [
        ("b slot=8", "hf:2: 'b slot=8': expected `NAME slots=NUMBER`"),
        ("b slots=8x", "expected `NAME slots=NUMBER`"),  # DeepSpeed reads 8
        ("b slots = 8", "expected `NAME slots=NUMBER`"),
        ("b", "expected `NAME slots=NUMBER`"),
        ("b slots=0", "a host without slots runs nothing"),
        ("b[1-2] slots=8", "pdsh takes b[1-2] for several hosts"),
        ("b,c slots=8", "pdsh takes b,c for several hosts"),
        ("a slots=4", "a stands there twice"),
    ],
)
def test_a_wrong_line_is_named_with_its_number_and_the_others_are_kept(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text(f"a slots=8\n{line}\nz slots=8\n")
    hosts, problems = read_hostfile(tmp_path / "hf")
    assert [host.name for host in hosts] == ["a", "z"]
    assert len(problems) == 1 and words in ": ".join(problems[0]), problems


def test_an_empty_and_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("# nothing yet\n")
    assert "names no host" in read_hostfile(tmp_path / "hf")[1][0][0]
    with pytest.raises(UserError, match="does not exist: mend the path"):
        read_hostfile(tmp_path / "no")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_hostfile(tmp_path / "bytes")


@pytest.mark.parametrize(
    "line, words",
    [
        ("# comment", "is a comment"),
        ("# A=comment", "is a comment"),  # DeepSpeed's command then is `export # A=comment; cd ...`: nothing runs
        ("", "is an empty line"),
        ("NCCL_DEBUG", "is no NAME=value"),
        ("export A=1", "is no NAME=value"),
        ('A="two words"', "DeepSpeed puts the value between double quotes"),
        ("A=$HOME/x", "DeepSpeed puts the value between double quotes"),
    ],
)
def test_lines_of_deepspeed_env_that_break_a_launch(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text(f"OMP_NUM_THREADS=1\n{line}\nA_B=x y=z\n")
    found, problems = read_environment(tmp_path / "env")
    assert found == {"OMP_NUM_THREADS": "1", "A_B": "x y=z"}
    assert len(problems) == 1 and f"env:2: {line!r}" in problems[0][0] and words in problems[0][0], problems


def test_the_shipped_example_is_right() -> None:
    found, problems = read_environment(REPOSITORY / "hostfiles/deepspeed_env.example")
    assert found and not problems


def test_the_file_beside_the_start_wins_over_the_one_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
        (folder / ".deepspeed_env").write_text("A=1\n")
        (folder / "other").write_text("A=2\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DS_ENV_FILE", raising=False)
    assert environment_files(here) == [home / ".deepspeed_env", here / ".deepspeed_env"]
    monkeypatch.setenv("DS_ENV_FILE", "other")
    assert environment_files(here) == [home / "other", here / "other"]


def test_a_user_without_a_home_has_no_file_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that is started under any number."""

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    (tmp_path / ".deepspeed_env").write_text("A=1\n")
    assert environment_files(tmp_path) == [tmp_path / ".deepspeed_env"]


def test_what_reaches_the_ranks() -> None:
    environment = {"PYTHONPATH": "/x", "OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO", "MLFLOW_X": "1"}
    found = exports(environment, Path("/here"), {"OMP_NUM_THREADS": "1"})
    assert found == {"PYTHONPATH": "/here:/x", "NCCL_DEBUG": "INFO", "MLFLOW_X": "1", "OMP_NUM_THREADS": "1"}


def test_paths_that_a_shell_takes_apart_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed writes `cd FOLDER; PYTHON -u ..` without quotes."""
    monkeypatch.setattr(sys, "executable", "/opt/py-3.11_x/bin/python")
    for name, sign in (("plain-1.0_b", None), ("my runs", " "), ("it's", "'"), ("a$b", "$"), ("a(b", "("), ("a&b", "&")):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        found = unquoted()
        assert bool(found) == (sign is not None) and all(f"takes {sign!r} for its own" in said for said, _ in found), name
    for port in (0, 65_536, -1):
        with pytest.raises(UserError, match=f"--master-port {port}: expected 1 to 65535"):
            check_port(port)
    check_port(29_500)

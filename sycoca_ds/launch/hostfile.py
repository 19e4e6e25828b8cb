"""What a launch is made of on the machine it starts from: the hostfile, and the variables that reach the ranks.

Both are read as DeepSpeed's runner reads them, and what that would misread, or stumble over, is named by line."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.errors import UserError

FORWARDED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")
"""How the names of those variables begin that DeepSpeed takes along by itself; NCCL's only with a CUDA build of torch."""
Problem = tuple[str, str]
"""(what is wrong and where, what to do)"""
LINE = re.compile(r"(\S+)\s+slots=(\d+)\s*(#.*)?")
NAME = re.compile(r"[A-Za-z_]\w*")
PLAIN_HOST = re.compile(r"[\w.@:-]+")
"""What pdsh does not take for a list or a pattern."""


@dataclass(frozen=True)
class Host:
    """A line of the hostfile."""

    name: str
    """As ssh knows it."""
    slots: int
    """Ranks on it: its GPUs, or processes on a machine without."""


def read_hostfile(path: Path) -> tuple[list[Host], list[Problem]]:
    """(hosts in the file's order, what is wrong). A line that is wrong gives no host.

    Raises:
        UserError: no such file, or no text.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(
            f"--hostfile {path} does not exist: mend the path (DeepSpeed would train on this machine alone); `sycoca launch files "
            "--out FOLDER` writes one to edit"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--hostfile {path} cannot be read ({error}): expected lines `NAME slots=NUMBER`") from error
    hosts: dict[str, Host] = {}
    problems = []
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        found, where = LINE.fullmatch(line), f"{path}:{number}: {line!r}"
        if found is None:
            problems.append((where, "expected `NAME slots=NUMBER`, one host a line"))
        elif not PLAIN_HOST.fullmatch(found[1]):
            problems.append((f"{where}: pdsh takes {found[1]} for several hosts", "write a line for each"))
        elif int(found[2]) == 0:
            problems.append((f"{where}: a host without slots runs nothing", "give it some, or leave it out"))
        elif found[1] in hosts:
            problems.append((f"{where}: {found[1]} stands there twice, which DeepSpeed refuses", "one line with all its slots"))
        else:
            hosts[found[1]] = Host(found[1], int(found[2]))
    if not hosts and not problems:
        problems.append((f"{path} names no host", "expected lines `NAME slots=NUMBER`"))
    return list(hosts.values()), problems


def whole_hostfile(path: Path) -> list[Host]:
    """The hosts of a file with which nothing is wrong. Raises `UserError` for the first thing that is."""
    hosts, problems = read_hostfile(path)
    if problems:
        raise UserError(": ".join(problems[0]))
    return hosts


def environment_files(folder: Path) -> list[Path]:
    """The files whose variables DeepSpeed gives every rank, later ones winning: one in the home, one in the folder of the start."""
    name = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
    home = os.path.expanduser("~")  # "~" itself where a container's user has none, as for DeepSpeed; Path.home() raises
    paths = dict.fromkeys([Path(home, name), folder / name])
    return [path for path in paths if path.is_file()]


def read_environment(path: Path) -> tuple[dict[str, str], list[Problem]]:
    """(variables, what is wrong) of a `.deepspeed_env`. DeepSpeed 0.19.8 ends in a traceback at a line without `=`, also an empty
    one, and hands a `#` on to the remote shell, for which the rest of the launch is then a comment."""
    found, problems = {}, []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        name, equals, value = (part.strip() for part in line.partition("="))
        where = f"{path}:{number}: {line!r}"
        if not equals or not NAME.fullmatch(name):
            kind = "a comment" if line.strip().startswith("#") else "an empty line" if not line.strip() else "no NAME=value"
            problems.append((f"{where} is {kind}, on which DeepSpeed stops or starts nothing", "take it out"))
        elif re.search(r"[\"'`$\\]", value):
            problems.append(
                (f"{where}: DeepSpeed puts the value between double quotes, for a shell", "no quotes, $, ` or \\ in it")
            )
        else:
            found[name] = value
    return found, problems


def exports(environment: Mapping[str, str], folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """What a rank on another host finds in its environment beyond what a login gives it there.

    Args:
        environment: that of the runner.
        folder: where it starts.
        files: the variables of `environment_files`.
    """
    own = {name: value for name, value in environment.items() if name.startswith(FORWARDED)}
    path = f"{folder}:{environment['PYTHONPATH']}" if "PYTHONPATH" in environment else str(folder)
    return {**own, "PYTHONPATH": path, **files}


def unquoted() -> list[tuple[str, str]]:
    """(what is wrong, what to do) of the folder of a start and of its Python, which DeepSpeed hands to a shell as they are."""
    found = []
    for what, path in (("this folder", os.getcwd()), ("this Python", sys.executable)):
        if sign := re.search(r"[^\w@%+=:,./~-]", path):
            said = f"{what}, {path!r}: the shell on the other hosts takes {sign[0]!r} for its own"
            found.append((said, "start by a path without it; a link will do"))
    return found


def check_port(port: int) -> None:
    """Raises `UserError` for what is none."""
    if not 0 < port < 1 << 16:
        raise UserError(f"--master-port {port}: expected 1 to 65535")

"""The completion scripts in the shells themselves."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.command_line import CALLED
from sycoca_ds.cli.completion import SHELLS, options_in, options_of, words_after
from sycoca_ds.cli.table import COMMANDS
from sycoca_ds.config import TrainConfig
from sycoca_ds.options import field_names
from sycoca_ds.presets import PRESETS

CASES = {
    "sycoca da": {"data"},
    "sycoca data tokenizer ": {"train", "import-clip"},
    "sycoca launch ch": {"check"},
    "sycoca train --preset paper-t": {"paper-tiny"},
    "sycoca train --preset tiny --model.masking.mim p": {"plain"},
    "sycoca train --preset tiny --data.tr": {"--data.train"},
    "sycoca data build --out x --sou": {"--source"},
    "sycoca data build --dedup u": {"url", "url_caption"},
    "sycoca eval --check": {"--checkpoint"},
    "sycoca eval compare --na": {"--names"},
    "sycoca train --incl": {"--include"},
    "sycoca train --excl": {"--exclude"},
    "sycoca train --master_p": {"--master_port"},
    "sycoca train --run.weights": {"--run.weights"},
    "sycoca plan --preset paper-t": {"paper-tiny"},
    "sycoca plan --model.masking.mim p": {"plain"},
    "sycoca plan --hostf": {"--hostfile"},
    "sycoca model paper-t": {"paper-tiny"},
    "sycoca model tiny coca_ViT-L": {"coca_ViT-L-14"},
    "sycoca completion z": {"zsh"},
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    known, folder = {name: options_of(name) for name in COMMANDS}, tmp_path_factory.mktemp("completion")
    paths = {shell: folder / f"sycoca.{shell}" for shell in SHELLS}
    for shell, path in paths.items():
        path.write_text(SHELLS[shell](words_after(), known))
    return paths


def test_bash_completes(scripts: dict[str, Path], tmp_path: Path) -> None:
    lines = [f"source {scripts['bash']}", "complete -p sycoca"]
    for line in CASES:
        words = line.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _sycoca; echo "${{COMPREPLY[@]}}"')
    done = subprocess.run(["bash", "--norc", "-c", "\n".join(lines)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    bound, *answers = done.stdout.splitlines()
    assert bound == "complete -o bashdefault -o default -F _sycoca sycoca"
    assert {line: set(answer.split()) for line, answer in zip(CASES, answers, strict=True)} == CASES


def typed(command: list[str], first: str, lines: list[str], folder: Path) -> list[str]:
    """What a shell on a terminal has made of each line after a TAB."""
    pid, handle = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["TERM"] = "dumb"
        os.execvp(command[0], command)

    def read_until(mark: str, seconds: float = 60.0) -> str:
        said, until = "", time.monotonic() + seconds
        while mark not in said and time.monotonic() < until:
            if select.select([handle], [], [], 0.1)[0]:
                said += os.read(handle, 65536).decode(errors="replace")
        return said

    found = []
    try:
        os.write(handle, f"{first}; echo rea''dy\n".encode())
        assert "ready" in read_until("ready")
        for line in lines:
            os.write(
                handle, f"{line}\t\x01echo '<\x05>'\n".encode()
            )  # to the beginning, to the end, so that the shell says the line
            found.append(read_until(">\r\n").rsplit("\n<", 1)[-1].split(">")[0].strip())
    finally:
        os.close(handle)
        os.waitpid(pid, 0)
    return found


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_tab_on_a_terminal_completes(shell: str, scripts: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    options = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    load = {"bash": "true", "zsh": "autoload -U compinit && compinit -u -D"}[shell]
    lines = {line: next(iter(words)) for line, words in CASES.items() if len(words) == 1}
    found = typed([shell, *options], f"{load}; source {scripts[shell]}", list(lines), tmp_path)
    assert found == [f"{line.rsplit(' ', 1)[0]} {word}" for line, word in lines.items()]


def test_fish_completes(scripts: dict[str, Path], tmp_path: Path) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    for line, words in CASES.items():
        code = f"source {scripts['fish']}; complete -C '{line}'"
        environment = {**os.environ, "HOME": str(tmp_path)}
        done = subprocess.run(["fish", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.stderr == "" and {answer.split("\t")[0] for answer in done.stdout.splitlines()} == words, line


def test_all_options_of_a_training_are_known() -> None:
    before = dict(CALLED), list(sys.argv), dict(os.environ)
    known = options_of("train")
    assert (CALLED, sys.argv, dict(os.environ)) == before
    assert {f"--{name}" for name in field_names(TrainConfig)} <= known.keys()
    assert known["--preset"] == tuple(PRESETS) and known["--run.precision"] == ("auto", "bf16", "fp32")
    assert {"--hostfile", "--num_accelerators", "--config", "--dry-run"} <= known.keys()


def test_planning_takes_the_options_of_a_run_and_none_of_its_launcher() -> None:
    plan = options_of("plan")
    assert {f"--{name}" for name in field_names(TrainConfig)} <= plan.keys() and plan["--preset"] == tuple(PRESETS)
    assert not {"--include", "--num_accelerators", "--run.weights."} & plan.keys()
    assert options_of("model") == {"": tuple(PRESETS), "--help": ()}


HELP = """
--run.weights starts a line of what is said of a command
  --run.weights. Here, too, it is said.
  -h, --help
  --one {None}|INT  Text.
        --not-this is text
  --two {a,b}
  --json, --no-json  More.
 [{x,y} ...]  Words.
"""


def test_options_are_told_from_what_is_said_of_them() -> None:
    assert options_in(HELP) == {"--help": (), "--one": (), "--two": ("a", "b"), "--json": (), "--no-json": (), "": ("x", "y")}


def test_the_command_prints_a_script() -> None:
    done = subprocess.run([sys.executable, "-m", "sycoca_ds", "completion", "tcsh"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "'bash', 'zsh', 'fish'" in done.stderr

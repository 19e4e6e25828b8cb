"""`sycoca`: names to functions, words and statuses through unchanged, help and usage errors before anything heavy is imported."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.command_line import CALLED, called
from data_pipeline.errors import UserError, leaves, run_command
from sycoca_ds import __version__
from sycoca_ds.cli import dispatch
from sycoca_ds.cli.table import COMMANDS, TABLE, Command, below
from tests.worlds import REPOSITORY

HEAVY = {
    *("torch", "deepspeed", "pandas", "numpy", "pyarrow", "duckdb", "cv2", "PIL", "matplotlib", "scipy", "sklearn", "img2dataset"),
    *("transformers", "tokenizers", "tensorboard", "pyspark", "rich.progress", "rich.console", "urllib3", "fsspec", "jinja2"),
    "typeguard",
}
"""None of which help or a usage error needs, and each of which takes a tenth of a second or more."""
ASKS = f"""
import contextlib, io, json, sys
from data_pipeline.errors import UserError
from sycoca_ds.cli.dispatch import find, start
from sycoca_ds.cli.table import COMMANDS
said, words = {{}}, sys.argv[1:]
for name in COMMANDS:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            status = start(*find([*name.split(), *words])[:1], COMMANDS[name], words)
        except SystemExit as stop:
            status = stop.code
        except UserError as error:
            status = 2
            print("error:", error, file=errors)
    said[name] = [status, out.getvalue(), errors.getvalue(), [module for module in {sorted(HEAVY)!r} if module in sys.modules]]
print(json.dumps(said))
"""


def answers(*words: str) -> dict[str, tuple[int, str, str, list[str]]]:
    """What every command answers to the same words, all in one fresh process: status, stdout, stderr, what is imported by then."""
    done = subprocess.run(
        [sys.executable, "-c", ASKS, *words],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str, str, list[str]]]:
    return answers("--help")


def test_help_of_every_command_has_usage_defaults_and_an_example_and_imports_nothing_heavy(helps: dict) -> None:
    assert len(helps) == len(COMMANDS) > 25
    for name, (status, text, errors, heavy) in helps.items():
        assert (status, errors, heavy) == (0, "", []), name
        assert f"usage: sycoca {name}" in text or name in ("watch",), text
        assert f"example:\n  sycoca {name} {COMMANDS[name].example}" in text and COMMANDS[name].example, name
        assert not re.search(r"usage: (python|sycoca_ds/)", text)


ROOMS = sorted(
    {"data_pipeline", *(".".join(path.relative_to(REPOSITORY).parts[:-1]) for path in REPOSITORY.glob("sycoca_ds/**/__main__.py"))}
)


@pytest.mark.parametrize("room", ROOMS)
def test_help_of_every_room_is_a_list_and_no_error(room: str) -> None:
    for word in ("--help", "-h"):
        done = subprocess.run([sys.executable, "-m", room, word], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), (room, word)
        assert "usage: " in done.stdout
    module = importlib.import_module(f"{room}.__main__")
    for name in getattr(module, "COMMANDS", {}):
        assert re.search(rf"^  {name} +\S", done.stdout, re.MULTILINE), name


def test_every_option_says_its_default_or_that_it_is_required(helps: dict) -> None:
    from sycoca_ds.cli.completion import options_in

    for name, (_, text, _, _) in helps.items():
        below_usage = text.split("show this help message and exit", 1)[1]
        options = [option for option in options_in(below_usage) if not re.match(r"--(\S+\.)?no-", option)]
        assert len(re.findall(r"\((default: |required)", " ".join(below_usage.split()))) >= len(options), (name, options)


def test_examples_name_options_that_there_are(helps: dict) -> None:
    from sycoca_ds.cli.completion import options_in

    train = options_in(helps["train"][1]).keys() | {"--data.train"}
    for name, command in COMMANDS.items():
        own, _, rest = f" {command.example}".partition(" -- ")
        known = options_in(helps[name][1]).keys() | (train if name == "plan" else set())
        assert {word for word in shlex.split(own) if word.startswith("--")} - {"--"} <= known, name
        assert {word for word in shlex.split(rest) if word.startswith("--")} - {"--"} <= train, name


def test_a_misspelt_option_is_one_line_and_imports_nothing_heavy() -> None:
    for name, (status, out, errors, heavy) in answers("--nonsense-option", "7").items():
        assert (status, heavy) == (2, []), (name, errors)
        assert errors.startswith("error: ") and errors.count("\n") == 1 and "Traceback" not in out + errors, (name, errors)


def test_every_name_leads_to_a_function() -> None:
    for name, command in COMMANDS.items():
        module, function = command.target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), name
        assert command.says and "\n" not in command.says and len(command.says) < 80, name


def test_the_overview_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = dispatch.overview().splitlines()
    for title, commands in TABLE.items():
        assert f"{title}:" in lines
        for word in {name.split()[0] for name in commands}:
            assert sum(line.startswith(f"  {word} ") for line in lines) == 1
    assert "compare" in next(line for line in lines if line.startswith("  eval ")) and all(len(line) <= 132 for line in lines)
    for words, status in (([], 2), (["--help"], 0), (["data"], 2), (["data", "-h"], 0)):
        with pytest.raises(SystemExit) as stopped:
            dispatch.find(words)
        assert stopped.value.code == status
        assert ("tokenizer import-clip" if words[:1] == ["data"] else "supervise") in capsys.readouterr().out


def test_help_is_a_word_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (([], dispatch.overview()), (["data"], dispatch.overview_of("data"))):
        with pytest.raises(SystemExit) as stopped:
            dispatch.find(["help", *words])
        assert stopped.value.code == 0 and capsys.readouterr().out == said + "\n"
    assert dispatch.find(["help", "eval", "compare"]) == ("eval compare", ["--help"])
    assert dispatch.find(["help", "train"]) == ("train", ["--help"])
    with pytest.raises(UserError, match="did you mean train"):
        dispatch.find(["help", "trian"])
    assert dispatch.HELP_WORD not in {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize(
    "words, said",
    [
        ("trian", "command 'trian': no such command; did you mean train? (expected one of demo, doctor, data, "),
        ("data bild --out x", "command 'bild': no such command; did you mean build? "),
        ("data tokenizer trian", "command 'tokenizer': no such command; did you mean tokenizer train? "),
        ("eval compar a b", "command 'compar': no such command; did you mean compare? (expected one of datasets, "),
        ("launch prnt", "did you mean print? (expected one of check, print, files; see sycoca launch --help)"),
    ],
)
def test_a_misspelt_command_names_the_nearest(words: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        dispatch.find(words.split())
    assert said in str(error.value)


def test_names_of_several_words_are_found_whole() -> None:
    assert dispatch.find(["data", "tokenizer", "train", "--data", "x"]) == ("data tokenizer train", ["--data", "x"])
    assert dispatch.find(["eval", "--data", "x"]) == ("eval", ["--data", "x"])
    assert dispatch.find(["eval", "compare", "a", "b"]) == ("eval compare", ["a", "b"])
    assert set(below("eval")) == {"datasets", "compare", "paper", "labels"}


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that writes down its words and ends as the first of them says."""
    (tmp_path / "probe_of_dispatch.py").write_text(
        "import json, os, sys\nfrom data_pipeline.command_line import called\n"
        "def main():\n"
        "    open('words.json', 'w').write(json.dumps([sys.argv, called('python -m probe deep'), called('python -m probed')]))\n"
        "    if sys.argv[1] == 'ctrl-c': raise KeyboardInterrupt\n    return int(sys.argv[1])\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(COMMANDS, "probe", Command("probe_of_dispatch:main", "", "", "python -m probe"))
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.delitem(CALLED, "python -m probe", raising=False)


@pytest.mark.usefixtures("probe")
@pytest.mark.parametrize("first, status", [("0", 0), ("1", 1), ("75", 75), ("143", 143), ("ctrl-c", 130)])
def test_words_go_in_and_the_status_comes_out_unchanged(first: str, status: int) -> None:
    words = [first, "a b", "", "*", "--x=1", "--", "--help", "$HOME"]
    assert run_command(lambda: dispatch.start("probe", COMMANDS["probe"], words)) == status
    given, inner, other = json.loads(Path("words.json").read_text())
    assert given == ["sycoca probe", *words] and (inner, other) == ("sycoca probe deep", "python -m probed")
    assert called("python -m probe") == "sycoca probe"


@pytest.mark.usefixtures("probe")
def test_an_interrupt_says_what_it_leaves_of_this_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kept, said in (("the tars", "interrupted; kept: the tars; "), ("", "interrupted; ")):
        command = Command("probe_of_dispatch:main", "", "", "python -m probe", kept=kept)
        assert run_command(lambda command=command: dispatch.start("probe", command, ["ctrl-c"])) == 130
        assert capsys.readouterr().err == f"{said}give the same command again\n"


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "module, words, work, name",
    [
        (
            "data_pipeline.__main__",
            "curate --metadata m --out o",
            "data_pipeline.catalogue.curate.CurateCommand.run",
            "data curate",
        ),
        ("data_pipeline.__main__", "report d", "data_pipeline.report.command.ReportCommand.run", "data report"),
        ("sycoca_ds.inference.__main__", "search d x --checkpoint c", "sycoca_ds.inference.search.SearchCommand.run", "search"),
        ("sycoca_ds.export", "run", "sycoca_ds.export.export", "export"),
        ("sycoca_ds.evaluate", "--checkpoint c --data d --out o", "sycoca_ds.evaluate.evaluate", "eval"),
        ("sycoca_ds.demo.command", "", "sycoca_ds.demo.command.demo", "demo"),
        ("sycoca_ds.ablations.__main__", "", "sycoca_ds.ablations.command.ablate", "ablations"),
    ],
)
def test_called_without_sycoca_it_says_the_same(
    module: str, words: str, work: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(work, interrupted)
    monkeypatch.setattr(sys, "argv", ["program", *words.split()])
    leaves("what another command keeps")
    assert run_command(importlib.import_module(module).main) == 130
    kept = COMMANDS[name].kept
    assert capsys.readouterr().err == f"interrupted; {f'kept: {kept}; ' if kept else ''}give the same command again\n"


def test_without_an_output_nothing_is_said_and_the_status_is_that_of_the_command() -> None:
    script = shlex.join([sys.executable, "-m", "sycoca_ds", "data", "verify", "--data", "nowhere"]) + " >&-"
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr, done.stderr


def test_a_reader_that_has_seen_enough_ends_it_with_141() -> None:
    words = shlex.join([sys.executable, "-m", "sycoca_ds", "train", "--help"])
    script = f"{words} | head -1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert int(done.stdout) == 128 + signal.SIGPIPE and done.stderr == ""


def test_the_program_from_another_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for words, status, said in ((["--version"], 0, f"sycoca {__version__}\n"), (["plann"], 2, "did you mean plan?")):
        done = subprocess.run(
            [sys.executable, "-m", "sycoca_ds", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == status and said in done.stdout + done.stderr

"""The command line: help, one-line errors with status 2, a folder of photographs as a catalogue."""

import dataclasses
import importlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import typeguard

from data_pipeline.__main__ import COMMANDS, parse
from data_pipeline.build import BuildCommand
from data_pipeline.catalogue.sources import SCHEMAS
from data_pipeline.command_line import option_names, parse_command
from data_pipeline.errors import UserError
from data_pipeline.files import write_json
from data_pipeline.report.funnel import group_failures, make_funnel
from data_pipeline.report.writing import report
from data_pipeline.shards.manifest import write_manifest
from data_pipeline.tokenizer.bpe import train
from data_pipeline.world.folder import parse_holdout, split_of, write_catalogues
from tests.worlds import REPOSITORY

pytestmark = pytest.mark.timeout(60)


def run(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "data_pipeline", *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"},
    )


@dataclasses.dataclass(frozen=True)
class Wordy:
    """A command whose own description is longer than a terminal of eighty columns is wide, so that it has to be
    broken somewhere else than here.

        an example --stays as it is, whatever its length, because it is to be copied --from the screen
    """

    size: int = 3
    """Text that stands on two lines of the source, the first longer than eighty columns allow, and
    goes on here."""


WORDS = "Text that stands on two lines of the source, the first longer than eighty columns allow, and goes on here."


@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_broken_once_at_the_terminals_width(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as stopped:
        parse_command(Wordy, ["--help"], "wordy")
    assert stopped.value.code == 0
    head, _, options = capsys.readouterr().out.partition("usage: wordy")
    lines = head.rstrip().split("\n")
    assert " ".join(lines[:2]).split() == " ".join(Wordy.__doc__.split("\n")[:2]).split() and len(lines[0]) > columns - 15
    assert lines[3] == "    an example --stays as it is, whatever its length, because it is to be copied --from the screen"
    lines = [re.sub(r"[^ -{}~]", " ", line).strip() for line in options.split("\n") if len(line) <= columns]
    first = next(number for number, line in enumerate(lines) if line.startswith("--size INT"))
    said = " ".join(" ".join(lines[first:-2]).split())
    assert said == f"--size INT {' '.join(WORDS.split())} (default: 3)"
    assert len(lines[first:-2]) == 2, "broken where the source is, too, there would be three of eighty columns"


ERRORS = {
    ("build", "--metadata", "none.parquet", "--out", "ds"): "error: --metadata none.parquet: no such file",
    ("verify", "--data", "none"): "no tars to verify; run first: python -m data_pipeline download --data none",
    ("download", "--data", "none"): "curate.json: not there; run first: python -m data_pipeline curate",
    ("report", "--data", "none"): "curate.json: not there",
    ("report",): "expected at least one data set folder",
    ("tokenizer", "train", "--data", "none", "--out", "t.json"): "no such folder; expected a data set folder",
    ("scenes", "--out", "w", "--trian", "5"): "--trian",
    ("scenes",): "--out",
    ("scenes", "--out", "w", "--train", "many"): "--train",
    ("scenes", "--out", "w", "--val", "0"): "--val 0: expected at least 1",
    ("curate", "--metadata", "x", "--out", "ds", "--source", "laion3b"): "laion2b",
    (
        "folder",
        "--images",
        ".",
        "--captions",
        "none.csv",
        "--out",
        "c",
        "--no-serve",
    ): "--captions none.csv: cannot be read",
    ("folder", "--images", "none", "--captions", "none.csv", "--out", "c"): "--images none: no such folder",
    (
        "folder",
        "--images",
        ".",
        "--captions",
        "c",
        "--out",
        "c",
        "--holdout",
        "val=2",
    ): "--holdout val=2: expected NAME=SHARE",
    ("dowload",): "command 'dowload': no such command; did you mean download? (expected one of scenes, folder",
    ("biuld", "--source", "cc12m"): "command 'biuld': no such command; did you mean build?",
    ("tokenizer", "tarin"): "command 'tokenizer': no such command; did you mean tokenizer train?",
    ("tokenizer", "importclip", "--out", "t.json"): "did you mean tokenizer import-clip?",
    ("tokeniser", "train"): "command 'tokeniser': no such command; did you mean tokenizer train?",
    ("tokenizer",): "did you mean tokenizer train?",
    ("makr", "/data/cc12m"): "did you mean mark?",
    ("qqq", "/data/cc12m"): "command 'qqq': no such command (expected",
}


@pytest.mark.parametrize("arguments", ERRORS, ids=" ".join)
def test_errors_are_one_line_and_status_2(arguments, capsys, monkeypatch, tmp_path):
    """In this process: what `run_command` would print. Two go through a process of their own below."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        parse(list(arguments)).run()
    assert ERRORS[arguments] in f"error: {caught.value}"
    assert "\n" not in str(caught.value) and str(caught.value).isascii()


COMPLAINTS = {
    ("scenes", "--out", "w", "--trian", "5"): "Unrecognized options: --trian, 5; Perhaps you meant: --train INT",
    ("scenes", "--out", "w", "--val", "many"): "Value error: Error parsing --val: invalid literal for int() with base 10: 'many'",
    ("report", "--data", "d", "--project-to", "2O"): "--project-to '2O': expected None or INT",
    ("scenes", "--xyz"): "Unrecognized options: --xyz; Required options: Missing from python -m data_pipeline scenes: --out PATH",
    ("scenes", "--ot", "w"): "Unrecognized options: --ot w; did you mean --out?; "
    "Required options: Missing from python -m data_pipeline scenes: --out PATH",
    ("scenes", "--ot=w"): "Unrecognized options: --ot=w; did you mean --out?; "
    "Required options: Missing from python -m data_pipeline scenes: --out PATH",
    ("scenes", "--out"): "Missing argument: Missing value for argument '--out'. Expected 1 values",
}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("arguments", COMPLAINTS, ids=" ".join)
def test_each_part_of_tyros_complaint_is_said_once(arguments, encoding, monkeypatch):
    """Its frame is another one where the output takes ASCII only."""
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    with pytest.raises(UserError) as caught:
        parse(list(arguments))
    assert str(caught.value) == f"{COMPLAINTS[arguments]}; see python -m data_pipeline {arguments[0]} --help"


@pytest.mark.parametrize("arguments", [("scenes", "--out", "w", "--trian", "5"), ("verify", "--data", "none")], ids=" ".join)
def test_errors_of_the_process(arguments, tmp_path):
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help(capsys):
    result = run("--help")
    assert result.returncode == 0 and all(f"  {name}" in result.stdout for name in COMMANDS)
    assert run().returncode == 2
    with pytest.raises(SystemExit) as stop:
        parse(["download", "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "--image-size" in text and "never padded" in text


def test_every_option_says_what_it_means():
    import ast
    import importlib
    import inspect

    for module_name, class_name, _ in COMMANDS.values():
        for kind in getattr(importlib.import_module(module_name), class_name).__mro__[:-1]:
            body = ast.parse(inspect.getsource(kind)).body[0].body
            for statement, following in zip(body, [*body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    assert isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant), (
                        kind,
                        ast.unparse(statement),
                    )


def test_build_takes_all_options_and_passes_them_on():
    command = parse(
        "build --metadata a.parquet --out d --source cc12m --allow-host 127.0.0.1:1 127.0.0.1:2 --image-size 64 "
        "--min-side 32 --timeout 3".split()
    )
    assert isinstance(command, BuildCommand)
    assert (command.allow_host, command.image_size, command.min_side, command.timeout) == (
        ("127.0.0.1:1", "127.0.0.1:2"),
        64,
        32,
        3.0,
    )
    assert parse(["curate", "--metadata", "a", "--out", "b"]).source in SCHEMAS


def test_a_light_command_loads_nothing_heavy():
    code = (
        "import sys; import data_pipeline.shards.manifest, data_pipeline.__main__; "
        "heavy = {'duckdb', 'img2dataset', 'torch', 'cv2', 'tyro', 'tokenizers', 'jinja2'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, timeout=30)


def test_an_empty_manifest_names_what_to_do(tmp_path):
    write_manifest(tmp_path, [])
    with pytest.raises(UserError, match="empty, no kept sample in 0 shards; see .*funnel.html.*python -m data_pipeline verify"):
        train(tmp_path, tmp_path / "t.json", 300)


CURATED = {"source": "cc12m", "rows_in": 100, "dropped": {"nsfw": 7, "duplicate": 3}, "rows_out": 90}
DOWNLOADED = {
    "requested": 90,
    "downloaded": 60,
    "shards": {"00000": [1, 1, 40], "00001": [1, 1, 20]},
    "failed": {
        "http 404": 9,
        "http 410": 1,
        "http 503": 5,
        "http 500": 1,
        "OpenCV(4.14) error: (-215)": 3,
        "timeout": 11,
    },
}
VERIFIED = {
    "samples": 40,
    "kept": 38,
    "rejected": {"empty caption": 2},
    "damaged": [{"path": "shards/00001.tar", "reason": "cut off"}],
}


def test_the_funnel_adds_up_and_groups_failures():
    funnel = make_funnel(CURATED, DOWNLOADED, VERIFIED)
    assert funnel["failed"] == {
        "timeout": 11,
        "gone (404, 410)": 10,
        "server error (5xx)": 6,
        "image cannot be decoded": 3,
    }
    assert funnel["in_damaged_shards"] == 20 and funnel["kept"] == 38
    assert sum(group_failures(DOWNLOADED["failed"]).values()) == sum(DOWNLOADED["failed"].values())


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (CURATED, {"dropped": {"nsfw": 7}}),
        (DOWNLOADED, {"downloaded": 61}),
        (DOWNLOADED, {"requested": 91}),
        (VERIFIED, {"samples": 41}),
        (VERIFIED, {"rejected": {}}),
        (VERIFIED, {"damaged": []}),
    ],
)
def test_a_funnel_that_does_not_add_up_is_an_error(stage, change):
    stages = [entry | change if entry is stage else entry for entry in (CURATED, DOWNLOADED, VERIFIED)]
    with pytest.raises(UserError, match="does not add up"):
        make_funnel(*stages)


def test_report_of_unfinished_stages(tmp_path):
    (tmp_path / "canonical").mkdir()
    write_json(tmp_path / "canonical/curate.json", CURATED)
    with pytest.raises(UserError, match="download.json: not there; run first: python -m data_pipeline download"):
        report(tmp_path)
    write_json(tmp_path / "download.json", {"shards": {}})
    with pytest.raises(UserError, match="the download is not finished"):
        report(tmp_path)


@pytest.fixture
def photographs(tmp_path) -> Path:
    (tmp_path / "photos/trip").mkdir(parents=True)
    names = [f"trip/no {number}.jpg" for number in range(40)] + ["top.png"]
    for name in names:
        cv2.imwrite(str(tmp_path / "photos" / name), np.zeros((30, 50, 3), np.uint8))
    rows = "".join(f'{name},"caption {n}, of {name}"\n' for name in names for n in range(3))
    (tmp_path / "captions.csv").write_text("image,caption\n" + rows)
    return tmp_path


def test_folder_splits_by_photograph(photographs):
    shares = {"val": 0.2, "test": 0.2}
    record = write_catalogues(photographs / "photos", photographs / "captions.csv", photographs / "out", 8740, shares)
    tables = {split: pq.read_table(photographs / "out" / f"{split}.parquet") for split in ("train", "val", "test")}
    urls = {split: set(table["URL"].to_pylist()) for split, table in tables.items()}
    assert sum(map(len, urls.values())) == len(set.union(*urls.values())) == 41
    assert sum(table.num_rows for table in tables.values()) == 123 and record["unusable"] == 0
    assert {split: count["photographs"] for split, count in record["splits"].items()} == {
        split: len(names) for split, names in urls.items()
    }
    assert "http://127.0.0.1:8740/images/trip/no%207.jpg" in set.union(*urls.values())
    row = tables["train"].to_pylist()[0]
    assert (row["WIDTH"], row["HEIGHT"]) == (50, 30) and row["TEXT"].startswith("caption 0, of ")


def test_split_is_a_function_of_the_name_with_the_right_shares():
    names = [f"{number}.jpg" for number in range(4000)]
    splits = [split_of(name, {"val": 0.1, "test": 0.2}) for name in names]
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02 and abs(splits.count("test") / 4000 - 0.2) < 0.02
    assert [split_of(name, {"val": 0.1, "test": 0.2}) for name in reversed(names)] == splits[::-1]
    assert [split_of(name, {"val": 0.1}) == "val" for name in names] == [split == "val" for split in splits]


@pytest.mark.parametrize("value", ["val", "val=x", "val=0", "val=1", "train=0.1", "a b=0.1", "../x=0.1"])
def test_bad_holdout(value):
    with pytest.raises(UserError, match="expected NAME=SHARE"):
        parse_holdout((value,))
    with pytest.raises(UserError, match="nothing is left for training"):
        parse_holdout(("val=0.5", "test=0.5"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,text\na.jpg,b\n", "needs the columns image and caption, found picture, text"),
        ("", "found nothing"),
        ("image,caption\n", "no rows"),
        ("image,caption\n../secret.jpg,b\n", "line 2: image '../secret.jpg' is not below"),
        ("image,caption\n/etc/passwd,b\n", "is not below"),
        ("image,caption\ntop.png\n", "line 2: expected an image and a caption"),
        ("image,caption\nmissing.jpg,b\n", "none of the 1 photographs"),
    ],
)
def test_bad_captions_files(photographs, text, message):
    (photographs / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        write_catalogues(photographs / "photos", photographs / "bad.csv", photographs / "out", 8740, {})


def test_unreadable_photographs_are_counted(photographs):
    (photographs / "photos/top.png").write_bytes(b"no picture")
    record = write_catalogues(photographs / "photos", photographs / "captions.csv", photographs / "out", 8740, {})
    assert record["unusable"] == 1 and record["splits"]["train"] == {"photographs": 40, "captions": 120}
    assert json.loads((photographs / "out/folder.json").read_text()) == record


def test_arguments_that_are_not_utf_8_are_refused_in_one_line(tmp_path):
    out = tmp_path / os.fsdecode(b"caf\xe9")
    done = run("adopt", "--tars", str(tmp_path), "--out", str(out))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert r"caf\udce9': expected a name in UTF-8" in done.stderr and not out.exists()


def test_an_output_that_nobody_reads_any_more_is_no_error_of_the_program():
    command = [sys.executable, "-m", "data_pipeline", "build", "--help"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `| head` does
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_options_are_those_of_the_help() -> None:
    """Of each command, and of what tyro itself makes of their names."""
    from sycoca_ds.cli.completion import PLAIN, options_of

    for name, (module, kind, _) in COMMANDS.items():
        known = {option for option in options_of(f"data {name}") if not option.startswith("--no-")} - {PLAIN, "--help"}
        assert set(option_names(getattr(importlib.import_module(module), kind))) == known, name


def test_a_value_that_is_no_choice_gets_the_nearest_and_none_is_none_of_them() -> None:
    @dataclasses.dataclass
    class Choosing:
        to: Literal["open_clip", "safetensors"] | None = None

    with pytest.raises(UserError) as error:
        parse_command(Choosing, ["--to", "safetensor"], "program")
    said = "no such choice; did you mean safetensors? (expected one of open_clip, safetensors); see program --help"
    assert str(error.value) == f"--to safetensor: {said}"


@dataclass(frozen=True)
class Kinds:
    """Fields whose defaults are asked for their kind."""

    pair: tuple[float, float] = (1, 2)
    """Two."""
    names: tuple[str, ...] = ("x",)
    """Some."""
    sides: tuple[int, ...] | None = None
    """Some, or none."""
    wrong: tuple[int, ...] = ("a",)
    """A default of another kind."""


def test_defaults_are_looked_into_as_typeguard_does() -> None:
    """Which is asked for what is no tuple and no union, and by nobody else."""
    from tyro import _resolver

    parse_command(Kinds, [], "test")  # from here on ours
    assert parse_command(Kinds, ["--pair", "3", "4", "--sides", "5"], "test") == Kinds((3.0, 4.0), sides=(5,))
    with pytest.raises(UserError, match="--pair"):
        parse_command(Kinds, ["--pair", "3"], "test")
    kinds = (tuple[int, ...], tuple[float, str], tuple[int, ...] | None, int | None, tuple[tuple[str, ...], ...], list[int])
    for kind in kinds:
        for value in ((), (1,), (1.5,), ("a",), (1.5, "a"), (1, 2, 3), None, 1, "a", [1], ["a"], ((),), (("a",), ("b", "c"))):
            try:
                typeguard.check_type(value, kind)
                expected = True
            except typeguard.TypeCheckError:
                expected = False
            assert _resolver.is_instance(kind, value) == expected, (kind, value)

"""`sycoca train`: which words are the launcher's, and what is refused before it is started."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.cli import deepspeed_runner, train
from tests.worlds import REPOSITORY


def test_options_are_those_of_deepspeeds_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.launcher import runner

    seen: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, args=None: seen.append(self))
    runner.parse_args([])
    actions = [action for action in seen[0]._actions if action.option_strings and action.dest != "help"]
    flags = {name for action in actions if action.nargs == 0 for name in action.option_strings}
    valued = {name for action in actions if action.nargs != 0 for name in action.option_strings}
    assert train.FLAGS == flags - train.REFUSED.keys() and train.WITH_VALUE == valued - train.REFUSED.keys()
    assert train.REFUSED.keys() <= flags | valued


def test_words_are_divided_and_unchanged() -> None:
    words = "--hostfile hf --preset tiny --num-accelerators=2 --force_multi --data.train a b --dry-run --run.out".split()
    own, rest, dry = train.divide([*words, "x y", "-q", "--master_port", "7"])
    assert own == ["--hostfile", "hf", "--num_accelerators", "2", "--force_multi", "-q", "--master_port", "7"]
    assert rest == ["--preset", "tiny", "--data.train", "a", "b", "--run.out", "x y"] and dry


@pytest.mark.parametrize(
    "words, said",
    [
        ("--data.train x --master_port", "--master_port is the last word: expected a value after it"),
        ("--module --data.train x", "--module: train.py is what is started; leave it out"),
        ("--hostfile nowhere --data.train x", "--hostfile nowhere does not exist"),
        ("--hostfil hf --data.train x", "unknown option --hostfil; did you mean --hostfile?"),
        ("--data.trian x", "unknown option --data.trian; did you mean --data.train?"),
        ("--preset tyny", "--preset tyny: no such preset; did you mean tiny?"),
        ("--preset tiny", "data.train is not given: expected --data.train FOLDER"),
        ("--preset tiny --dry-run", "data.train is not given: expected --data.train FOLDER"),
    ],
)
def test_what_the_ranks_would_refuse_is_refused_before(words: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sycoca train", *words.split()])
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the launcher was started"))
    with pytest.raises(UserError) as error:
        train.main()
    assert said in str(error.value)


@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_what_is_not_there_is_said_before_a_launch_and_before_its_command(
    data_set: Path, tmp_path: Path, dry: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: pytest.fail("the launcher was started"))
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "manifest").symlink_to(data_set / "manifest")
    (tmp_path / "file").touch()
    for words, said in (
        (["--data.train", "photos"], "photos: no such folder; expected a data set folder"),
        (["--data.train", str(tmp_path)], "manifest.json: not there, the data set was not verified"),
        (["--data.train", str(data_set), "--data.validation", "val"], "val: no such folder"),
        (["--data.train", str(bare)], f"tokenizer {bare}/tokenizer.json does not exist: train one with"),
        (["--data.train", str(data_set), "--data.tokenizer", "t.json"], "tokenizer t.json does not exist"),
        (["--data.train", str(data_set), "--run.ds-config", "zero9.json"], "run.ds-config = zero9.json: no such file (shipped: "),
        (["--data.train", str(data_set), "--run.out", str(data_set)], f"run.out = {data_set}: holds a data set (manifest/)"),
        (["--data.train", str(data_set), "--run.weights", "w"], "run.weights = w does not exist: give a run, a checkpoint, "),
        (
            ["--data.train", str(data_set), "--run.out", f"{tmp_path}/file/run"],
            f"{tmp_path}/file/run: expected a folder, or a place for one (Not a directory); choose another",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["sycoca train", "--preset", "tiny", *words, *dry])
        with pytest.raises(UserError) as error:
            train.main()
        assert said in str(error.value), words


@pytest.mark.parametrize(
    "launch, batch, said",
    [
        (["--num_accelerators", "2"], ["7"], "optim.global-batch-size = 7 does not divide over 2 ranks x "),
        (
            ["--num_gpus=2"],
            ["64", "--optim.accumulation-steps", "3"],
            "64 does not divide over 2 ranks x optim.accumulation-steps = 3",
        ),
        (["--num_accelerators", "3"], ["63"], "data.lanes = 16: expected a multiple of the world size (3)"),
        (["--hostfile", "HOSTS"], ["64"], "does not divide over 12 ranks"),
        (["-H", "HOSTS", "--num_nodes", "1"], ["62"], "does not divide over 4 ranks"),
        (["--hostfile", "HOSTS", "--include", "a"], ["7"], ""),
        (["--num_accelerators", "2"], ["64"], ""),
        ([], ["7"], ""),
    ],
)
def test_a_batch_that_so_many_ranks_cannot_share_is_said_before_a_launch(
    launch: list[str], batch: list[str], said: str, data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the number of ranks is known: without it the GPUs of this machine decide, which only torch counts."""
    (tmp_path / "HOSTS").write_text("a slots=4\nb slots=4\nc slots=4\n")
    monkeypatch.chdir(tmp_path)
    words = ["--preset", "tiny", "--data.train", str(data_set), "--optim.global-batch-size", *batch, "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["sycoca train", *launch, *words])
    if not said:
        assert train.main() == 0
        return
    with pytest.raises(UserError) as error:
        train.main()
    assert said in str(error.value)


@pytest.mark.parametrize("folder", ["checkout", "elsewhere"])
def test_a_dry_run_prints_a_command_for_the_folder_it_is_in(folder: str, tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("a slots=8\n")
    words = ["--hostfile", str(tmp_path / "hf"), "--data.train", "/data/with blanks", "--dry-run"]
    here = REPOSITORY if folder == "checkout" else tmp_path
    done = subprocess.run(
        [sys.executable, "-m", "sycoca_ds", "train", *words],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    launcher, *printed = shlex.split(done.stdout)
    script = "sycoca_ds/train.py" if folder == "checkout" else str(REPOSITORY / "sycoca_ds/train.py")
    assert printed == ["--hostfile", words[1], script, "--data.train", "/data/with blanks"]
    assert Path(launcher).name == "deepspeed" and os.access(launcher, os.X_OK)


def test_the_launcher_takes_the_place_of_this_process(data_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's runner, by the file of ours that waits in it at a Ctrl-C."""
    started: list = []
    (tmp_path / "a b").symlink_to(data_set)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["sycoca train", "--data.train", "a b", "--data.tokenizer", "a b/tokenizer.json", "--num_gpus", "4"]
    )
    monkeypatch.setattr(os, "execve", lambda *words: started.append((*words, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
    try:
        train.main()
    finally:  # this process goes on
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    ((program, words, environment, blocked),) = started
    assert signal.SIGINT in blocked, "until the runner answers it"
    assert program == sys.executable and environment[deepspeed_runner.RUN] == "runs/930m"
    assert words == [
        program,
        deepspeed_runner.__file__,
        "--num_gpus",
        "4",
        train.train_script(),
        "--data.train",
        "a b",
        "--data.tokenizer",
        "a b/tokenizer.json",
    ]
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


@pytest.mark.full
def test_the_launcher_is_started_and_its_status_is_that_of_the_ranks(data_set: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()  # that it holds no weights only the ranks see
    words = ["train", "--num_accelerators", "1", "--preset", "tiny", "--data.train", str(data_set), "--run.weights", "empty"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "sycoca_ds", *words, "--run.out", "a b"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2 and "error: no finished checkpoint in empty" in done.stderr, done.stderr[-3000:]

"""Command lines as users write them, and the same without a host."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.cli.train import launcher
from sycoca_ds.launch.hostfile import Host, read_hostfile
from sycoca_ds.launch.processes import train_script
from sycoca_ds.supervise import command
from sycoca_ds.supervise.job import DEFAULT_HOSTFILE, Job, option, parse_job, set_option

TRAIN = ["sycoca_ds/train.py", "--run.out", "runs/x", "--optim.global-batch-size", "64", "--data.lanes", "16"]


@pytest.fixture
def hostfile(tmp_path: Path) -> Path:
    path = tmp_path / "hosts"
    path.write_text("# three\nnode-a slots=4\nnode-b slots=4\n\nnode-c slots=4\n")
    return path


@pytest.mark.parametrize(
    "words",
    [
        ["deepspeed", *TRAIN],
        ["torchrun", "--nproc-per-node", "2", *TRAIN],
        ["python", *TRAIN],
        ["srun", "--ntasks-per-node=8", "python", "-u", *TRAIN],
        ["deepspeed", "--module", "sycoca_ds.train", *TRAIN[1:]],
        ["deepspeed", "train.py", "--run.out=runs/x", *TRAIN[3:], "--local_rank=3"],
    ],
)
def test_the_run_is_found(words: list[str]) -> None:
    job = parse_job(words)
    assert job.run == Path("runs/x") and job.config.optim.global_batch_size == 64 and job.hosts == ()


@pytest.mark.parametrize(
    "words, said",
    [
        (["deepspeed"], "names no training script"),
        (["deepspeed", "sycoca_ds/train.py", "--run.outt", "x"], "did you mean --run.out?"),
        (["deepspeed", "--hostfile", "nowhere", *TRAIN], "nowhere does not exist"),
    ],
)
def test_what_could_not_work_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse_job(words)


@pytest.mark.parametrize(
    "more, hosts",
    [
        ([], {"node-a": 4, "node-b": 4, "node-c": 4}),
        (["--num_nodes", "2"], {"node-a": 4, "node-b": 4}),
        (["--num_gpus=1"], {"node-a": 1, "node-b": 1, "node-c": 1}),
        (["--include", "node-b"], {}),
    ],
)
def test_hosts_are_those_that_deepspeed_uses(more: list[str], hosts: dict[str, int], hostfile: Path) -> None:
    """Against DeepSpeed's own functions, where it names no filter."""
    job = parse_job(["deepspeed", "--hostfile", str(hostfile), *more, *TRAIN])
    assert {host.name: host.slots for host in job.hosts} == hosts
    if hosts:
        from deepspeed.launcher.runner import apply_num_nodes_and_gpus, fetch_hostfile, parse_args, parse_inclusion_exclusion

        options = parse_args(["--hostfile", str(hostfile), *more, "train.py"])
        theirs = parse_inclusion_exclusion(fetch_hostfile(options.hostfile), options.include, options.exclude)
        theirs = apply_num_nodes_and_gpus(theirs, options.num_nodes, options.num_gpus)
        assert {host: len(slots) for host, slots in theirs.items()} == hosts
        assert job.host_of_rank == [host for host, slots in theirs.items() for _ in slots]


@pytest.mark.parametrize(
    "words, hosts",
    [
        (["deepspeed"], ["node-a"] * 4 + ["node-b"] * 4 + ["node-c"] * 4),
        (["python", "-m", "deepspeed.launcher.runner", "--num_nodes=1", "--num_gpus", "2"], ["node-a"] * 2),
        (["deepspeed", "--exclude", "node-b"], []),
        (["torchrun", "--nproc-per-node", "2"], []),
        (["python"], []),
    ],
)
def test_deepspeed_has_a_hostfile_of_its_own(
    words: list[str], hosts: list[str], hostfile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which it reads where none is named, if it is there; other launchers do not know it."""
    from deepspeed.launcher.runner import parse_args

    assert parse_args(["train.py"]).hostfile == str(DEFAULT_HOSTFILE)
    monkeypatch.setattr("sycoca_ds.supervise.job.DEFAULT_HOSTFILE", tmp_path / "not there")
    assert parse_job([*words, *TRAIN]).host_of_rank == []
    monkeypatch.setattr("sycoca_ds.supervise.job.DEFAULT_HOSTFILE", hostfile)
    found = parse_job([*words, *TRAIN])
    assert found.host_of_rank == hosts
    if len(hosts) == 12:
        smaller = found.without("node-a", 1, tmp_path / "left")
        assert smaller.words[: smaller.place] == ("deepspeed", "--hostfile", str(tmp_path / "left"), "--num_nodes", "2")
        assert smaller.host_of_rank == hosts[4:]


def deepspeed(hostfile: Path, *more: str, train: list[str] = TRAIN) -> Job:
    return parse_job(["deepspeed", "--hostfile", str(hostfile), *more, *train])


def test_without_a_host_the_largest_world_that_divides_is_taken(hostfile: Path, tmp_path: Path) -> None:
    """12 ranks do not share 16 lanes; 8 do."""
    words = [*TRAIN, "--run.expected-world-size", "12"]
    smaller = deepspeed(hostfile, train=words).without("node-b", 1, tmp_path / "left")
    assert smaller.hosts == (Host("node-a", 4), Host("node-c", 4))
    assert option(smaller.words, ("--run.expected-world-size",)) == "8" and smaller.config.run.expected_world_size == 8
    assert option(smaller.words, ("--hostfile",)) == str(tmp_path / "left") and option(smaller.words, ("--num_nodes",)) == "2"
    assert read_hostfile(tmp_path / "left") == ([Host("node-a", 4), Host("node-c", 4)], [])
    alone = smaller.without("node-a", 1, tmp_path / "left")
    assert alone.host_of_rank == ["node-c"] * 4 and alone.words[: alone.place].count("--force_multi") == 1
    assert alone.why_not_without("node-c", 1).startswith("--min-hosts 1: no 1 or more of the other 0 hosts")


def test_a_spare_host_takes_the_place(hostfile: Path, tmp_path: Path) -> None:
    smaller = deepspeed(hostfile, "--num_nodes", "2").without("node-a", 2, tmp_path / "left")
    assert smaller.hosts == (Host("node-b", 4), Host("node-c", 4))


def test_what_does_not_divide_is_left_out_too(hostfile: Path, tmp_path: Path) -> None:
    """Of four hosts with four ranks each three are left, 12 ranks; 16 lanes go on two of them, the third stays as a spare."""
    with open(hostfile, "a") as file:
        file.write("node-d slots=4\n")
    smaller = deepspeed(hostfile).without("node-a", 1, tmp_path / "left")
    assert [host.name for host in smaller.hosts] == ["node-b", "node-c"]
    assert [host.name for host in smaller.without("node-b", 2, tmp_path / "left").hosts] == ["node-c", "node-d"]


@pytest.mark.parametrize(
    "more, host, least, said",
    [
        ([], "node-a", None, "--min-hosts does not allow"),
        ([], "node-x", 1, "node-x is not in the hostfile"),
        (["--include", "node-a@node-b"], "node-a", 1, "only a launch by `deepspeed --hostfile"),
        (["--master_addr", "10.0.0.1"], "node-a", 1, "--master_addr is an address of this host"),
        (["--master_addr", "10.0.0.1"], "node-b", 1, ""),
        ([], "node-a", 3, "--min-hosts 3: no 3 or more of the other 2 hosts"),
    ],
)
def test_why_a_host_cannot_be_left_out(more: list[str], host: str, least: int | None, said: str, hostfile: Path) -> None:
    found = deepspeed(hostfile, *more).why_not_without(host, least)
    assert found.startswith(said) and bool(found) == bool(said)


def test_options_in_both_spellings() -> None:
    words = ["deepspeed", "-H", "a", "--hostfile=b", "x"]
    assert option(words, ("--hostfile", "-H")) == "b"
    assert set_option(words, ("--hostfile", "-H"), "c") == ["deepspeed", "-H", "c", "--hostfile=c", "x"]
    assert set_option(words, ("--hostfile", "-H"), None) == ["deepspeed", "x"]


def test_a_dry_run_says_what_would_be_started_and_the_short_command_is_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sycoca train` after `--` becomes the launcher's own line, which is what can be taken apart and changed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").write_text("a slots=2\nb slots=2\n")
    words = ["sycoca", "train", "--hostfile", "hf", "--preset", "tiny", "--data.train", "x", "--run.out", "there"]
    monkeypatch.setattr(sys, "argv", ["supervise", "--dry-run", "--restarts", "3", "--", *words])
    assert command.main() == 0
    lines = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    launch = [launcher(), "--hostfile", "hf", train_script(), *words[4:]]
    assert shlex.split(lines["command"]) == launch and lines["hosts"].strip() == "a (2), b (2)"
    assert lines["run"].strip() == "there, no checkpoint yet" and "after 3 restarts" in lines["attempts"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]
    (tmp_path / "there").touch()
    with pytest.raises(UserError, match=r"there/supervise: expected a folder, or a place for one \(Not a directory\)"):
        command.main()

"""`launch print` against what really starts: the real runner with a pdsh that writes down what it is given, the real launch.py."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner

from data_pipeline.errors import UserError
from sycoca_ds.launch.command import parse
from sycoca_ds.launch.commands import PrintCommand, damaged, folded
from sycoca_ds.launch.hostfile import environment_files, exports, read_environment
from tests.worlds import REPOSITORY

SCRIPT = str(REPOSITORY / "sycoca_ds/train.py")
"""As it is named in a folder that is not the checkout."""
ARGUMENTS = ["--data.train", "/data/with blanks", "--optim.lr", "1e-3"]
RECORD = f"""#!{sys.executable}
import json, os, sys
json.dump([sys.argv, dict(os.environ)], open({{path!r}}, "w"))
"""


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def start(tmp_path: Path) -> dict:
    """A folder to launch from, with a hostfile of two hosts and a `.deepspeed_env`, an environment with an ssh that does nothing
    and a pdsh that writes down what it is given."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin/pdsh", RECORD.format(path=str(tmp_path / "pdsh.json")))
    executable(tmp_path / "bin/ssh", "#!/bin/sh\nexit 0\n")
    (tmp_path / "hf").write_text("node-a slots=2\nnode-b slots=2\n")
    (tmp_path / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\nA_B=x y\n")
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path / "home"), "PYTHONPATH": str(REPOSITORY)}
    return {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "timeout": 120}


def test_every_host_and_rank_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hosts with different slots, no `.deepspeed_env`, words that the shells on the way would change."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "hf").write_text("n0 slots=2\nn1 slots=1\n")
    before = signal.getsignal(signal.SIGTERM)
    assert PrintCommand(Path("hf"), master_addr="10.0.0.7").run("--run.out", "a b", "--data.train", "s3://x?y=1") == 0
    assert signal.getsignal(signal.SIGTERM) == before and subprocess.run(["true"]).returncode == 0, "DeepSpeed was left changed"
    output, errors = capsys.readouterr()
    ranks = [line for line in output.splitlines() if " RANK=" in line]
    assert [re.findall(r"\b(?:LOCAL_)?RANK=(\d)", line) for line in ranks] == [["0", "0"], ["1", "1"], ["2", "0"]]
    assert all("MASTER_ADDR=10.0.0.7 MASTER_PORT=29500 WORLD_SIZE=3 " in line and "--run.out 'a b'" in line for line in ranks)
    assert "# n1, over pdsh and ssh:" in output and "the hostfile has 1, 2" in output
    assert (
        "# n0, n1: {...} has the number of each, in this order\n" in output
        and "--nproc-per-node {2,1} --node-rank {0..1} " in output
    )
    assert errors.startswith("careful: 's3://x?y=1': the shell on the other host takes ? for its own: write it into a file")
    assert errors.count("\n") == 1


def unfolded(line: str, place: int) -> str:
    """A line as it is for one of its hosts."""

    def number(found: re.Match[str]) -> str:
        if found[1]:
            return found[1].split(",")[place]
        return str(int(found[2]) + place * int(found[3] or 1))

    return re.sub(r"(?<=[ =])\{(?:(\d+(?:,\d+)+)|(\d+)\.\.\d+(?:\.\.(\d+))?)\}(?= |$)", number, line)


@pytest.mark.parametrize("slots", [(8,) * 16, (2, 1, 2, 2, 1), (1,)])
def test_hosts_that_get_the_same_are_printed_once_and_nothing_of_them_is_lost(slots: tuple[int, ...]) -> None:
    """Against the blocks of all hosts, one after the other."""
    starts, firsts = [sum(slots[:n]) for n in range(len(slots))], [f"host {'x' * count} of 3 = 8" for count in slots]
    blocks = {
        f"n{n}": [
            firsts[n],
            *(f"RANK={starts[n] + k} LOCAL_RANK={k} --node-rank {n} {7 * n * n} --lr 1e-3" for k in range(count)),
        ]
        for n, count in enumerate(slots)
    }
    found = list(folded(blocks))
    assert len(found) == len(set(slots)) and sum((names for names, _ in found), []) == sorted(
        blocks, key=lambda name: (-slots[int(name[1:])], int(name[1:]))
    )
    for names, lines in found:
        for place, name in enumerate(names):
            assert [unfolded(line, place) for line in lines] == blocks[name]
    if slots == (8,) * 16:
        assert found[0][1][2].startswith("RANK={1..121..8} LOCAL_RANK=1 --node-rank {0..15} {0,7,28,63,112,")


@pytest.mark.full
def test_what_is_printed_is_what_starts(start: dict, tmp_path: Path) -> None:
    options = ["--hostfile", "hf", "--master_addr", "127.0.0.1", "--master_port", "29511"]
    printed = ["-m", "sycoca_ds.launch", "print", *(word.replace("_", "-") for word in options), "--", *ARGUMENTS]
    done = subprocess.run([sys.executable, *printed], **start)
    assert done.returncode == 0, done.stderr
    deepspeed = Path(sys.executable).with_name("deepspeed")
    real = subprocess.run([str(deepspeed), *options, SCRIPT, *ARGUMENTS], **start)
    words, environment = json.loads((tmp_path / "pdsh.json").read_text())
    assert words[words.index("-w") + 1] == "node-a,node-b" and environment["PDSH_RCMD_TYPE"] == "ssh", real.stderr
    lines = done.stdout.splitlines()
    commands = {}
    for number, host in enumerate(("node-a", "node-b")):
        given = " ".join(words[words.index("-w") + 2 :]).strip().replace("%n", str(number))  # as pdsh joins and replaces
        place = 1 + next(n for n, line in enumerate(lines) if line.startswith("# node-a, node-b, over pdsh and ssh: {...} has"))
        commands[host] = unfolded(lines[place], number)
        assert commands[host] == given

    # what reaches the other host: as `check` gives it to its probe, for the remote shell to read
    folder = Path(start["cwd"])
    files = {}
    for path in environment_files(folder):
        files |= read_environment(path)[0]
    wanted = exports({"PYTHONPATH": str(REPOSITORY)}, folder, files)
    said = re.findall(r"export (\w+)=(\"[^\"]*\"|[^;]*);", commands["node-b"])
    assert {name: shlex.split(value)[0] for name, value in said} == wanted

    # and what starts there: the command of the second host, run by a shell, with a script that writes down how it was started
    script = tmp_path / "rank.py"
    executable(script, RECORD.format(path="%s").replace("'%s'", f"{str(tmp_path)!r} + '/rank' + os.environ['RANK'] + '.json'"))
    subprocess.run(["bash", "-c", commands["node-b"].replace(SCRIPT, str(script))], **start, check=True)
    for number, rank in enumerate((2, 3)):
        line = unfolded(lines[place + 2 + 2 * number], 1).removeprefix("#   ").replace(SCRIPT, str(script))
        arguments, environment = json.loads((tmp_path / f"rank{rank}.json").read_text())
        named = dict(word.split("=", 1) for word in shlex.split(line) if re.match(r"[A-Z_]+=", word))
        assert named["RANK"] == str(rank) and {name: environment[name] for name in named} == named
        assert shlex.split(line)[len(named) + 2 :] == arguments and arguments[-4:] == ARGUMENTS

    # the same run by the others: as many ranks, in as many places
    torchrun = [shlex.split(unfolded(line, place)) for line in lines if "torchrun --nnodes" in line for place in (0, 1)]
    assert len(torchrun) == 2 and all(
        words[:2] == ["OMP_NUM_THREADS=1", "A_B=x y"] and words[-4:] == ARGUMENTS for words in torchrun
    )
    assert [words[words.index("--node-rank") + 1] for words in torchrun] == ["0", "1"]
    assert all(words[words.index("--run.expected-world-size") + 1] == "4" for words in torchrun)
    slurm = shlex.split(lines[lines.index("# 3. Slurm") + 1])
    assert slurm[2:8] == ["sbatch", "--nodes", "2", "--ntasks-per-node", "2", "--gpus-per-node"] and slurm[-4:] == ARGUMENTS


@pytest.mark.parametrize(
    "word",
    "plain 1e-3 (0.9,0.95) a&b=c two;three $HOME 'quoted' *.tar {a,b} ~/x #x s3://b/c?d=e x>y `date` !x a\\b".split()
    + ["with blanks", "(0.9, 0.95)", "blanks $HOME", "blanks `date`", 'blanks "x"', "", "a^b", "x=y:z@w,+/-%", "[0]"],
)
def test_words_that_a_remote_shell_would_change_are_named(word: str) -> None:
    """Written as DeepSpeed writes them, read by a shell in an empty folder."""

    class Arguments:
        user_args, user_script = [word], "x"

    written = PDSHRunner(Arguments(), "").user_arguments[0]
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {written}; :"], capture_output=True, text=True, cwd="/proc/self")
    arrives = done.stdout == f"{word}\0"
    if not damaged([word]):
        assert arrives, done
    if not arrives:
        assert damaged([word]) and "--config FILE" in damaged([word])[0]


def test_pdshs_own_letters_are_named() -> None:
    assert "pdsh replaces %h" in damaged(["a%hb"])[0]


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["chek"],
            r"^command 'chek': no such command; did you mean check\? \(expected one of check, files, print; see python -m ",
        ),
        (["prnt", "--hostfile", "x"], r"^command 'prnt': no such command; did you mean print\?"),
        (["zzz"], r"^command 'zzz': no such command \(expected"),
        (["check"], "hostfile"),
        (["check", "--hostfile", "x", "--", "--data.train", "y"], "check takes nothing after `--`"),
    ],
)
def test_wrong_commands_are_refused_on_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(words)
    assert "\n" not in str(caught.value)


def test_options_that_train_py_refuses_are_refused_before_anything_is_asked(tmp_path: Path) -> None:
    """Each host's rank would refuse them; nothing is printed that would not start."""
    (tmp_path / "hf").write_text("nowhere slots=1\n")
    with pytest.raises(UserError, match=r"^unknown option --data.trian; did you mean --data.train\?"):
        PrintCommand(tmp_path / "hf").run("--data.trian", "/data/cc12m")

"""DeepSpeed's own launcher around real ranks: ports, hostfiles, and what a Ctrl-C leaves."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shlex
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from sycoca_ds.engine.checkpoint.seal import sealed
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import LIMIT, finish, free_port, start, start_warm
from tests.worlds.processes.watching import mentioning, wait_until
from tests.worlds.trainings.training import SMALL

PATIENCE = 12
"""Seconds before the launcher kills, in place of its 30: a rank must answer within them, beside other tests."""
SAVE = 16
"""Seconds of the slow save below."""


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_two_launches_at_once_meet_on_ports_of_their_own(ranks: int, tmp_path: Path) -> None:
    """No port is given: DeepSpeed gives both of them 29500, where one of them would end in a traceback."""
    script = tmp_path / "meet.py"
    script.write_text(
        f"import os, sys, time\nsys.path[0] = {str(REPOSITORY)!r}\n"
        "from sycoca_ds.engine.ranks.environment import prepare_deepspeed\n"
        "from sycoca_ds.engine.ranks.runtime import start_runtime\nfrom sycoca_ds.train import end_process\n"
        "prepare_deepspeed()\nruntime = start_runtime()\ntime.sleep(3)\n"
        "runtime.say(f'met: {sum(runtime.gather(2 + runtime.rank))} {os.environ[\"MASTER_PORT\"]}')\n"
        "runtime.leave()\nend_process(0)\n"
    )
    both = [start([], ranks=ranks, script=script, launch=[], TMPDIR=str(tmp_path)) for _ in range(2)]
    ports = set()
    for status, output in map(finish, both):
        assert status == 0, output[-3000:]
        total, port = output.split("met: ")[1].split()[:2]
        assert total == str(sum(2 + rank for rank in range(ranks)))
        ports.add(port)
    assert len(ports) == 2 and "29500" not in ports
    assert not list(tmp_path.glob("sycoca_ds_*")), "the note that names the port is left behind"


@pytest.mark.full
def test_a_port_that_is_given_and_taken_is_an_error_of_one_line(data_set: Path, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        words = [*SMALL, "--data.train", str(data_set), "--run.out", str(tmp_path / "run")]
        status, output = finish(start(words, ranks=1, launch=["--master_port", str(port)]))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(lines) == 1 and "Traceback" not in output, output[-3000:]
    assert f"port {port} is taken" in lines[0]


@pytest.mark.full
def test_a_hostfile_that_does_not_exist_is_refused() -> None:
    status, output = finish(start([], ranks=1, launch=["-H", "nowhere"]))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(lines) == 1 and "Traceback" not in output, output[-3000:]
    assert f"--hostfile {REPOSITORY}/nowhere does not exist" in lines[0] and "--run.expected-world-size 1" in lines[0]


@pytest.mark.full
def test_a_hostfile_that_does_not_exist_is_none_where_the_ranks_are_meant() -> None:
    """Without data a run is refused anyway, one question later."""
    output = finish(start(["--run.expected-world-size", "1"], ranks=1, launch=["--hostfile=nowhere"]))[1]
    assert "error: data.train is not set" in output and "nowhere does not exist" not in output, output[-3000:]


def slow_saves(tmp_path: Path, data: Path) -> tuple[Path, Path, list[str], dict[str, str]]:
    """(run folder, script, its options, environment) of a run whose saves take `SAVE` seconds, under a launcher that kills after
    `PATIENCE`."""
    script, out = tmp_path / "slow.py", tmp_path / "run"
    script.write_text(
        f"import sys, time\nsys.path[0] = {str(REPOSITORY)!r}\nfrom sycoca_ds.engine.checkpoint.saving import Saver\n"
        "from sycoca_ds.train import end_process, on_every_rank, run_command\nplain = Saver.save\n"
        f"def save(*args, **more):\n    print('saving now', flush=True)\n    time.sleep({SAVE})\n    return plain(*args, **more)\n"
        "Saver.save = save\nend_process(run_command(on_every_rank))\n"
    )
    (tmp_path / "sitecustomize.py").write_text(
        "try:\n    import psutil\nexcept ImportError:\n    pass\nelse:\n    plain = psutil.wait_procs\n"
        f"    psutil.wait_procs = lambda procs, timeout=None, callback=None: plain(procs, {PATIENCE}, callback)\n"
    )
    words = [*SMALL, "--data.train", str(data), "--run.out", str(out), "--optim.steps", "5000", "--run.checkpoint-every", "5000"]
    words += ["--run.ds-config", "ds_configs/zero1.json"]
    return out, script, words, {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def wait_for_steps(out: Path) -> None:
    """Until the run is in the middle of its steps."""
    assert wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text(), LIMIT)


def check_it_was_saved(out: Path, output: str) -> None:
    stopped = json.loads((out / "run_status.json").read_text())
    assert stopped["status"] == "preempted" and 0 < stopped["step"] < 5000, output[-3000:]
    assert [folder.name for folder in sealed(out / "checkpoints")] == [f"step_{stopped['step']:08d}"]
    assert output.count("Ctrl-C: saving after this step") == 1


def test_ctrl_c_saves_before_the_launcher_kills(data_set: Path, tmp_path: Path) -> None:
    """As it reaches a job without a terminal of its own: runner, launcher and ranks at once."""
    out, script, words, environment = slow_saves(tmp_path, data_set)
    process = start(words, script=script, ranks=2, **environment)
    wait_for_steps(out)
    os.killpg(process.pid, signal.SIGINT)
    check_it_was_saved(out, finish(process)[1])


@pytest.mark.full
def test_ctrl_c_in_a_shell_saves(data_set: Path, tmp_path: Path) -> None:
    """The runner dies of it, the shell has its prompt back, and the kernel hangs up on the group, whose launcher is stopped."""
    out, script, words, environment = slow_saves(tmp_path, data_set)
    launcher = Path(sys.executable).with_name("deepspeed")
    command = [str(launcher), "--num_accelerators", "2", "--master_port", str(free_port()), str(script), *words]
    shell, terminal = pty.fork()
    if shell == 0:
        os.chdir(REPOSITORY)
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, **environment})
    said = bytearray()

    def listen() -> None:
        with contextlib.suppress(OSError):
            while piece := os.read(terminal, 1 << 16):
                said.extend(piece)

    listener = threading.Thread(target=listen)
    listener.start()
    try:
        os.write(terminal, shlex.join(command).encode() + b"\n")
        wait_for_steps(out)
        os.write(terminal, b"\x03")
        assert wait_until(lambda: json.loads((out / "run_status.json").read_text())["status"] == "preempted", 60), said[-3000:]
        assert wait_until(lambda: not mentioning(str(out)), 30)
    finally:
        for pid in mentioning(str(out)):
            os.kill(pid, signal.SIGKILL)
        os.kill(shell, signal.SIGKILL)
        os.waitpid(shell, 0)
        listener.join()
        os.close(terminal)
    check_it_was_saved(out, said.decode(errors="replace"))


@pytest.mark.full
def test_a_second_ctrl_c_ends_at_once(data_set: Path, tmp_path: Path) -> None:
    out, script, words, environment = slow_saves(tmp_path, data_set)
    process = start_warm(words, script=script, ranks=0, **environment)
    wait_for_steps(out)
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if line == "saving now\n":
            break
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    status, output = finish(process)
    assert status == -signal.SIGINT and time.monotonic() - began < SAVE / 2, output
    assert not sealed(out / "checkpoints")

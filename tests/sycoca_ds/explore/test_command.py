"""`explore` as it is started: help without torch, bad options in a line, the address, Ctrl-C."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.explore.command import ExploreCommand
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import make_data, make_run
from tests.worlds.trainings.explored import until

COMMAND = [sys.executable, "-m", "sycoca_ds.explore"]


def test_help_comes_before_torch_and_flask() -> None:
    code = (
        "import sys\nfrom sycoca_ds.explore.command import main\nsys.argv[1:] = ['--help']\ntry:\n    main()\n"
        "finally:\n    assert not {'torch', 'deepspeed', 'flask', 'waitress', 'cv2'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for option in ("--data", "--samples", "--index", "--port", "--host", "--beams", "--ema"):
        assert option in done.stdout


@pytest.mark.parametrize(
    "given, said",
    [
        ({"port": 70_000}, "--port 70000: expected at least 0 and at most 65535"),
        ({"samples": -1}, "--samples -1: expected at least 0"),
        ({"beams": 0}, "--beams 0: expected at least 1"),
        ({"batch_size": 0}, "--batch-size 0: expected at least 1"),
        ({"index": "not there"}, "--index not there: no such folder"),
        ({"index": ".", "port": 0, "cache": "/dev/null/x"}, "--cache /dev/null/x: no file can be written there"),
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 stands for all addresses"),
        ({"host": "::"}, "--host :: stands for all addresses"),
        ({"host": "example.org"}, "--host example.org: expected an address"),
    ],
)
def test_bad_options_are_refused_before_anything_is_opened(given: dict, said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}"):
        ExploreCommand(checkpoint="nothing", **given).run()


def test_hosts_that_a_browser_may_call_by() -> None:
    assert ExploreCommand(checkpoint="run").hosts() == ExploreCommand(checkpoint="run", host="localhost").hosts()
    assert ExploreCommand(checkpoint="run").hosts() == ("127.0.0.1", "localhost")
    assert ExploreCommand(checkpoint="run", host="::1").hosts() == ("[::1]", "localhost")
    assert ExploreCommand(checkpoint="run", host="192.0.2.7").hosts() == ("192.0.2.7",)


@pytest.mark.slow
def test_from_the_start_to_ctrl_c(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    make_data(tmp_path / "data", images=5)
    words = [*COMMAND, str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--device", "cpu"]
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        done = subprocess.run([*words, "--port", taken], cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith(f"error: --port {taken}: cannot listen on 127.0.0.1 (Address already in use)")
    process = subprocess.Popen([*words, "--port", "0"], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        model, address = process.stdout.readline(), process.stdout.readline()
        assert model.startswith("<sycoca, 0.1 M parameters, step 7, fp32 on cpu, ")
        found = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/  \(Ctrl-C ends\)\n", address)
        state = until(found[1], stage="ready")
        assert state["samples"] == {"folder": str(tmp_path / "data"), "pictures": 5, "compared": 5}
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "ended\n", "")
    finally:
        process.kill()
        process.wait()

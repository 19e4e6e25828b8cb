"""Stopping the demo: what a stage saves at its end is saved, and after `kill -9` nothing of it is left."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sycoca_ds.demo.command import DemoOptions, plan_stages
from sycoca_ds.launch.display import Display
from tests.worlds.processes.launching import REPOSITORY

STARTER = """
import sys
from pathlib import Path
from data_pipeline.errors import run_command
from sycoca_ds.demo.command import run_stage
from sycoca_ds.launch.display import Display, Stage
folder = Path(sys.argv[1])
rank = f"trap 'sleep 2; touch {folder}/saved; exit' TERM; trap '' INT; touch {folder}/ready; while :; do sleep 0.1; done"
stage = Stage("pretrain", ["sh", "-c", 'sh -c "$0" & wait', rank], 10)
sys.exit(run_command(lambda: run_stage(stage, 0, folder, Display([stage]))))
"""
"""A stage whose own process is gone at once, as DeepSpeed's is, beside a rank in its group that saves when it is asked to end."""


@pytest.mark.parametrize("number, status, saves", [(signal.SIGINT, 130, True), (signal.SIGKILL, -9, False)])
def test_what_a_signal_to_the_demo_leaves_of_a_stage(number: int, status: int, saves: bool, tmp_path: Path) -> None:
    demo = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], cwd=REPOSITORY)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline and demo.poll() is None
        time.sleep(0.05)
    demo.send_signal(number)
    assert demo.wait(60) == status
    if not saves:
        time.sleep(3)
    assert (tmp_path / "saved").exists() == saves
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in read(path)]
    assert not left


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # gone since it was listed
        return b""


def test_a_training_that_has_read_its_regions_is_not_done() -> None:
    """They are reported as 256 of 256, and what has been reached stays reached."""
    stages = plan_stages(DemoOptions(accelerators=2), 8731)
    number = [stage.name for stage in stages].index("pretrain")
    display = Display(stages)
    display.begin(number)
    display.show({"what": "read regions", "done": 256, "total": 256, "unit": "images"})
    assert display.share < 0.05
    display.show({"what": "train", "done": 200, "total": 400, "unit": "steps"})
    assert 0.45 < display.share < 0.55
    display.show({"what": "train", "done": 400, "total": 400, "unit": "steps"})
    assert round(display.share, 9) == 1

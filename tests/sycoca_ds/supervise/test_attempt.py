"""The end of an attempt whose ranks run on other hosts, of which only heartbeats tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from sycoca_ds.engine.ranks.process_table import process_began
from sycoca_ds.engine.safety.status import ATTEMPT_VARIABLE
from sycoca_ds.supervise.attempt import Attempt, Limits, Stop
from sycoca_ds.supervise.orphans import Shell

COMMAND = f"""
import json, os, sys, time
run, ranks = sys.argv[1], json.loads(sys.argv[2])
for rank, (pid, began) in enumerate(ranks):
    told = dict(phase="step", step=7, seconds=1.0, host=f"node-{{rank}}", waits=False, pid=pid, began=began, boot="other")
    told |= dict(first=1, process_space="x", time=time.time(), world_size=2, attempt=os.environ[{ATTEMPT_VARIABLE!r}], spent={{}})
    os.makedirs(f"{{run}}/heartbeats", exist_ok=True)
    open(f"{{run}}/heartbeats/rank_{{rank:05d}}.json", "w").write(json.dumps(told))
time.sleep(2.5)
"""


@pytest.mark.parametrize("left", [False, True])
def test_ranks_that_have_ended_on_other_hosts_are_not_waited_for(
    left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their last heartbeats are young when the command ends. One that is still there is asked to save, and waited for."""
    (tmp_path / "ssh").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/words\nexec sh\n')
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    run = tmp_path / "run"
    run.mkdir()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ranks = [[process.pid, process_began(process.pid) if left else "1"], [process.pid, "2"]]
    words = (sys.executable, "-c", COMMAND, str(run), json.dumps(ranks))
    job, limits = SimpleNamespace(run=run, words=words, host_of_rank=["node-0", "node-1"]), Limits(60, 300, grace=300, save=300)
    began = time.monotonic()
    ended = Attempt(job, f"{os.getpid()}.", run / "log", limits, Stop(), Shell(), ("node-0", "node-1")).run()
    try:
        assert ended.status == 0 and ended.why == "" and set(ended.visits) == {"node-0", "node-1"}
        assert time.monotonic() - began < 100, "a half of 300 s is how long a heartbeat counts"
        assert (process.poll() is None) != left, "it was asked to save, where it was one of the ranks"
    finally:
        process.kill()
        process.wait()

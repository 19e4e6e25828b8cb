"""Slurm's `sbatch`, `srun` and `scontrol`, as far as hostfiles/slurm.sbatch uses them, with real processes on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.worlds import REPOSITORY

TASKS_PER_NODE, JOB = 2, 4711
SRUN = f'''#!{sys.executable}
"""Starts its tasks, hands signals on to them, and returns the highest status, as srun does. --kill-on-bad-exit=1 ends all with the
first that ends badly: SIGTERM, and SIGKILL after KillWait."""
import os, signal, subprocess, sys, time
words = sys.argv[1:]
kill = "--kill-on-bad-exit=1" in words
while words[0].startswith("--"):
    words.pop(0)
tasks = []
for number in range(int(os.environ["SLURM_NTASKS"])):
    own = {{"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number), "SLURM_NODEID": "0"}}
    tasks.append(subprocess.Popen(words, env={{**os.environ, **own}}))
signal.signal(signal.SIGUSR1, lambda *_: [task.send_signal(signal.SIGUSR1) for task in tasks])
deadline = None
while any(task.poll() is None for task in tasks):
    if kill and deadline is None and any(task.returncode for task in tasks):
        deadline = time.monotonic() + 30
        [task.terminate() for task in tasks if task.poll() is None]
    if deadline is not None and time.monotonic() > deadline:
        [task.kill() for task in tasks if task.poll() is None]
    time.sleep(0.05)
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
'''
SCONTROL = """#!/bin/sh
case "$1 $2" in
  "show hostnames") printf '127.0.0.1\\n' ;;
  requeue*) echo "$2" >> "$SLURM_REQUEUED" ;;
  *) exit 1 ;;
esac
"""


SBATCH = f"""#!/bin/sh
# The first task of an array, and of other jobs the batch script, at once.
case "$1" in --array=*) shift ;; esac
export PYTHON={sys.executable} SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_COUNT=1 SLURM_CPUS_PER_TASK=2 SLURM_JOB_ID={JOB}
export SLURM_JOB_NODELIST=node SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1
exec bash "$@"
"""


def write_programs(folder: Path) -> Path:
    """A folder to begin PATH with."""
    folder.mkdir(exist_ok=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("sbatch", SBATCH)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def sbatch(folder: Path, *options: str) -> subprocess.Popen:
    """Runs the template as the batch script of a job of two tasks on this machine; `folder`/requeued then has the ids of jobs that
    went back into the queue."""
    programs = write_programs(folder / "slurm")
    environment = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "SLURM_JOB_ID": str(JOB),
        "SLURM_JOB_NODELIST": "node",
        "SLURM_NTASKS": str(TASKS_PER_NODE),
        "SLURM_NTASKS_PER_NODE": str(TASKS_PER_NODE),
        "SLURM_REQUEUED": str(folder / "requeued"),
    }
    return subprocess.Popen(
        ["bash", str(REPOSITORY / "hostfiles/slurm.sbatch"), *options],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )

"""Runs of `deepspeed sycoca_ds/train.py`, and what they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
VOCABULARY = 49152
"""The default tokenizer's: the presets' real size, whatever the data's own tokenizer has."""


@dataclass
class Ended:
    seconds: float
    log: str
    records: list[dict[str, Any]]
    """Of metrics.jsonl, those of the training."""
    others: list[dict[str, Any]]
    """Those of saves."""
    gpu_mib: int
    """Most memory of the GPU in use while it ran, by nvidia-smi: the CUDA context and what the allocator reserves."""


def launch(out: Path, data: Path, *words: str, ranks: int = 1, gpu: bool = True) -> subprocess.Popen:
    """A training's process group, its output in OUT.log."""
    env = dict(os.environ, PYTHONPATH=f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    command = [sys.executable]
    if gpu:
        command += ["-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    else:  # a lone rank: the launcher would show it the GPUs again
        env |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command += [str(REPOSITORY / "sycoca_ds/train.py"), "--data.train", str(data), "--run.out", str(out), *words]
    with open(f"{out}.log", "a") as log:
        print("$", *command, file=log, flush=True)
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)


def finish(process: subprocess.Popen, out: Path, *, watch: bool = False) -> Ended:
    """Waits for a training's end.

    Raises:
        RuntimeError: it failed; with the end of its output.
    """
    began, most, stop = time.monotonic(), [0], threading.Event()

    def sample() -> None:
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i", "0"]
        while not stop.wait(0.5):
            most[0] = max(most[0], int(subprocess.run(query, capture_output=True, text=True).stdout.split()[0]))

    thread = threading.Thread(target=sample, daemon=True)
    if watch:
        thread.start()
    status = process.wait()
    stop.set()
    log = Path(f"{out}.log").read_text()
    if status:
        raise RuntimeError(f"{out.name} ended with status {status}: ...{log[-1500:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    records = [line for line in lines if "loss" in line]
    return Ended(time.monotonic() - began, log, records, [line for line in lines if "loss" not in line], most[0])

"""Trainings with a fault in them: train.py in which something is done on one rank at one step."""

from __future__ import annotations

from pathlib import Path

from tests.worlds import REPOSITORY

HURT = """\
import os, signal, sys, time
sys.path[0] = {repository!r}
import torch
from sycoca_ds.data.batch import Batch
from sycoca_ds.data.loader import TrainSet
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.train import end_process, on_every_rank, run_command
rank, calls = int(os.environ.get("RANK", "0")), []
plain = SyCoCa._train
def train(self, **inputs):
    calls.append(1)
    n = len(calls)
    {before}
    report = plain(self, **inputs)
    {fault}
    return report
SyCoCa._train = train
end_process(run_command(on_every_rank))
"""


def hurt(folder: Path, fault: str = "pass", before: str = "pass") -> Path:
    """train.py in which something is done after, or before, every forward pass for training, of which this is the `n`-th."""
    script = folder / f"hurt_{len(list(folder.glob('hurt_*')))}.py"
    script.write_text(HURT.format(repository=str(REPOSITORY), fault=fault, before=before))
    return script

"""A checkpoint for another number of ranks, by DeepSpeed's universal format: a file a parameter instead of a file a rank.

Weights, AdamW's moments and its step come through exactly. Loading with ZeRO-3, DeepSpeed 0.19.8 would change the run without a
word: every parameter group would get the options of the first (norms and biases would decay), and all of them one step tensor
on the host, which torch's AdamW would then raise once for each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint.seal import for_deepspeed


def convert(folder: Path, target: Path) -> UserError | None:
    """Writes the universal form of a checkpoint folder into `target`, which must not exist; the checkpoint is only read.

    In a process of its own: the converter forks workers, which a process with collectives and a GPU must not. It works beside the
    checkpoint, with names of ours alone: it takes its folders' paths for patterns.

    Returns:
        What went wrong: one rank converts, and its error has to reach the others.
    """
    words = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    words += ["--input_folder", folder.name, "--output_folder", str(target.relative_to(folder.parent))]
    try:
        target.mkdir(parents=True)
        done = subprocess.run(words, cwd=folder.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return None
        reason = f"DeepSpeed's ds_to_universal ended with {done.returncode} ({' '.join(done.stdout.split())[-300:]})"
    return UserError(
        f"checkpoint {folder} cannot be converted for this number of ranks: {reason}; {target.parent} needs room for the "
        "checkpoint twice; or resume with the ranks it was saved with"
    )


def load(engine, target: Path) -> None:
    """Loads what `convert` wrote, on all ranks, into an engine that is told to load the universal format.

    Raises:
        RuntimeError: DeepSpeed loaded nothing.
    """
    groups: list[dict[str, Any]] = [
        {key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups
    ]
    with for_deepspeed(target) as (above, name):
        path, _ = engine.load_checkpoint(above, tag=name)
    if path is None:
        raise RuntimeError(f"DeepSpeed loaded nothing from {target}")
    for group, own in zip(engine.optimizer.param_groups, groups, strict=True):
        group.update(own)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for parameter, state in inner.state.items():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].to(parameter.device, copy=True)

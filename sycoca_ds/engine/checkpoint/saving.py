"""Checkpoints that are whole or do not exist.

`<run>/checkpoints/step_00001000/` holds DeepSpeed's shards, each rank's random state, tokenizer.json and state.json. The last
carries size and sha256 of every other file and is renamed into place after all ranks have written: a folder without it is a
save that was interrupted, and is not looked at. DeepSpeed's own `latest` file is neither written nor read: it appears before
all ranks are done, and a missing one makes DeepSpeed train from scratch without a word.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.files import sync, write_text
from sycoca_ds.config import TrainConfig
from sycoca_ds.engine.runtime import Runtime, random_state

FORMAT = 1
STATE_FILE = "state.json"


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save(
    engine,
    runtime: Runtime,
    run: Path,
    *,
    step: int,
    samples: int,
    config: TrainConfig,
    manifest_digest: str,
    extra: dict[str, Any],
) -> Path:
    """Saves on all ranks and seals: every rank must call it at the same step.

    Args:
        engine: DeepSpeed engine.
        step, samples: optimizer steps and samples consumed; the position in the data follows from them.
        extra: more JSON values to keep (counters).

    Returns:
        The step's folder.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"
    if runtime.leads:
        shutil.rmtree(folder, ignore_errors=True)  # an interrupted save of the same step
        folder.mkdir(parents=True)
    runtime.barrier()
    engine.save_checkpoint(str(folder.parent), tag=folder.name, save_latest=False, exclude_frozen_parameters=False)
    torch.save(random_state(), folder / f"random_rank_{runtime.rank:05d}.pt")
    if runtime.leads:
        shutil.copyfile(run / "tokenizer.json", folder / "tokenizer.json")
    runtime.barrier()
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    hashed = {}
    for name in names[runtime.rank :: runtime.world_size]:
        sync(folder / name)
        hashed[name] = {"bytes": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
    files = {name: facts for part in runtime.gather(hashed) for name, facts in part.items()}
    if runtime.leads:
        state = {
            "format": FORMAT,
            "step": step,
            "samples": samples,
            "world_size": runtime.world_size,
            "zero_stage": engine.zero_optimization_stage(),
            "manifest_digest": manifest_digest,
            "config": dataclasses.asdict(config),
            "extra": extra,
            "versions": {name: version(name) for name in ("torch", "deepspeed", "numpy")},
            "files": dict(sorted(files.items())),
        }
        write_text(folder / STATE_FILE, json.dumps(state, indent=1) + "\n")
        _delete_old(folder.parent, config.run.keep_checkpoints)
    runtime.barrier()
    return folder


def _delete_old(checkpoints: Path, keep: int) -> None:
    """Deletes all but the `keep` newest sealed checkpoints, seal first, and never the newest."""
    for folder in sealed(checkpoints)[max(1, keep) :]:
        (folder / STATE_FILE).unlink()
        shutil.rmtree(folder)


def sealed(checkpoints: Path) -> list[Path]:
    """Folders of finished saves, newest step first."""
    return sorted((path.parent for path in checkpoints.glob(f"step_*/{STATE_FILE}")), reverse=True)


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed checkpoint, naming the file, or None. Reads and hashes every file."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
        files = state["files"]
    except (OSError, ValueError, KeyError) as error:
        return f"{folder / STATE_FILE} cannot be read ({error!r})"
    if state.get("format") != FORMAT:
        return f"{folder / STATE_FILE} has format {state.get('format')}, expected {FORMAT}"
    for name, facts in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != facts["bytes"] or hash_file(path) != facts["sha256"]:
            return f"{path} is damaged (its size or sha256 is not what {STATE_FILE} says)"
    return None


def newest_whole(checkpoints: Path) -> tuple[Path | None, list[str]]:
    """(newest checkpoint whose files all verify, or None; what was wrong with the newer ones).

    Raises:
        UserError: there are sealed checkpoints and every one is damaged. Starting afresh is the user's decision.
    """
    problems = []
    for folder in sealed(checkpoints):
        problem = damage(folder)
        if problem is None:
            return folder, problems
        problems.append(problem)
    if problems:
        raise UserError(
            f"every checkpoint in {checkpoints} is damaged ({'; '.join(problems)}): restore one, or choose another "
            "--run.out to start afresh"
        )
    return None, problems


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE_FILE).read_text())

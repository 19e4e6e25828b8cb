"""Checkpoints that are whole or do not exist.

`<run>/checkpoints/step_00001000/` holds DeepSpeed's shards, each rank's random state, tokenizer.json and state.json. The last
carries size and sha256 of every other file and is renamed into place after all ranks have written: a folder without it is a
save that was interrupted, and is not looked at. DeepSpeed's own `latest` file is neither written nor read: it appears before
all ranks are done, and a missing one makes DeepSpeed train from scratch without a word.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig, TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine import exported, resharding
from sycoca_ds.engine.runtime import Runtime, prepare_deepspeed, random_state, restore_random_state, write_text
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import from_dict

FORMAT = 1
STATE_FILE = "state.json"
CONVERTED = "for_other_ranks"
"""Folder beside the checkpoints in which one is converted for another number of ranks, while it is loaded."""


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
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
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


def check_same_model(saved: dict[str, Any], model: ModelConfig, folder: Path) -> None:
    """Raises `UserError` naming the first field in which the saved model differs from the configured one."""

    def compare(old: dict[str, Any], new: dict[str, Any], where: str) -> None:
        for key, value in new.items():
            if isinstance(value, dict):
                compare(old[key], value, f"{where}.{key}")
            elif (where != "model.masking" or key == "mim") and old[key] != value:  # of masking, `mim` alone decides on parts
                name = f"{where}.{key}".replace("_", "-")
                raise UserError(
                    f"checkpoint {folder} was saved with {name} = {old[key]}, this run has {value}: use the same "
                    "model, or another --run.out"
                )

    # through the class, so that fields which the saved version did not know yet have their defaults
    old = from_dict(ModelConfig, saved["config"]["model"], str(folder / STATE_FILE))
    compare(dataclasses.asdict(old), dataclasses.asdict(model), "model")


def restore(engine, runtime: Runtime, folder: Path, config: TrainConfig, manifest_digest: str) -> dict[str, Any]:
    """Loads weights, optimizer and random states of a verified checkpoint on all ranks; returns its state.

    At another number of ranks the random states stay those of the run's seed: nothing in training draws from them, masks and
    augmentation are keyed by the sample.

    Raises:
        UserError: another model, data set, sample order or ZeRO stage than the run's.
    """
    state = read_state(folder)
    check_same_model(state, config.model, folder)
    if state["manifest_digest"] != manifest_digest:
        raise UserError(
            f"checkpoint {folder} was trained on another manifest (digest {state['manifest_digest'][:12]}, data.train "
            f"has {manifest_digest[:12]}): its position in the data means nothing there; restore the data or choose "
            "another --run.out"
        )
    saved = state["config"]
    for section, key in (
        ("data", "weights"),
        ("data", "lanes"),
        ("data", "window"),
        ("optim", "global_batch_size"),
        ("run", "seed"),
    ):
        wanted = getattr(getattr(config, section), key)
        was = saved[section].get(key, wanted)  # a field younger than the checkpoint
        was = tuple(was) if isinstance(was, list) else was
        if was != wanted:
            raise UserError(
                f"checkpoint {folder} has {section}.{key.replace('_', '-')} = {was}, this run "
                f"{wanted}: the sample order depends on it; use the same value or another --run.out"
            )
    stage, wanted = state["zero_stage"], engine.zero_optimization_stage()
    if stage != wanted:
        raise UserError(f"checkpoint {folder} was saved with {stage} as ZeRO stage, this run has {wanted}: resume with {stage}")
    if runtime.leads:
        shutil.rmtree(folder.parent / CONVERTED, ignore_errors=True)  # of a start that was killed
    if needs_resharding(state, runtime.world_size):
        _restore_for_other_ranks(engine, runtime, folder, state)
        return state
    path, _ = engine.load_checkpoint(str(folder.parent), tag=folder.name)
    if path is None:
        raise RuntimeError(f"DeepSpeed loaded nothing from {folder}")
    if state["world_size"] == runtime.world_size:
        restore_random_state(torch.load(folder / f"random_rank_{runtime.rank:05d}.pt", weights_only=True))
    return state


def needs_resharding(state: dict[str, Any], world_size: int) -> bool:
    """Whether a checkpoint has to be converted first. Without ZeRO every rank holds everything, at any number of ranks."""
    return state["zero_stage"] > 0 and state["world_size"] != world_size


def _restore_for_other_ranks(engine, runtime: Runtime, folder: Path, state: dict[str, Any]) -> None:
    """Converts, loads and deletes the converted form, whose name is not that of a checkpoint."""
    # a name of its own: the converter of a start that was killed may still be at work
    target = folder.parent / CONVERTED / runtime.agree(f"{folder.name}.{os.getpid()}")
    runtime.say(f"{folder} was saved by {state['world_size']} ranks: converting it for {runtime.world_size}")
    problem = runtime.agree(resharding.convert(folder, target) if runtime.leads else None)
    if problem is not None:
        raise problem
    resharding.load(engine, target)
    runtime.barrier()
    if runtime.leads:
        shutil.rmtree(target.parent, ignore_errors=True)


@dataclass(frozen=True)
class Stored:
    """Weights on disk, opened: of a run's checkpoint or of an exported folder."""

    config: TrainConfig
    """The run's; of an exported folder only `model` is known, the rest are defaults."""
    weights: dict[str, torch.Tensor]
    """Every parameter, in the precision it is stored in."""
    tokenizer: Path | None
    state: dict[str, Any]
    """state.json of a checkpoint, `source` of an exported folder; step and samples are None where nobody knows."""
    folder: Path
    digest: str
    """sha256 of state.json or config.json, which itself covers every other file."""


def open_weights(path: str | Path) -> Stored:
    """Opens the newest whole checkpoint of a run folder or checkpoints folder, one step's folder, or an exported folder.

    Raises:
        UserError: nothing there, or damaged, naming the file.
    """
    path = Path(path)
    if exported.is_exported(path):
        model, weights, record = exported.read_exported(path)
        tokenizer = path / exported.TOKENIZER_FILE if record.get("tokenizer") else None
        state = {"step": None, "samples": None, **record["source"]}
        return Stored(TrainConfig(model=model), weights, tokenizer, state, path, hash_file(path / exported.CONFIG_FILE))
    if (path / STATE_FILE).is_file():
        problem = damage(path)
        if problem is not None:
            raise UserError(f"checkpoint {problem}: choose another step of {path.parent}")
        folder = path
    else:
        checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        folder, _ = newest_whole(checkpoints)
        if folder is None:
            raise UserError(
                f"no finished checkpoint in {path}: expected step_*/{STATE_FILE} in it or in its checkpoints folder; "
                "train with `deepspeed sycoca_ds/train.py --run.out RUN`, or give a folder that sycoca_ds/export.py wrote"
            )
    state = read_state(folder)
    config = from_dict(TrainConfig, state["config"], str(folder / STATE_FILE))
    weights = _weights(folder, state["zero_stage"])
    return Stored(config, weights, folder / "tokenizer.json", state, folder, hash_file(folder / STATE_FILE))


@dataclass(frozen=True)
class Loaded:
    """A model opened for inference."""

    model: SyCoCa
    """float32, in eval mode, on the asked device."""
    config: TrainConfig
    known_tokenizer: Tokenizer | None
    state: dict[str, Any]
    folder: Path
    digest: str
    """As in `Stored`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises `UserError` where none came with the weights."""
        if self.known_tokenizer is None:
            raise UserError(
                f"{self.folder} holds no tokenizer.json, and captions are needed here: export the weights again with "
                "`sycoca_ds/export.py --tokenizer FILE`, the tokenizer they were trained with"
            )
        return self.known_tokenizer


def load_for_inference(path: str | Path, device: str | torch.device = "cpu") -> Loaded:
    """A model from whatever `open_weights` opens.

    Raises:
        UserError: nothing there, or damaged, naming the file.
    """
    stored = open_weights(path)
    model = SyCoCa(stored.config.model, stored.config.loss, seed=None)
    model.load_state_dict(stored.weights)
    tokenizer = None if stored.tokenizer is None else Tokenizer(stored.tokenizer)
    return Loaded(model.to(device).eval(), stored.config, tokenizer, stored.state, stored.folder, stored.digest)


def _weights(folder: Path, zero_stage: int) -> dict[str, torch.Tensor]:
    """All weights in float32 from the shards of every rank."""
    if zero_stage == 0:
        saved = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["module"]
        return {name: value.float() for name, value in saved.items()}
    prepare_deepspeed()
    if zero_stage == 1 and list(folder.glob("bf16_zero_pp_rank_*")):
        return _weights_of_bf16_zero_1(folder)
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        return get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=folder.name)


def _weights_of_bf16_zero_1(folder: Path) -> dict[str, torch.Tensor]:
    """ZeRO-1 in bf16 has an optimizer class of its own, whose files DeepSpeed 0.19.8's zero_to_fp32 does not read.

    Every rank holds an equal piece of each parameter group's float32 weights laid end to end, padded at the end.
    """
    shapes = torch.load(folder / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)["param_shapes"]
    ranks = len(list(folder.glob("bf16_zero_pp_rank_*_mp_rank_00_optim_states.pt")))
    pieces = [
        torch.load(folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt", map_location="cpu", weights_only=False)[
            "optimizer_state_dict"
        ]["single_partition_of_fp32_groups"]
        for rank in range(ranks)
    ]
    weights = {}
    for number, group in enumerate(shapes):
        flat, place = torch.cat([piece[number] for piece in pieces]), 0
        for name, shape in group.items():
            weights[name] = flat[place : place + shape.numel()].view(shape).clone()
            place += shape.numel()
    return weights

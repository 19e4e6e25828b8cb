"""A run goes on from a verified checkpoint: the same model, data and order, at any number of ranks."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig, OptimConfig, TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint import resharding
from sycoca_ds.engine.checkpoint.seal import STATE_FILE, damage, for_deepspeed, newest_whole, read_state, sealed
from sycoca_ds.engine.policy import FLAT_ORDER
from sycoca_ds.engine.ranks.runtime import Runtime, restore_random_state
from sycoca_ds.engine.safety.status import STATUS_FILE, read_status
from sycoca_ds.engine.schedule import learning_rate
from sycoca_ds.options import changed_fields, from_dict

log = logging.getLogger(__name__)

CONVERTED = "for_other_ranks"
"""Folder beside the checkpoints in which one is converted for another number of ranks, while it is loaded."""


def newest_whole_together(run: Path, runtime: Runtime) -> Path | None:
    """The newest checkpoint of a run whose files verify, None if there is none yet; all ranks look, each at its share of the files.
    A damaged newer one is named and passed over.

    Raises:
        UserError: on all ranks: none verifies, or the run has saved before and all checkpoints are gone.
    """
    folders = runtime.agree(sealed(run / "checkpoints") if runtime.leads else None)

    def look(folder: Path) -> str | None:
        return next(filter(None, runtime.gather(damage(folder, runtime.rank, runtime.world_size))), None)

    found, problems = newest_whole(run / "checkpoints", folders, look, ", or choose another --run.out to start afresh")
    for problem in problems if runtime.leads else ():
        log.warning("passed over a damaged checkpoint: %s", problem)
    saved = runtime.agree(read_status(run).get("checkpoint") if runtime.leads else None)
    if found is None and saved is not None:
        raise UserError(
            f"{run / STATUS_FILE} says that a checkpoint of step {saved} was saved, and there is none in {run / 'checkpoints'}: "
            "restore it, or choose another --run.out to start at step 0"
        )
    return found


def state_together(folder: Path, runtime: Runtime) -> dict[str, Any]:
    """What the seal of a verified checkpoint says, as rank 0 reads it."""
    return runtime.agree(read_state(folder) if runtime.leads else None)


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


def check_resumable(
    state: dict[str, Any], folder: Path, config: TrainConfig, *, manifest_digest: str, zero_stage: int, tokenizer: Tokenizer
) -> None:
    """Refuses a checkpoint that this run cannot go on from, before anything is loaded.

    Args:
        config: with the precision and the vocabulary resolved, see `preparation.settle`.

    Raises:
        UserError: another model, data set, tokenizer, sample order, ZeRO stage or precision than the run's.
    """
    check_same_model(state, config.model, folder)
    if state["manifest_digest"] != manifest_digest:
        raise UserError(
            f"checkpoint {folder} was trained on another manifest (digest {state['manifest_digest'][:12]}, data.train "
            f"has {manifest_digest[:12]}): its position in the data means nothing there; restore the data or choose "
            "another --run.out"
        )
    if not tokenizer.has_ids_of(folder / "tokenizer.json"):
        raise UserError(
            f"checkpoint {folder} was trained with other ids than those of {tokenizer.path}: its words would change their meaning; "
            f"resume with --data.tokenizer {folder / 'tokenizer.json'}, or choose another --run.out"
        )
    saved = state["config"]
    if saved.get("task", "pretrain") != config.task:
        raise UserError(
            f"checkpoint {folder} is of --task {saved.get('task', 'pretrain')}, this run of {config.task}: use another --run.out"
        )
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
    if state["zero_stage"] != zero_stage:
        stage = state["zero_stage"]
        raise UserError(f"checkpoint {folder} was saved with {stage} as ZeRO stage, this run has {zero_stage}: resume with {stage}")
    if saved["run"]["precision"] != config.run.precision:
        raise UserError(
            f"checkpoint {folder} was trained in {saved['run']['precision']}, this run has run.precision = {config.run.precision}: "
            "leave run.precision out (auto takes the checkpoint's), or choose another --run.out"
        )


def changes(state: dict[str, Any], config: TrainConfig, before: OptimConfig, *, old_steps: int, steps: int) -> list[str]:
    """What a resumed run does otherwise than the run that saved the checkpoint, a sentence each; empty if nothing.

    Args:
        config: as in `check_resumable`, which it has passed.
        before: the checkpoint's.
        old_steps, steps: length of the whole run then and now.
    """
    step = state["step"]
    changed = changed_fields(state["config"], dataclasses.asdict(config))
    ignored = changed.pop("run.weights", None)
    said = []
    if (before.ema_decay is None) != (config.optim.ema_decay is None):
        changed.pop("optim.ema-decay", None)
        if before.ema_decay is None:
            said.append(f"the EMA of the weights starts at those of step {step}: the checkpoint has none")
        else:
            said.append(f"the checkpoint's EMA of the weights (decay {before.ema_decay}) is dropped: optim.ema-decay is None")
    if changed:
        listed = ", ".join(f"{name} = {new} (was {old})" for name, (old, new) in changed.items())
        said.append(f"from step {step} on with other settings than the checkpoint's: {listed}")
    if ignored is not None and config.run.weights is not None:
        said.append(f"run.weights = {config.run.weights} is not read: the run goes on from its checkpoint")
    rates = [
        learning_rate(step, peak=optim.lr, warmup_steps=optim.warmup_steps, steps=length)
        for optim, length in ((before, old_steps), (config.optim, steps))
    ]
    if steps <= step:
        said.append(f"the run has {steps} steps and the checkpoint is of step {step}: there is nothing left to do")
    elif rates[0] != rates[1]:
        said.append(
            f"learning rate {rates[1]:.1e} at step {step} (by the checkpoint's settings {rates[0]:.1e}), falling to 0 at step "
            f"{steps}: the schedule is that of a run which had these settings from its first step"
        )
    return said


def restore(engine, runtime: Runtime, folder: Path, state: dict[str, Any]) -> None:
    """Loads weights, optimizer and random states of a checkpoint that `check_resumable` has accepted, on all ranks.

    At another number of ranks the random states stay those of the run's seed: nothing in training draws from them, masks and
    augmentation are keyed by the sample.
    """
    if runtime.leads:
        shutil.rmtree(folder.parent / CONVERTED, ignore_errors=True)  # of a start that was killed
    resharded = needs_resharding(state, runtime.world_size)
    # said for each checkpoint: a run that began with one of other ranks may go back to one of its own
    engine._config.load_universal_checkpoint = resharded
    if resharded:
        _restore_for_other_ranks(engine, runtime, folder, state)
        return
    with for_deepspeed(folder) as (above, name):
        path, _ = engine.load_checkpoint(above, tag=name)
    if path is None:
        raise RuntimeError(f"DeepSpeed loaded nothing from {folder}")
    if state["world_size"] == runtime.world_size:
        restore_random_state(torch.load(folder / f"random_rank_{runtime.rank:05d}.pt", weights_only=True))


def needs_resharding(state: dict[str, Any], world_size: int) -> bool:
    """Whether a checkpoint has to be converted first: it was cut for other ranks, or its weights lie in the order of an earlier
    version. Without ZeRO every rank holds everything, at any number of ranks and in the model's order."""
    return state["zero_stage"] > 0 and (state["world_size"] != world_size or state.get("flat_order", 1) != FLAT_ORDER)


def _restore_for_other_ranks(engine, runtime: Runtime, folder: Path, state: dict[str, Any]) -> None:
    """Converts, loads and deletes the converted form, whose name is not that of a checkpoint."""
    # a name of its own: the converter of a start that was killed may still be at work
    target = folder.parent / CONVERTED / runtime.agree(f"{folder.name}.{os.getpid()}")
    if state["world_size"] == runtime.world_size:
        runtime.say(f"{folder} was saved by an earlier version, which laid the weights in another order: converting it")
    else:
        runtime.say(f"{folder} was saved by {state['world_size']} ranks: converting it for {runtime.world_size}")
    problem = runtime.agree(resharding.convert(folder, target) if runtime.leads else None)
    if problem is not None:
        raise problem
    resharding.load(engine, target)
    runtime.barrier()
    if runtime.leads:
        shutil.rmtree(target.parent, ignore_errors=True)

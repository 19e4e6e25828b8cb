"""Weights on disk, opened for evaluation, export and another run's start: of a run's checkpoint or of an exported folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.errors import UserError
from data_pipeline.files import no_folder, sha256_file
from sycoca_ds.config import TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint import ema_files, exported, master_files
from sycoca_ds.engine.checkpoint.seal import STATE_FILE, damage, newest_whole, read_state, sealed
from sycoca_ds.engine.checkpoint.tensor_files import Damaged
from sycoca_ds.engine.master_weights import WHOLE, Share
from sycoca_ds.exporting.open_clip_files import FROM_OPEN_CLIP, OPEN_CLIP_CONFIG
from sycoca_ds.model.shapes import our_shapes
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import from_dict

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """Weights on disk, opened: of a run's checkpoint or of an exported folder."""

    config: TrainConfig
    """The run's; of an exported folder only `model` is known, the rest are defaults."""
    weights: dict[str, torch.Tensor]
    """Every parameter, in the precision it is stored in; of a share the flat piece of each."""
    tokenizer: Path | None
    state: dict[str, Any]
    """state.json of a checkpoint, `source` of an exported folder; step and samples are None where nobody knows."""
    folder: Path
    digest: str
    """sha256 of state.json or config.json, which itself covers every other file."""
    ema_decay: float | None = None
    """Of the moving average that the weights are; None: they are a run's as they are."""


def open_weights(path: str | Path, *, ema: bool = False, share: Share = WHOLE) -> Stored:
    """Opens the newest whole checkpoint of a run folder or checkpoints folder, one step's folder, or an exported folder.

    Of a checkpoint the weights are read and verified, as they are read, and nothing of the optimizer's state beside them.

    Args:
        ema: the moving average of a checkpoint's weights, and no other weights.
        share: how much of each weight is read.

    Raises:
        UserError: nothing there, or damaged, naming the file; `ema` of what has none.
    """
    path = Path(path)
    if exported.is_exported(path):
        if ema:
            raise UserError(f"--ema: {path} is an exported folder, which has one set of weights: give the run, or leave --ema out")
        model, weights, record = exported.read_exported(path)
        tokenizer = path / exported.TOKENIZER_FILE if record.get("tokenizer") else None
        state = {"step": None, "samples": None, **record["source"]}
        digest, decay = sha256_file(path / exported.CONFIG_FILE), record["source"].get("ema_decay")
        if share != WHOLE:
            flat = {name: value.reshape(-1)[slice(*share.bounds(value.numel()))].clone() for name, value in weights.items()}
            weights = flat
        return Stored(TrainConfig(model=model), weights, tokenizer, state, path, digest, decay)
    read: dict[Path, dict[str, torch.Tensor]] = {}

    def look(folder: Path) -> str | None:
        """What is wrong with what is needed of a checkpoint, or None. Weights are read here: verifying them is reading them."""
        problem = damage(folder, patterns=(exported.TOKENIZER_FILE, *([ema_files.PATTERN] if ema else [])))
        if problem is None and not ema:
            try:
                read[folder] = master_files.read(folder, read_state(folder), share)
            except (Damaged, OSError) as error:
                problem = str(error)
        return problem

    if (path / STATE_FILE).is_file():
        problem = look(path)
        if problem is not None:
            raise UserError(f"checkpoint {problem}: choose another step of {path.parent}")
        folder = path
    else:
        if not path.is_dir():
            raise UserError(
                f"no finished checkpoint in {path}: {no_folder(path)}; expected a run, a step's folder, or a folder that "
                "sycoca_ds/export.py wrote: check the path"
            )
        if (path / OPEN_CLIP_CONFIG).is_file():
            raise UserError(
                f"{path} holds weights for open_clip's own commands ({OPEN_CLIP_CONFIG}): expected a run, a step's folder, or what "
                "`sycoca export RUN --to safetensors` or hf-folder writes; export the run so, or turn these back with "
                f"`sycoca export {FROM_OPEN_CLIP} {path} --out FOLDER`"
            )
        checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        folder, problems = newest_whole(checkpoints, look=look)
        for problem in problems:
            log.warning("passed over a damaged checkpoint: %s", problem)
        if folder is None:
            raise UserError(
                f"no finished checkpoint in {path}: expected step_*/{STATE_FILE} in it or in its checkpoints folder; "
                "train with `deepspeed sycoca_ds/train.py --run.out RUN`, or give a folder that sycoca_ds/export.py wrote"
            )
    state = read_state(folder)
    config = from_dict(TrainConfig, state["config"], str(folder / STATE_FILE))
    if ema:
        files, decay = ema_files.names(state), config.optim.ema_decay
        if not files:
            raise UserError(f"--ema: checkpoint {folder} was saved without optim.ema-decay and has no average: leave --ema out")
        weights = ema_files.read(folder, files, our_shapes(config.model), share)
    else:
        weights, decay = read[folder], None
    return Stored(config, weights, folder / exported.TOKENIZER_FILE, state, folder, sha256_file(folder / STATE_FILE), decay)


def tokenizer_of(path: str | Path) -> Path | None:
    """tokenizer.json of what `open_weights` opens, without opening it; None where there is none."""
    path = Path(path)
    checkpoints = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    files = (folder / exported.TOKENIZER_FILE for folder in (path, *sealed(checkpoints)))
    return next((file for file in files if file.is_file()), None)


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
    ema_decay: float | None
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


def load_for_inference(path: str | Path, device: str | torch.device = "cpu", *, ema: bool = False) -> Loaded:
    """A model from whatever `open_weights` opens.

    Raises:
        UserError: as there.
    """
    stored = open_weights(path, ema=ema)
    model = SyCoCa(stored.config.model, stored.config.loss, seed=None)
    model.load_state_dict(stored.weights)
    return loaded(stored, model.to(device))


def loaded(stored: Stored, model: SyCoCa) -> Loaded:
    """What is known of a model that has these weights."""
    tokenizer, model = None if stored.tokenizer is None else Tokenizer(stored.tokenizer), model.eval()
    return Loaded(model, stored.config, tokenizer, stored.state, stored.folder, stored.digest, stored.ema_decay)

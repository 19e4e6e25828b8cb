"""Weights to be written, and what is known of them: of a checkpoint, an exported folder, or open_clip's files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError
from sycoca_ds.exporting.open_clip_files import OPEN_CLIP_CONFIG, OWN_KEY, described, find_open_clip, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from sycoca_ds.config import ModelConfig
    from sycoca_ds.exporting.options import ExportConfig


@dataclass(frozen=True)
class Source:
    """Weights to be written, and what is known of them."""

    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Path | None
    facts: dict[str, Any]
    """kind, path (a name alone: where it lay is the business of one machine), step, samples, digest; of a checkpoint also
    ema_decay, and about, what the model card tells of its training."""


def open_clip_source(config: ExportConfig) -> Source:
    """open_clip's weights under our names."""
    from data_pipeline.command_line import nearest
    from data_pipeline.files import sha256_file
    from sycoca_ds.data.tokenizer import Tokenizer
    from sycoca_ds.exporting.options import name_of
    from sycoca_ds.model.open_clip.config import open_clip_config
    from sycoca_ds.model.open_clip.weights import from_open_clip
    from sycoca_ds.options import read_json_object
    from sycoca_ds.presets import PRESETS

    path = Path(config.from_open_clip)
    file, beside = find_open_clip(path)
    tokenizer = Path(config.tokenizer) if config.tokenizer else None
    if tokenizer is None and (path / "tokenizer.json").is_file() and OWN_KEY in (beside or {}):
        tokenizer = path / "tokenizer.json"  # this command wrote it; other people's may be of another kind
    known = Tokenizer(tokenizer) if tokenizer else None

    model = None if beside is None else described(beside, str(path / OPEN_CLIP_CONFIG), known)
    if config.model is None and model is None:
        raise UserError(f"--from-open-clip {path}: say with --model which model it is, or give a folder with {OPEN_CLIP_CONFIG}")
    if config.model is not None:
        named = config.model
        if named.endswith(".json"):
            wanted = described(read_json_object(Path(named), "--model"), named, known)
        elif named in PRESETS:
            wanted = PRESETS[named].model
            if known:
                wanted = replace(wanted, text=replace(wanted.text, sot_id=known.sot_id, eot_id=known.eot_id))
        else:
            names = [name for name, preset in PRESETS.items() if preset.model.family == "coca"]
            raise UserError(
                f"--model {named}: no such preset{nearest(named, names)} (expected one of {', '.join(names)}, or a .json file)"
            )
        if model is not None and open_clip_config(wanted) != open_clip_config(model):
            raise UserError(f"--model {named} is not what {path / OPEN_CLIP_CONFIG} describes: leave --model out")
        model = wanted
    weights = from_open_clip(read_tensors(file), model)
    facts = {
        "kind": "open_clip",
        "path": name_of(config.from_open_clip),
        "step": None,
        "samples": None,
        "digest": sha256_file(file),
    }
    return Source(model, weights, tokenizer, facts)


def checkpoint_source(config: ExportConfig) -> Source:
    """A run's checkpoint, or a folder written before."""
    from sycoca_ds.engine.checkpoint.weights import open_weights

    if config.model is not None:
        raise UserError("--model says what open_clip's weights are; a checkpoint knows its model: leave it out")
    from sycoca_ds.exporting.about import about
    from sycoca_ds.exporting.options import name_of

    stored = open_weights(config.source, ema=config.ema)
    tokenizer = Path(config.tokenizer) if config.tokenizer else stored.tokenizer
    facts = {
        "kind": "exported" if "kind" in stored.state else "checkpoint",
        "path": name_of(config.source),
        "step": stored.state["step"],
        "samples": stored.state["samples"],
        "digest": stored.digest,
        "ema_decay": stored.ema_decay,
        "about": about(stored),
    }
    return Source(stored.config.model, stored.weights, tokenizer, facts)


def check_tokenizer(path: Path, model: ModelConfig) -> None:
    """Raises `UserError` if a tokenizer is not the one of these weights."""
    from sycoca_ds.data.tokenizer import Tokenizer

    tokenizer, text = Tokenizer(path), model.text
    if tokenizer.vocab_size > text.vocab_size or (tokenizer.sot_id, tokenizer.eot_id) != (text.sot_id, text.eot_id):
        raise UserError(
            f"tokenizer {path} has {tokenizer.vocab_size} entries and special ids {tokenizer.sot_id} and {tokenizer.eot_id}; the "
            f"weights are for at most {text.vocab_size}, {text.sot_id} and {text.eot_id}: give the tokenizer they were trained with"
        )

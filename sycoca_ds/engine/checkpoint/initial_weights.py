"""Starting a run from other weights: every part that two models share is taken, what only one of them has stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint.foreign_weights import is_foreign, read_foreign
from sycoca_ds.engine.checkpoint.weights import open_weights
from sycoca_ds.model.shapes import check_tensors, unwrapped
from sycoca_ds.model.sycoca import SyCoCa

_SHAPES: dict[str, str] = {
    "logit_scale": "",
    "image_encoder": "embed_dim image.image_size image.patch_size image.layers image.width image.heads image.pooling",
    "text_encoder": "embed_dim text.context_length text.vocab_size text.layers text.width text.heads text.sot_id text.eot_id",
    "text_decoder": "text_decoder.layers text_decoder.width text_decoder.heads",
    "image_decoder": "image_decoder.layers image_decoder.width image_decoder.heads masking.mim",
    "fusion": "embed_dim text.layers text.width text.heads image.width image.pooling",
}
"""The fields on which each part depends. Those that change no shape are among them: heads cut a matrix differently, other special
ids make other captions."""
_POOLING_SHAPES = "image.pooling_queries image.pooling_heads"
_SWITCHES = "text.attention_mask masking.target"
"""Fields that may change between two runs, and then change what the model computes or learns."""


def read_weights(path: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """(configuration, every parameter) of a run, a checkpoint or an exported folder.

    Raises:
        UserError: nothing there, or damaged, naming the file.
    """
    stored = open_weights(path)
    return stored.config.model, stored.weights


def initialise_from(model: SyCoCa, path: str | Path, tokenizer: Tokenizer | None = None) -> str:
    """Gives `model` the weights of every part that it shares with those at `path`, in place.

    To be called on every rank before DeepSpeed takes the model: the same files give the same weights everywhere.

    Args:
        model: built and initialised, on a CPU or a GPU, not yet partitioned.
        path: a run, a checkpoint, an exported folder, or open_clip's folder or file of a CoCa or CLIP.
        tokenizer: the run's; None: nothing is said of ids.

    Returns:
        A sentence for the log: what was taken, what stays fresh, what was left.

    Raises:
        UserError: nothing there, damaged, other ids of words, or a part that both have is not of the same shape, naming the field.
    """
    if is_foreign(Path(path)):
        foreign = read_foreign(Path(path), model.config, tokenizer)
        _check_same_ids(path, foreign.config, foreign.tokenizer, model.config, tokenizer)
        said = take_shared(model, foreign.config, foreign.weights, str(path), foreign.lacking)
        return "; ".join([f"weights of {path} (open_clip's): {said}", *(f"not taken: {what}" for what in foreign.left)])
    stored = open_weights(path)
    _check_same_ids(path, stored.config.model, stored.tokenizer, model.config, tokenizer)
    said = take_shared(model, stored.config.model, stored.weights, str(path))
    step = stored.state.get("step")
    return f"weights of {stored.folder}{'' if step is None else f' (step {step})'}: {said}"


def _check_same_ids(
    path: str | Path, theirs: ModelConfig, own: Path | None, ours: ModelConfig, tokenizer: Tokenizer | None
) -> None:
    """Raises `UserError` if the weights, whose tokenizer is `own` if that is known, were trained with other ids than the run's."""
    same_size = theirs.text.vocab_size == ours.text.vocab_size  # else that is named later
    if tokenizer and own and same_size and not tokenizer.has_ids_of(own):
        raise UserError(
            f"the weights of {path} were trained with other ids than those of {tokenizer.path}: start from them with "
            f"--data.tokenizer {own}"
        )


def take_shared(model: SyCoCa, config: ModelConfig, weights: Mapping[str, Tensor], where: str, lacking: Sequence[str] = ()) -> str:
    """`initialise_from` on weights that are already read; `config` is theirs, `where` names them in errors, `lacking` names what
    may be missing in parts that they have."""
    weights = unwrapped(weights, where)
    own = dict(model.named_parameters())
    parts = {part: [name for name in own if _part(name) == part] for part in _SHAPES}
    given = {part: [name for name in weights if _part(name) == part] for part in _SHAPES}
    taken = [part for part in _SHAPES if parts[part] and given[part]]
    for part in taken:
        _check_same(part, config, model.config, where)
    chosen = {name: weights[name] for part in taken for name in given[part]}
    # with equal fields the shapes are equal; this holds should a field ever be added and not named above
    check_tensors(
        chosen,
        {name: tuple(own[name].shape) for part in taken for name in parts[part] if name not in lacking},
        f"{where}: the weights",
    )
    model.load_state_dict(chosen, strict=False)

    total, count = sum(p.numel() for p in own.values()), sum(own[name].numel() for name in chosen)
    said = [f"{', '.join(taken)} taken ({count / 1e6:.1f} M of {total / 1e6:.1f} M parameters)"]
    fresh = [part for part in _SHAPES if parts[part] and not given[part]]
    left = [part for part in _SHAPES if given[part] and not parts[part]]
    fresh += [name for name in lacking if name in own]
    said += [f"{', '.join(fresh)} fresh"] if fresh else []
    said += [f"{', '.join(left)} not used"] if left else []
    for field in _SWITCHES.split():
        old, new = _value(config, field), _value(model.config, field)
        if old != new and (field != "masking.target" or "image_decoder" in taken):
            said.append(f"{_option(field)} was {old}, is {new}")
    return "; ".join(said)


def _part(name: str) -> str:
    return name.split(".", 1)[0]


def _value(config: ModelConfig, field: str) -> Any:
    value: Any = config
    for name in field.split("."):
        value = getattr(value, name)
    return value


def _option(field: str) -> str:
    return f"model.{field.replace('_', '-')}"


def _check_same(part: str, theirs: ModelConfig, ours: ModelConfig, where: str) -> None:
    """Raises `UserError` naming the first field in which the two models' versions of a part differ."""
    fields = _SHAPES[part].split()
    if part == "image_encoder" and theirs.image.pooling == ours.image.pooling == "attention":
        fields += _POOLING_SHAPES.split()
    for field in fields:
        old, new = _value(theirs, field), _value(ours, field)
        if old != new:
            raise UserError(
                f"{where} has {_option(field)} = {old}, this model {new}: weights of the {part.replace('_', ' ')} cannot be taken; "
                f"use --{_option(field)} {old}, or other weights"
            )

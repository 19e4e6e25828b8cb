"""open_clip's weights for a run's start, as they are published: a folder, or a file of its CoCa or of a CLIP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.exporting.open_clip_files import OPEN_CLIP_CONFIG, OWN_KEY, described, find_open_clip, read_tensors, section
from sycoca_ds.model.open_clip.config import CLIP_EOT_ID, CLIP_SOT_ID
from sycoca_ds.model.open_clip.weights import from_clip, from_open_clip, is_plain_clip

OPTION = "--run.weights"


@dataclass(frozen=True)
class Foreign:
    """Weights under our names."""

    config: ModelConfig
    weights: dict[str, Tensor]
    lacking: tuple[str, ...] = ()
    """Names of ours that such a model does not have inside parts that it has."""
    left: tuple[str, ...] = ()
    """What of the file has no counterpart here, in words."""


def is_foreign(path: Path) -> bool:
    return path.is_file() or (path / OPEN_CLIP_CONFIG).is_file()


def read_foreign(path: Path, run: ModelConfig, tokenizer: Tokenizer | None) -> Foreign:
    """What a file or folder holds.

    Args:
        run: the model that starts from it. A file of weights does not say which model it is of: it is read as of this one's shapes.

    Raises:
        UserError: not readable, another model, or a run whose captions have other ids than CLIP's.
    """
    file, beside = find_open_clip(path, OPTION)
    state = read_tensors(file, OPTION)
    decoder = any(name.startswith("text_decoder.") for name in state)
    config = dataclasses.replace(run, family="coca" if decoder else "clip", fusion=False)
    if is_plain_clip(state):
        _check_ids(path, run, tokenizer)
        weights, lacking = from_clip(state, config, str(path))
        left = ["the place where CLIP reads a text's vector, its end: here a [CLS] does"]
        if beside is not None and section(beside, "model_cfg", str(path / OPEN_CLIP_CONFIG)).get("quick_gelu"):
            left.append("QuickGELU, which these weights learned with: here it is GELU")
        return Foreign(config, weights, lacking, tuple(left))
    if beside is not None:
        own = path / "tokenizer.json"
        known = Tokenizer(own) if own.is_file() and OWN_KEY in beside else None  # other people's may be of another kind
        config = described(beside, str(path / OPEN_CLIP_CONFIG), known)
    else:
        _check_ids(path, run, tokenizer)
    return Foreign(config, from_open_clip(state, config))


def _check_ids(path: Path, run: ModelConfig, tokenizer: Tokenizer | None) -> None:
    """Raises `UserError` if the run's captions are not read as such weights learned to."""
    if (run.text.sot_id, run.text.eot_id) != (CLIP_SOT_ID, CLIP_EOT_ID):
        told = f"those of {tokenizer.path}" if tokenizer else f"{run.text.sot_id} and {run.text.eot_id}"
        raise UserError(
            f"{OPTION} {path}: such weights read captions by CLIP's BPE (ids {CLIP_SOT_ID} and {CLIP_EOT_ID} at both ends), the "
            f"run by {told}: make its tokenizer with `python -m data_pipeline tokenizer import-clip`, and give it with "
            f"--data.tokenizer, --model.text.sot-id {CLIP_SOT_ID} and --model.text.eot-id {CLIP_EOT_ID}"
        )

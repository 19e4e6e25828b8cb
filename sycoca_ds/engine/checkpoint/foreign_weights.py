"""open_clip's weights for a run's start, as they are published: a folder, or a file of its CoCa or of a CLIP."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint.exported import CONFIG_FILE, TOKENIZER_FILE
from sycoca_ds.exporting.open_clip_files import OPEN_CLIP_CONFIG, OWN_KEY, described, find_open_clip, read_tensors, section
from sycoca_ds.model.open_clip.config import CLIP_EOT_ID, CLIP_SOT_ID, CLIP_VOCABULARY
from sycoca_ds.model.open_clip.weights import from_clip, from_open_clip, is_plain_clip
from sycoca_ds.options import read_json_object

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
    tokenizer: Path | None = None
    """tokenizer.json that gives the ids they learned with, where it is of our kind."""


def is_foreign(path: Path) -> bool:
    return path.is_file() or (path / OPEN_CLIP_CONFIG).is_file()


def own_tokenizer(path: Path) -> Path | None:
    """tokenizer.json of an open_clip folder that `sycoca export` wrote; other people's may be of another kind."""
    if not (path / OPEN_CLIP_CONFIG).is_file() or not (path / TOKENIZER_FILE).is_file():
        return None
    return path / TOKENIZER_FILE if OWN_KEY in read_json_object(path / OPEN_CLIP_CONFIG, OPTION) else None


def read_foreign(path: Path, run: ModelConfig, tokenizer: Tokenizer | None) -> Foreign:
    """What a file or folder holds.

    Args:
        run: the model that starts from it. A file of weights does not say which model it is of: it is read as of this one's shapes.

    Raises:
        UserError: not readable, another model, one of this project, or a run whose captions have other ids than CLIP's.
    """
    file, beside = find_open_clip(path, OPTION)
    state = read_tensors(file, OPTION)
    if any(name.startswith("image_encoder.") for name in state):
        raise UserError(
            f"{OPTION} {path}: these weights have this project's names, and which model they are of stands beside them in "
            f"{CONFIG_FILE}: give the folder, {file.parent}"
        )
    decoder = any(name.startswith("text_decoder.") for name in state)
    config = dataclasses.replace(run, family="coca" if decoder else "clip", fusion=False)
    if is_plain_clip(state):
        _check_ids(path, run, tokenizer, state)
        weights, lacking = from_clip(state, config, str(path))
        left = ["the place where CLIP reads a text's vector, its end: here a [CLS] does"]
        if beside is not None and section(beside, "model_cfg", str(path / OPEN_CLIP_CONFIG)).get("quick_gelu"):
            left.append("QuickGELU, which these weights learned with: here it is GELU")
        return Foreign(config, weights, lacking, tuple(left))
    own = own_tokenizer(path)
    if beside is not None:
        config = described(beside, str(path / OPEN_CLIP_CONFIG), Tokenizer(own) if own else None)
    else:
        _check_ids(path, run, tokenizer, state)
    return Foreign(config, from_open_clip(state, config), tokenizer=own)


def _check_ids(path: Path, run: ModelConfig, tokenizer: Tokenizer | None, state: Mapping[str, Tensor]) -> None:
    """Raises `UserError` if the run's captions are not read as such weights learned to."""
    embeddings = (value for name, value in state.items() if name.endswith("token_embedding.weight"))
    rows = next(map(len, embeddings), CLIP_VOCABULARY)  # that there is none is told later
    if rows < CLIP_VOCABULARY:  # open_clip's coca_base has 64,000 rows for the same ids
        raise UserError(
            f"{OPTION} {path}: a vocabulary of {rows:,}, which is not CLIP's of {CLIP_VOCABULARY:,}, and a file does not say whose "
            f"ids these are: give a folder with {OPEN_CLIP_CONFIG} and {TOKENIZER_FILE}, as `sycoca export RUN --to open_clip` "
            "writes it"
        )
    if (run.text.sot_id, run.text.eot_id) != (CLIP_SOT_ID, CLIP_EOT_ID):
        told = f"those of {tokenizer.path}" if tokenizer else f"{run.text.sot_id} and {run.text.eot_id}"
        raise UserError(
            f"{OPTION} {path}: such weights read captions by CLIP's BPE (ids {CLIP_SOT_ID} and {CLIP_EOT_ID} at both ends), the "
            f"run by {told}: make its tokenizer with `python -m data_pipeline tokenizer import-clip`, and give it with "
            f"--data.tokenizer, --model.text.sot-id {CLIP_SOT_ID} and --model.text.eot-id {CLIP_EOT_ID}"
        )

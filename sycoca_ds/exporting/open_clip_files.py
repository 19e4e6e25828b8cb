"""open_clip's files of weights, and the configuration beside them, as our model's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from sycoca_ds.config import ModelConfig
    from sycoca_ds.data.tokenizer import Tokenizer

FROM_OPEN_CLIP = "--from-open-clip"
OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
OPEN_CLIP_NAMES = (
    OPEN_CLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""What open_clip calls the weights in a folder, in the order in which it looks."""
OWN_KEY = "sycoca_ds"
"""Key of open_clip_config.json under which we keep what open_clip's own keys do not say; it reads other keys only."""


def find_open_clip(path: Path, option: str = FROM_OPEN_CLIP) -> tuple[Path, dict[str, Any] | None]:
    """(file with the weights, content of open_clip_config.json beside it or None) of a file or folder.

    Raises:
        UserError: nothing there, or several files and none with a name that open_clip knows.
    """
    from sycoca_ds.options import read_json_object

    if path.is_file():
        return path, None
    if not path.is_dir():
        raise UserError(f"{option} {path} does not exist: give a file of weights, or a folder with {OPEN_CLIP_CONFIG}")
    config = read_json_object(path / OPEN_CLIP_CONFIG, option) if (path / OPEN_CLIP_CONFIG).is_file() else None
    for name in OPEN_CLIP_NAMES:
        if (path / name).is_file():
            return path / name, config
    found = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "no file of weights"
        raise UserError(f"{option} {path}: found {names}, expected {OPEN_CLIP_WEIGHTS} or one such file: name the file")
    return found[0], config


def read_tensors(path: Path, option: str = FROM_OPEN_CLIP) -> dict[str, Tensor]:
    """open_clip's state dict from a file: the wrappers of its training checkpoints ("state_dict", "module.", ...) taken off.

    Raises:
        UserError: not readable, or it holds more than tensors: pickles of strangers are not executed.
    """
    import torch
    from safetensors.torch import load_file

    from sycoca_ds.model.shapes import unwrapped

    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # SafetensorError, UnpicklingError, and whatever a damaged or hostile file provokes
        reason = (str(error) or "the file is empty or ends too early").splitlines()[0]
        raise UserError(
            f"{option} {path} cannot be read as tensors ({type(error).__name__}: {reason}): it is "
            "damaged, or a pickle of more than tensors, which would run code of its maker; convert such a file to safetensors "
            "where you trust it"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    named = isinstance(state, Mapping) and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in state.items())
    if not named or not state:
        raise UserError(f"{option} {path}: expected tensors by name, or a training checkpoint with them in state_dict")
    state = unwrapped(state, f"{option} {path}")
    if "logit_scale" in state and state["logit_scale"].shape == (1,):
        state["logit_scale"] = state["logit_scale"].reshape(())  # open_clip has models of both shapes and loads either
    return state


def preprocessing(image_size: int) -> dict[str, Any]:
    """How sycoca_ds/data/transforms.py prepares an image for evaluation, as open_clip's `preprocess_cfg` says it."""
    from sycoca_ds.model.pixels import IMAGE_MEAN, IMAGE_STD

    shown = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest"}
    return {"size": image_size, "mean": list(IMAGE_MEAN), "std": list(IMAGE_STD), **shown}


def check_preprocessing(values: Mapping[str, Any], image_size: int, where: str) -> None:
    """Raises `UserError` if a model expects images to be prepared in another way than ours are."""
    given = section(values, "preprocess_cfg", where)
    for key, ours in preprocessing(image_size).items():
        found = given.get(key)
        same = (ours, [ours, ours], [3, ours, ours]) if key == "size" else (ours,)
        if found is not None and found not in same:
            raise UserError(f"{where}: preprocess_cfg.{key} = {found}: this project prepares all images with {ours} there")


def section(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The object under a key of open_clip's JSON, empty if it is absent. Raises `UserError` if something else stands there."""
    found = values.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{where}: {key} = {found!r}: expected an object")
    return found


def described(values: Mapping[str, Any], where: str, tokenizer: Tokenizer | None) -> ModelConfig:
    """The model that open_clip's JSON describes; what it does not say comes from our own key in it, or from the tokenizer."""
    from sycoca_ds.config import TextEncoderConfig
    from sycoca_ds.model.open_clip.config import CLIP_EOT_ID, CLIP_SOT_ID, config_from_open_clip
    from sycoca_ds.options import from_dict

    own = {key: section(values, OWN_KEY, where).get(key) for key in ("sot_id", "eot_id", "attention_mask")}
    usual = TextEncoderConfig(sot_id=CLIP_SOT_ID, eot_id=CLIP_EOT_ID, attention_mask="open_clip")
    text = from_dict(TextEncoderConfig, {key: value for key, value in own.items() if value is not None}, where, usual)
    ids = tokenizer or text
    model = config_from_open_clip(values.get("model_cfg", values), ids.sot_id, ids.eot_id, text.attention_mask)
    check_preprocessing(values, model.image.image_size, where)
    return model

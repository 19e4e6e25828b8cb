"""Whether what was written answers as the model does: both are asked about a fixed batch before the folder gets its name."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.engine.checkpoint.exported import read_exported
from sycoca_ds.exporting.open_clip_files import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, described, read_tensors
from sycoca_ds.model.open_clip.weights import from_open_clip
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import read_json_object

if TYPE_CHECKING:
    from sycoca_ds.exporting.source import Source

SEED = 20240102
PICTURES = 3
TOLERANCE = 1e-4
"""Largest difference from open_clip's own answers: its attention adds up in another order."""


def batch(config: ModelConfig) -> dict[str, Tensor]:
    """Noise as pictures, uint8 (B, 3, S, S), and captions of full length without id 0, (B, L): open_clip reads all others
    differently (docs/open_clip.md)."""
    generator, text, side = torch.Generator().manual_seed(SEED), config.text, config.image.image_size
    image_B3SS = torch.randint(0, 256, (PICTURES, 3, side, side), dtype=torch.uint8, generator=generator)
    words_BL = torch.randint(1, text.vocab_size - 2, (PICTURES, text.context_length), generator=generator)
    for special in sorted((text.sot_id, text.eot_id)):
        words_BL += words_BL >= special  # skips it
    words_BL[:, 0], words_BL[:, -1] = text.sot_id, text.eot_id
    return {"image": image_B3SS, "text": words_BL}


@torch.no_grad()
def answers(model: SyCoCa, given: dict[str, Tensor], reconstructs: bool) -> dict[str, Tensor]:
    """What a model says of the batch: both vectors, the logit scale, how likely the captions are, rebuilt pixels."""
    image, text = normalise(given["image"]), given["text"]
    found = {"logit scale": model.logit_scale.float().exp()}
    found["image vectors"] = model("image_features", image_BCHW=image)
    found["text vectors"] = model("text_features", text_BL=text)
    if model.config.captions:
        found["caption likelihoods"] = model(
            "caption_likelihoods", image_BCHW=image, text_TL=text, image_of_T=torch.arange(len(text))
        )
    if reconstructs:
        key_B = torch.arange(len(text))
        found["rebuilt pixels"] = model("reconstruct", image_BCHW=image, text_BL=text, mask_by="random", key_B=key_B)["pixels_BNP"]
    return found


def built(config: ModelConfig, weights: dict[str, Tensor]) -> SyCoCa:
    model = SyCoCa(config, seed=None)
    model.load_state_dict(weights)
    return model.eval()


def prove(folder: Path, form: str, source: Source, written: dict[str, Tensor]) -> str:
    """A sentence on what was compared.

    Args:
        written: the weights as they were to be written, under our names.

    Raises:
        UserError: the folder does not answer as it should; nothing is kept.
    """
    given, config = batch(source.config), source.config
    theirs = form == "open_clip"
    reconstructs = config.reconstructs and not theirs and config.masking.mim != "none"
    live = answers(built(config, source.weights), given, reconstructs)
    # of a lower precision the folder must answer as its own rounded weights do, to the last bit
    expected = live if _same(source.weights, written) else answers(built(config, written), given, reconstructs)
    if theirs:
        values = read_json_object(folder / OPEN_CLIP_CONFIG, "export")
        model = described(values, str(folder / OPEN_CLIP_CONFIG), None)
        read = built(model, from_open_clip(read_tensors(folder / OPEN_CLIP_WEIGHTS), model))
    else:
        read = built(*read_exported(folder)[:2])
    found = answers(read, given, reconstructs)
    for name, value in expected.items():
        if not torch.isfinite(value).all():
            raise UserError(
                f"the model's {name} are not finite on a batch of noise: nothing was written; take an earlier checkpoint"
            )
        if not torch.equal(found[name], value):
            off = (found[name] - value).abs().max().item()
            raise UserError(f"what was written answers otherwise than the model ({name} differ by {off:.2g}): nothing is kept")
    names = ", ".join(expected)
    said = f"checked: {names} of {PICTURES} fixed pairs, bit for bit those of the model"
    if expected is not live:
        most = max((live[name] - expected[name]).abs().max().item() for name in ("image vectors", "text vectors"))
        said += f" with its weights rounded; rounding moves its vectors by up to {most:.1g}"
    if theirs and importlib.util.find_spec("open_clip") is not None:
        said += f"; {by_open_clip(folder, given, expected)}"
    elif theirs:
        said += "; open_clip itself is not installed here and was not asked"
    return said


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(value.dtype == torch.float32 == other[name].dtype for name, value in one.items())


@torch.no_grad()
def by_open_clip(folder: Path, given: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """The same batch, asked of open_clip's own model. Raises `UserError`."""
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    model.load_state_dict(read_tensors(folder / OPEN_CLIP_WEIGHTS), strict=True)
    image, text = normalise(given["image"]), given["text"]
    found = {"image vectors": model.encode_image(image, normalize=True)}
    # the texts that its CoCa reads have no room for the mark of their end behind the context length
    found["text vectors"] = model.encode_text(text, normalize=True)
    most = max((value - expected[name]).abs().max().item() for name, value in found.items())
    if not most <= TOLERANCE:
        raise UserError(f"open_clip's own vectors differ from the model's by {most:.2g}: nothing is kept")
    return f"open_clip {open_clip.__version__}'s own vectors differ from them by {math.ceil(most * 1e9) / 1e9:.1g} at most"

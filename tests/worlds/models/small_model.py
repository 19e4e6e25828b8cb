"""Models of 60,000 parameters with fixed weights, and inputs for them."""

from __future__ import annotations

import dataclasses

import torch

from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, MaskingConfig, ModelConfig, TextEncoderConfig
from sycoca_ds.model.sycoca import SyCoCa

SMALL_MODEL = ModelConfig(
    embed_dim=24,
    image=ImageEncoderConfig(image_size=24, patch_size=6, layers=2, width=32, heads=2),
    text=TextEncoderConfig(context_length=12, vocab_size=50, layers=2, width=32, heads=2),
    text_decoder=DecoderConfig(layers=2, width=32, heads=2),
    image_decoder=DecoderConfig(layers=2, width=32, heads=2),
    init_std=0.1,  # at 0.01 a two-layer model's outputs hardly depend on its inputs and every comparison would pass
)


def small_model(family: str = "sycoca", **masking) -> SyCoCa:
    """A model of 60,000 parameters in float32 with fixed weights."""
    config = dataclasses.replace(SMALL_MODEL, family=family, masking=MaskingConfig(**masking))
    return SyCoCa(config, seed=1).eval()


def random_inputs(batch: int = 4, lengths: tuple[int, ...] = (12, 5, 8, 3), seed: int = 0) -> dict[str, torch.Tensor]:
    """Normalised images and captions `[SOT] words [EOT] pads` of the given lengths for `SMALL_MODEL`."""
    generator = torch.Generator().manual_seed(seed)
    text_BL = torch.randint(3, 50, (batch, 12), generator=generator)
    for row, length in zip(text_BL, lengths, strict=True):
        row[0], row[length - 1], row[length:] = 1, 2, 0
    return {
        "image_BCHW": torch.randn(batch, 3, 24, 24, generator=generator),
        "text_BL": text_BL,
        "key_B": torch.arange(batch) + 100 * seed,
    }

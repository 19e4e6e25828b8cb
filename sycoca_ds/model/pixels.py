"""Pixels as the model takes them: normalised on the device that computes, from uint8."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of CLIP's training images, RGB in [0, 1] (openai/CLIP)."""


def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """(3, 1, 1), float32, written by the device: for a copy of the host's numbers the host would have to wait."""
    return torch.cat([torch.full((1, 1, 1), value, device=device) for value in values])


def normalise(image_BCHW: Tensor) -> Tensor:
    """uint8 RGB -> float32 with CLIP's mean and standard deviation; same shape, same device."""
    mean, std = (_by_channel(values, image_BCHW.device) for values in (IMAGE_MEAN, IMAGE_STD))
    return (image_BCHW.float() / 255 - mean) / std


def denormalise(image_BCHW: Tensor) -> Tensor:
    """The inverse of `normalise`: float -> uint8, clamped to [0, 255]."""
    mean, std = (_by_channel(values, image_BCHW.device) for values in (IMAGE_MEAN, IMAGE_STD))
    return ((image_BCHW.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

"""Bicubic resizing where the training happens: two matrix products a picture, in numbers that every order of summing leaves exact.

Loader processes only decode and cut: resizing there costs two fifths as much again as decoding. And the same picture comes out in
every batch, and on every device that multiplies in float32: weights are multiples of 2^-14 and pixels are whole numbers, so each
partial sum is a multiple of 2^-14 below 2^9, which float32 holds without rounding.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

UNIT = 1 << 14
"""Weights are whole multiples of 1 / UNIT."""
AT_ONCE = 16
"""Crops resized together. They are at most 2 by 8/3 times `size`: 23 bytes a pixel, 130 MiB of working memory at 224."""


def resampling_weights(length_B: Tensor, size: int, longest: int) -> Tensor:
    """How much each of `longest` places counts for each of `size`: float32 (B, size, longest), rows sum to exactly 1.

    PIL's bicubic filter (a = -0.5, widened by the scale where it shrinks), up to the rounding of weights to 1 / UNIT.

    Args:
        length_B: int64, how many of the places each picture really has.
    """
    device = length_B.device
    scale_B11 = (length_B.double() / size)[:, None, None]
    centre_BS1 = (torch.arange(size, device=device, dtype=torch.float64)[:, None] + 0.5) * scale_B11
    place_L = torch.arange(longest, device=device, dtype=torch.float64)
    d = (place_L + 0.5 - centre_BS1).div_(scale_B11.clamp(min=1)).abs_()
    weight_BSL = torch.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)
    weight_BSL = weight_BSL * ((d < 2) & (place_L < length_B[:, None, None]))
    whole_BSL = (weight_BSL / weight_BSL.sum(2, keepdim=True) * UNIT).round_()
    missing_BS1 = UNIT - whole_BSL.sum(2, keepdim=True)
    return whole_BSL.scatter_add_(2, whole_BSL.argmax(2, keepdim=True), missing_BS1).div_(UNIT).float()


def resize_crops(pixels: Tensor, size_B2: Tensor, size: int) -> Tensor:
    """RGB crops of any sizes to uint8 (B, 3, size, size): bicubic with antialiasing, across and then down, together to one grey
    level what PIL makes of these two steps (two levels where a side shrinks more than four times).

    Args:
        pixels: uint8, on the device that is to work: the crops (h, w, 3) one after another.
        size_B2: int64 on the host, height and width of each.
    """
    area_B = size_B2.prod(1)
    first_B = area_B.cumsum(0) - area_B
    pixels_N3 = pixels.view(-1, 3)
    out_BCSS = torch.empty((len(size_B2), 3, size, size), dtype=torch.uint8, device=pixels.device)
    for start in range(0, len(size_B2), AT_ONCE):
        own = slice(start, start + AT_ONCE)
        tallest, widest = size_B2[own].max(0).values.tolist()
        place_b3 = torch.cat([first_B[own, None], size_B2[own]], 1).to(pixels.device, non_blocking=True)
        first_b, height_b, width_b = place_b3.unbind(1)
        # places beyond a crop's edge repeat its last ones; their weight is 0
        row_bH = torch.arange(tallest, device=pixels.device).minimum(height_b[:, None] - 1) * width_b[:, None] + first_b[:, None]
        column_bW = torch.arange(widest, device=pixels.device).minimum(width_b[:, None] - 1)
        image_bHWC = pixels_N3[row_bH[:, :, None] + column_bW[:, None, :]]
        down_bSH, across_bSW = (_weights_of(length_b, size, pixels.device) for length_b in size_B2[own].unbind(1))
        with _whole_float32(pixels.device):
            image_bCHS = _grey_levels(image_bHWC.permute(0, 3, 1, 2).float().flatten(1, 2) @ across_bSW.transpose(1, 2)).unflatten(
                1, (3, tallest)
            )
            out_BCSS[own] = _grey_levels(down_bSH[:, None] @ image_bCHS)
    return out_BCSS


def _weights_of(length_b: Tensor, size: int, device: torch.device) -> Tensor:
    """`resampling_weights` on the device, each length's computed once."""
    lengths, which_b = length_b.unique(return_inverse=True)
    longest = int(lengths[-1])
    lengths, which_b = (x.to(device, non_blocking=True) for x in (lengths, which_b))
    return resampling_weights(lengths, size, longest)[which_b]


def _grey_levels(x: Tensor) -> Tensor:
    """Rounded, half upwards, and cut to 0..255, as PIL does after each direction."""
    return x.add_(0.5).floor_().clamp_(0, 255)


@contextlib.contextmanager
def _whole_float32(device: torch.device):
    """TF32, which training allows, would cut the weights to ten bits."""
    if device.type != "cuda":
        yield
        return
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed

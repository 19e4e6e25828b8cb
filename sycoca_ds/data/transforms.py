"""Bytes to pixels. Images travel as uint8; normalisation runs on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UserError

JPEG_START = b"\xff\xd8"
PLAIN_SHARE = 8
"""Pictures with a longer side of more than this many short ones are resized only where the crop will be: a spacer of 60,000 x 1
would otherwise take gigabytes to become one square."""


class Passing(ValueError):
    """No picture this time; why does not lie in its bytes, so that another time there may be one."""


def load_image(data: bytes, at_least: int | None = None) -> np.ndarray:
    """Decodes to RGB uint8 (H, W, 3), opacity matted on white.

    Args:
        at_least: if the image is at least twice this on its short side, it is brought to less than twice, never below it: JPEGs
            while they are decoded, at a half, a quarter or an eighth (libjpeg's scaled DCT), the rest by averaging squares.

    Raises:
        ValueError: no picture, or none that verification would keep; `Passing` where its bytes do not prove that.
    """
    import cv2

    image = _jpeg(data, at_least) if data[:2] == JPEG_START else _other(data)
    height, width = image.shape[:2]
    factor = min(height, width) // at_least if at_least else 1
    if factor > 1:
        image = cv2.resize(image, (width // factor, height // factor), interpolation=cv2.INTER_AREA)
    return image


def _jpeg(data: bytes, at_least: int | None) -> np.ndarray:
    """Straight to OpenCV, since most pictures are JPEGs: they have no opacity."""
    import cv2

    flag = cv2.IMREAD_COLOR_RGB
    if at_least:
        short = min(jpeg_size(data) or (0, 0))
        for factor, reduced in (
            (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
            (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
            (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        ):
            if short >= at_least * factor:
                flag |= reduced  # which of itself says grey, and with the flag above RGB
                break
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
    except cv2.error as error:  # a header that asks for more than OpenCV allows
        kind = Passing if error.code == cv2.Error.StsNoMem else ValueError
        raise kind(f"{len(data)} bytes that OpenCV refuses: {' '.join(str(error).split())[:120]}") from None
    if image is None:
        raise ValueError(f"{len(data)} bytes that are no image OpenCV can decode")
    return image


def _other(data: bytes) -> np.ndarray:
    import cv2

    from data_pipeline.pictures import FetchError, as_shown
    from data_pipeline.pictures.headers import PASSING
    from data_pipeline.shards.samples import MAX_PIXELS

    try:
        return cv2.cvtColor(as_shown(data, MAX_PIXELS), cv2.COLOR_BGR2RGB)
    except FetchError as error:
        kind = Passing if error.reason in PASSING else ValueError
        raise kind(f"{len(data)} bytes that give no picture ({error.reason})") from None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from a JPEG's frame header, None for anything else. Reads headers only."""
    if data[:2] != JPEG_START:
        return None
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


WIDEST = 4 / 3
"""Aspect ratio of the widest random crop; the tallest is its inverse."""


@dataclass(frozen=True)
class Augmentation:
    """What happens to a training picture; fields as in `DataConfig`.

    Raises:
        UserError: a value that means nothing, naming the field.
    """

    size: int
    crop_scale: tuple[float, float] = (0.9, 1.0)
    flip: float = 0.0
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"data.crop-scale = {low} {high}: expected two area shares, 0 < lowest <= highest <= 1")
        if not 0 <= self.flip <= 1:
            raise UserError(f"data.flip = {self.flip}: expected a chance from 0 to 1")
        if not all(0 <= value <= most for value, most in zip(self.colour_jitter, (1, 1, 1, 0.5), strict=True)):
            raise UserError(
                f"data.colour-jitter = {' '.join(map(str, self.colour_jitter))}: expected brightness, contrast and saturation "
                "from 0 to 1 and hue from 0 to 0.5"
            )

    def __call__(self, image_HWC: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """uint8 RGB (H, W, 3) -> the part of it (h, w, 3) that `resampling.resize_crops` brings to `size`, mirrored and coloured.

        The same generator state gives the same picture.
        """
        top, left, h, w = crop_box(*image_HWC.shape[:2], self.crop_scale, random)
        image_HWC = image_HWC[top : top + h, left : left + w]
        if self.flip and random.random() < self.flip:
            image_HWC = image_HWC[:, ::-1]
        if any(self.colour_jitter):
            image_HWC = jitter_colours(image_HWC, self.colour_jitter, random)
        return image_HWC


def crop_box(height: int, width: int, scale: tuple[float, float], random: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random share of the area with an aspect ratio of 3/4 to 4/3, as torchvision's
    RandomResizedCrop: if ten tries do not fit, the largest part in the middle whose ratio does."""
    draws = random.random(40).tolist()
    least, more = height * width * scale[0], height * width * (scale[1] - scale[0])
    fits = math.sqrt(least / WIDEST) < min(height, width) + 0.5
    for first in range(0, 40 * fits, 4):
        area, ratio = least + more * draws[first], WIDEST ** (2 * draws[first + 1] - 1)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[first + 2] * (height - h + 1)), int(draws[first + 3] * (width - w + 1)), h, w
    w = min(width, max(1, round(height * WIDEST)))
    h = min(height, max(1, round(width * WIDEST)))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter_colours(image_HWC: np.ndarray, most: tuple[float, float, float, float], random: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each by a random amount, in random order, as torchvision's ColorJitter on PIL."""
    from PIL import Image, ImageEnhance

    image = Image.fromarray(image_HWC)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in random.permutation(4).tolist():
        if not most[number]:
            continue
        if number < 3:
            image = enhancers[number](image).enhance(random.uniform(1 - most[number], 1 + most[number]))
        else:
            hue, saturation, value = image.convert("HSV").split()
            turned = (np.asarray(hue).astype(np.int16) + round(255 * random.uniform(-most[3], most[3]))) % 256
            image = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
    return np.asarray(image)


def eval_image(image_HWC: np.ndarray, size: int) -> Tensor:
    """Short side to `size` (bicubic, PIL), centre crop: uint8 (3, size, size). Bit-equal to torchvision's Resize and CenterCrop
    on PIL images: the other side is truncated, the offset rounded. Of a very thin picture only the part in the middle is resized:
    the same but for the order of PIL's two passes."""
    from PIL import Image

    height, width = image_HWC.shape[:2]
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    left, top = round((new_width - size) / 2.0), round((new_height - size) / 2.0)
    part = (left, top, left + size, top + size)
    if max(height, width) > PLAIN_SHARE * min(height, width):
        across, down = width / new_width, height / new_height
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        picture = Image.fromarray(image_HWC).resize((size, size), Image.Resampling.BICUBIC, box=box)
    else:
        picture = Image.fromarray(image_HWC)
        if (new_width, new_height) != (width, height):
            picture = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
        picture = picture.crop(part)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

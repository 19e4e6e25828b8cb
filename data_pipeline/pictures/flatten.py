"""Pixels that a decoder gave, of any mode, as the two that are stored: grey or BGR, opacity matted on white."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.pictures.headers import FetchError

if TYPE_CHECKING:
    from PIL.Image import Image


STRIP_PIXELS = 1 << 20
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
DEPTHS = {"1": 1, "L;2": 2, "L;4": 4, "L": 8, "RGB": 8, "I;16B": 16, "RGB;16B": 16}
"""Bits a channel by what Pillow calls the bytes of a PNG without palette and alpha."""
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def damage(error: Exception) -> str:
    """The reason behind an exception of Pillow's decoders."""
    text = str(error)
    if isinstance(error, FetchError):
        return error.reason
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return "needs too much memory"
    return "truncated image" if "truncated" in text else "damaged image"


def flatten(picture: Image) -> np.ndarray:
    """An opened picture of Pillow's as uint8, (H, W) grey or (H, W, 3) BGR, opacity matted on white, 16 bits as their high 8.

    Works in strips: no second whole copy beside Pillow's own. Raises `FetchError` (unsupported pixel format) where numbers have no
    stated white, and what Pillow's decoder raises.
    """
    # Before Pillow 11 a PNG's 16-bit grey came as "I".
    deep = picture.mode in DEEP_MODES or picture.mode == "I" and picture.format == "PNG"
    if not deep and picture.mode not in PLAIN_MODES:
        raise FetchError("unsupported pixel format")
    colour = _clear_colour(picture)
    picture.load()
    width, height = picture.size
    clear = not deep and (picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info)
    grey = deep or picture.mode in ("1", "L") and not clear
    if clear and colour is not None:
        picture.info["transparency"] = colour
    pixels = np.empty((height, width) if grey else (height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows))) if rows < height else picture
        out = pixels[top : top + rows]
        if deep:
            deep_strip = np.asarray(strip)
            out[...] = deep_strip >> 8
            if colour is not None:
                out[deep_strip == colour] = 255
        elif grey:
            out[...] = np.asarray(strip.convert("L"))
        elif clear:
            rgba = strip if strip.mode == "RGBA" else strip.convert("RGBA")
            _matte(np.frombuffer(rgba.tobytes("raw", "BGRA"), np.uint8).reshape(*out.shape[:2], 4), out)
        else:
            rgb = strip if strip.mode == "RGB" else strip.convert("RGB")
            out[...] = np.frombuffer(rgb.tobytes("raw", "BGR"), np.uint8).reshape(out.shape)
    return pixels


def _clear_colour(picture: Image) -> int | tuple[int, ...] | None:
    """The one colour of a PNG that is clear, scaled as Pillow scales the pixels, which it does not do itself. None: there is none,
    or opacity is stored in another way. Before the picture is loaded: what the bytes were called is gone then."""
    colour, tile = picture.info.get("transparency"), getattr(picture, "tile", None)
    if picture.format not in ("PNG", None) or not isinstance(colour, int | tuple):
        return None
    if tile:
        how = tile[0].args
    elif isinstance(colour, int):  # loaded before, or made: what it was is seen where it had 16 bits
        how = "I;16B" if picture.mode.startswith("I") else None
    else:
        how = "RGB;16B" if max(colour) > 255 else None
    if how not in DEPTHS:
        return None
    most = 2 ** DEPTHS[how] - 1
    if isinstance(colour, tuple):
        return tuple((value & most) >> DEPTHS[how] - 8 for value in colour)
    return colour if most > 255 else (colour & most) * 255 // most


def on_white(bgra: np.ndarray) -> np.ndarray:
    pixels = np.empty((*bgra.shape[:2], 3), np.uint8)
    rows = max(1, STRIP_PIXELS // bgra.shape[1])
    for top in range(0, len(bgra), rows):
        _matte(bgra[top : top + rows], pixels[top : top + rows])
    return pixels


def _matte(bgra: np.ndarray, out: np.ndarray) -> None:
    """`out` = round(colour * opacity / 255 + 255 - opacity), exactly."""
    import cv2

    absence = cv2.cvtColor(bgra, cv2.COLOR_BGRA2BGR)
    cv2.bitwise_not(absence, dst=absence)
    opacity = cv2.cvtColor(cv2.extractChannel(bgra, 3), cv2.COLOR_GRAY2BGR)
    cv2.multiply(absence, opacity, dst=absence, scale=1 / 255)
    cv2.bitwise_not(absence, dst=absence)
    out[...] = absence

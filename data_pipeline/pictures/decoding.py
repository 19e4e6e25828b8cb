"""A picture's bytes to pixels, whatever its kind, in bounded memory: the one way in which strangers' pictures are decoded."""

from __future__ import annotations

import io

import numpy as np

from data_pipeline.pictures.decode_apart import decode_apart
from data_pipeline.pictures.flatten import damage, flatten, on_white
from data_pipeline.pictures.headers import APART, FetchError, Header, bare_png, read_header

SPARE_REDUCTION = 4
"""A JPEG is reduced while it is decoded as long as so many times the wanted size are left: for a fraction of time and memory. What
comes out differs by less than storing it loses."""


def decode(
    data: bytes | bytearray, header: Header, max_pixels: int, wanted: int | None = None
) -> tuple[np.ndarray, tuple[int, int], int]:
    """(pixels, (height, width) of the whole picture, EXIF's orientation). Pixels: uint8, (H, W) grey or (H, W, 3) BGR, opacity
    matted on white, of animations the first picture, not turned.

    Args:
        wanted: the short side that is needed; pixels may come reduced to a few times that.

    Raises:
        FetchError: with one of headers.REASONS.
    """
    import cv2

    size = header.height, header.width
    try:
        if header.kind in APART:
            pixels, orientation = decode_apart(data, max_pixels)
            return pixels, pixels.shape[:2], orientation
        if header.kind in ("PNG", "GIF"):
            return _by_pillow(data, header), size, header.orientation
        flag = _jpeg_flag(header, wanted) if header.kind == "JPEG" else cv2.IMREAD_UNCHANGED
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error:
        raise FetchError("damaged image") from None
    except MemoryError:
        raise FetchError("needs too much memory") from None
    if pixels is None or pixels.dtype != np.uint8:
        raise FetchError("damaged image")
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = on_white(pixels)
    return pixels, size, header.orientation


def as_shown(data: bytes | bytearray, max_pixels: int) -> np.ndarray:
    """The picture as a viewer shows it on white: uint8 (H, W, 3) BGR, opacity matted, turned as its EXIF says. What verification
    hashes and measures; training and evaluation see the same.

    Raises:
        FetchError: with one of headers.REASONS.
    """
    import cv2

    header = read_header(data, max_pixels)
    if header.kind == "JPEG":  # has no opacity; OpenCV turns it itself
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error:
            pixels = None
        if pixels is None:
            raise FetchError("damaged image")
        return pixels
    pixels, _, orientation = decode(data, header, max_pixels)
    return turn(pixels if pixels.ndim == 3 else cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR), orientation)


def _jpeg_flag(header: Header, wanted: int | None) -> int:
    import cv2

    spare = min(header.width, header.height) // (SPARE_REDUCTION * wanted) if wanted else 1
    if spare < 2:
        return cv2.IMREAD_UNCHANGED
    colour, grey = {
        2: (cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
        4: (cv2.IMREAD_REDUCED_COLOR_4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
        8: (cv2.IMREAD_REDUCED_COLOR_8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    }[8 if spare >= 8 else 4 if spare >= 4 else 2]
    return (grey if header.grey else colour) | cv2.IMREAD_IGNORE_ORIENTATION


def _by_pillow(data: bytes | bytearray, header: Header) -> np.ndarray:
    from PIL import GifImagePlugin, Image, PngImagePlugin

    plugin = PngImagePlugin.PngImageFile if header.kind == "PNG" else GifImagePlugin.GifImageFile
    try:
        with plugin(io.BytesIO(bare_png(data) if header.kind == "PNG" else data)) as picture:
            if picture.size != (header.width, header.height):
                raise FetchError("damaged image")
            return flatten(picture)
    except (FetchError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise FetchError("too many pixels") from None
    except Exception as error:  # a decoder raises whatever damaged data leads it to
        raise FetchError(damage(error)) from None


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors as EXIF's orientation (1 to 8) says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)

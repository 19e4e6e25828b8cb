"""From a picture's bytes as a stranger sent them to the JPEG that is stored: one at a time a process, in bounded memory.

Stands in for img2dataset's Resizer, whose ordinary results it gives bit by bit. That one makes 16 bits a channel white, leaves
pictures lying on their side, and takes 1.8 GB for 25 million pixels with opacity."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_pipeline.picture_headers import APART, MAX_SIDE, FetchError, Header, bare_png

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP_PIXELS = 1 << 20
SPARE_REDUCTION = 4
"""A JPEG is reduced while it is decoded as long as so many times the wanted size are left: for a fraction of time and memory. What
comes out differs by less than storing it loses."""
DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
PLAIN_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Stored:
    """A picture as it is stored."""

    jpeg: bytes
    width: int
    height: int
    original_width: int
    """Before it was reduced, after it was turned."""
    original_height: int


@dataclass(frozen=True)
class PictureMaker:
    """Decodes, turns and reduces pictures and encodes them as JPEG. Takes up to 12 bytes a pixel while it does; img2dataset calls
    it from one thread."""

    image_size: int
    """Pictures with a longer short side are reduced to it, in proportion."""
    min_image_size: int
    """Pictures with a smaller short side are refused."""
    quality: int
    """JPEG's, 1 to 100."""
    max_pixels: int
    """For kinds whose header only their decoder reads."""

    def __call__(self, data: bytes | bytearray, header: Header) -> Stored:
        """Raises `FetchError` with one of picture_headers.REASONS."""
        import cv2

        cv2.setNumThreads(1)
        pixels, (height, width), orientation = decode(data, header, self.max_pixels, self.image_size)
        short = min(height, width)
        if short < self.min_image_size:
            raise FetchError("image too small")
        if short > self.image_size:
            scale = self.image_size / short
            target = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = cv2.resize(pixels, target, interpolation=cv2.INTER_AREA)
        if max(pixels.shape) > MAX_SIDE:
            raise FetchError("too many pixels")
        pixels = turn(pixels, orientation)
        if orientation > 4:
            height, width = width, height
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        return Stored(jpeg.tobytes(), pixels.shape[1], pixels.shape[0], width, height)


def decode(
    data: bytes | bytearray, header: Header, max_pixels: int, wanted: int | None = None
) -> tuple[np.ndarray, tuple[int, int], int]:
    """(pixels, (height, width) of the whole picture, EXIF's orientation). Pixels: uint8, (H, W) grey or (H, W, 3) BGR, opacity
    matted on white, of animations the first picture, not turned.

    Args:
        wanted: the short side that is needed; pixels may come reduced to a few times that.

    Raises:
        FetchError: with one of picture_headers.REASONS.
    """
    import cv2

    size = header.height, header.width
    try:
        if header.kind in APART:
            from data_pipeline.decode_apart import decode_apart

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
        pixels = _on_white(pixels)
    return pixels, size, header.orientation


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
    picture.load()
    width, height = picture.size
    clear = not deep and (picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info)
    grey = deep or picture.mode in ("1", "L") and not clear
    pixels = np.empty((height, width) if grey else (height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        strip = picture.crop((0, top, width, min(height, top + rows))) if rows < height else picture
        out = pixels[top : top + rows]
        if deep:
            out[...] = np.asarray(strip) >> 8
        elif grey:
            out[...] = np.asarray(strip.convert("L"))
        elif clear:
            rgba = strip if strip.mode == "RGBA" else strip.convert("RGBA")
            _matte(np.frombuffer(rgba.tobytes("raw", "BGRA"), np.uint8).reshape(*out.shape[:2], 4), out)
        else:
            rgb = strip if strip.mode == "RGB" else strip.convert("RGB")
            out[...] = np.frombuffer(rgb.tobytes("raw", "BGR"), np.uint8).reshape(out.shape)
    return pixels


def _on_white(bgra: np.ndarray) -> np.ndarray:
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


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns and mirrors as EXIF's orientation (1 to 8) says."""
    if orientation > 4:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)

"""Pictures that are good but easily got wrong, each with what it shows, computed without any decoder."""

from __future__ import annotations

import functools
import struct

import cv2
import numpy as np
from PIL import Image

from tests.worlds.strangers.hostile_pictures import (
    alpha_scene,
    by_cv2,
    encoded,
    exif,
    exif_bomb_jpeg,
    grey_scene,
    many_frames_png,
    on_white,
    png16,
    profile_bomb_png,
    scene,
    text_bomb_png,
    ycck_jpeg,
)


def turned(picture: np.ndarray, orientation: int) -> np.ndarray:
    """How a viewer shows a stored picture under an EXIF orientation (the standard's table: where row 0 and column 0 lie)."""
    shown = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: picture[::-1].transpose(1, 0, 2),
        7: picture[::-1, ::-1].transpose(1, 0, 2),
        8: picture[:, ::-1].transpose(1, 0, 2),
    }[orientation]
    return np.ascontiguousarray(shown)


def _palette() -> Image.Image:
    """24 fields of 16 x 16, so that JPEG keeps their borders."""
    y, x = np.mgrid[0:64, 0:96] // 16
    picture = Image.fromarray((y * 6 + x).astype(np.uint8), "P")
    picture.putpalette(scene()[8::16, 8::16].tobytes())
    return picture


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def _deep(channels: np.ndarray) -> np.ndarray:
    """16 bits that 8 would not hold: the low byte is no copy of the high one."""
    return channels.astype(np.uint16) * 256 + np.arange(channels.shape[1], dtype=np.uint16)[None, :, None]


def _cmyk(rgb: np.ndarray) -> np.ndarray:
    """CMYK with black in it (PIL's own conversion puts none), (H, W, 4)."""
    black = np.full(rgb.shape[:2], 40.0)
    colours = 255 - np.minimum(255, rgb * 255.0 / (255 - black[..., None]))
    return np.rint(np.concatenate([colours, black[..., None]], -1)).astype(np.uint8)


def _of_cmyk(cmyk: np.ndarray) -> np.ndarray:
    return (255.0 - cmyk[..., :3]) * (255.0 - cmyk[..., 3:]) / 255


def with_eighty_scenes_behind(data: bytes) -> bytes:
    """As telephones write "motion photos": a film behind the picture's end, with bytes in it that look like marks."""
    return data + b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xd9\xff\xda" * 400


def _webp_with_exif(picture: np.ndarray, orientation: int) -> bytes:
    return encoded(picture, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(orientation).removeprefix(b"Exif\0\0"))


def _gif_beyond_its_screen() -> bytes:
    """A GIF whose frame is larger than its screen: viewers and decoders let the frame win."""
    data = encoded(_palette(), "GIF")
    return data[:6] + struct.pack("<HH", 20, 20) + data[10:]


@functools.cache
def awkward() -> dict[str, tuple[bytes, np.ndarray]]:
    """name -> (encoded, what it shows: (H, W, 3) numbers 0 to 255)."""
    rgb, grey, alpha = scene(), grey_scene(), alpha_scene()
    rgba = np.concatenate([rgb, alpha[..., None]], -1)
    grey_alpha = np.stack([grey, alpha], -1)
    cmyk = _cmyk(rgb)
    cmyk_picture = Image.frombytes("CMYK", (96, 64), cmyk.tobytes())
    palette = _palette()
    paletted = np.asarray(palette.convert("RGB"))
    holes = np.asarray(palette) == 5
    shown = {
        "grey.jpg": (encoded(grey, "JPEG", quality=95), _three(grey)),
        "progressive.jpg": (encoded(rgb, "JPEG", quality=95, progressive=True), rgb),
        "cmyk.jpg": (encoded(cmyk_picture, "JPEG", quality=97), _of_cmyk(cmyk)),
        "ycck.jpg": (ycck_jpeg(cmyk), _of_cmyk(cmyk)),
        "motion.jpg": (with_eighty_scenes_behind(encoded(rgb, "JPEG", quality=95)), rgb),
        "tagged.jpg": (exif_bomb_jpeg(), rgb),
        "palette.png": (encoded(palette, "PNG"), paletted),
        "palette-holes.png": (encoded(palette, "PNG", transparency=5), on_white(paletted, np.where(holes, 0, 255))),
        "one-bit.png": (encoded(Image.fromarray(grey > 128), "PNG"), _three(np.where(grey > 128, 255, 0))),
        "grey-alpha.png": (encoded(Image.fromarray(grey_alpha, "LA"), "PNG"), on_white(_three(grey), alpha)),
        "alpha.png": (encoded(rgba, "PNG"), on_white(rgb, alpha)),
        "grey16.png": (png16(_deep(grey[..., None])), _three(grey)),
        "grey-alpha16.png": (png16(_deep(grey_alpha)), on_white(_three(grey), alpha)),
        "rgb16.png": (png16(_deep(rgb)), rgb),
        "rgba16.png": (png16(_deep(rgba)), on_white(rgb, alpha)),
        "turned.png": (encoded(rgb, "PNG", exif=exif(6)), turned(rgb, 6)),
        "profile.png": (profile_bomb_png(), scene(32, 32)),
        "text.png": (text_bomb_png(), scene(32, 32)),
        "animated.png": (many_frames_png(), scene(32, 32)),
        "lossy.webp": (encoded(rgb, "WEBP", quality=95), rgb),
        "alpha.webp": (encoded(rgba, "WEBP", lossless=True, exact=True), on_white(rgb, alpha)),
        "turned.webp": (_webp_with_exif(rgb, 8), turned(rgb, 8)),
        "palette.gif": (encoded(palette, "GIF"), paletted),
        "holes.gif": (encoded(palette, "GIF", transparency=5), on_white(paletted, np.where(holes, 0, 255))),
        "beyond.gif": (_gif_beyond_its_screen(), paletted),
        "plain.bmp": (encoded(rgb, "BMP"), rgb),
        "grey16.tif": (by_cv2(".tif", _deep(grey[..., None])), _three(grey)),
        "rgb16.tif": (by_cv2(".tif", _deep(rgb)[..., ::-1]), rgb),
        "cmyk.tif": (encoded(cmyk_picture, "TIFF", compression="tiff_lzw"), _of_cmyk(cmyk)),
        "turned.tif": (encoded(rgb, "TIFF", tiffinfo={0x0112: 3}), turned(rgb, 3)),
        "plain.jp2": (encoded(rgb, "JPEG2000"), rgb),
        "grey16.jp2": (by_cv2(".jp2", _deep(grey[..., None])), _three(grey)),
        "rgb16.jp2": (by_cv2(".jp2", _deep(rgb)[..., ::-1]), rgb),
        "plain.avif": (encoded(rgb, "AVIF", quality=90), rgb),
        "alpha.avif": (encoded(rgba, "AVIF", quality=95), on_white(rgb, alpha)),
        "deep.avif": (by_cv2(".avif", rgb[..., ::-1].astype(np.uint16) * 4, cv2.IMWRITE_AVIF_DEPTH, 10), rgb),
    }
    for orientation in range(1, 9):
        data = encoded(rgb, "JPEG", quality=95, exif=exif(orientation))
        shown[f"turned{orientation}.jpg"] = (data, turned(rgb, orientation))
    first, later = Image.fromarray(rgb), Image.fromarray(255 - rgb)
    shown["animated.webp"] = (encoded(first, "WEBP", lossless=True, save_all=True, append_images=[later]), rgb)
    other = Image.fromarray(255 - paletted).quantize(64, Image.Quantize.FASTOCTREE)
    shown["animated.gif"] = (encoded(palette, "GIF", save_all=True, append_images=[other]), paletted)
    return {name: (data, np.asarray(picture, np.float64)) for name, (data, picture) in shown.items()}

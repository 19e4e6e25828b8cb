"""Pictures as users have them (files, bytes, Pillow's images, arrays) as the evaluation sees them: RGB, turned as EXIF says,
opacity on white, CMYK, palettes and greys resolved."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text
from sycoca_ds.eval.collection import Picture, PictureSet

if TYPE_CHECKING:
    from PIL.Image import Image

    Given = str | os.PathLike | bytes | Image | np.ndarray

MAX_FILE_BYTES = 512 << 20
MOST_PIXELS = 1 << 30
"""Of a JPEG: what OpenCV takes. Other kinds end at verification's 25 million."""
REDUCED = 4
"""A JPEG of more pixels than verification allows is reduced while it is decoded, to no less than so many times the model's side."""
THUMBNAIL = 224
"""Pixels of a thumbnail's longer side at most."""


def as_list(given: Any) -> list[Any]:
    """One picture, or several, as a list. An array of four dimensions is several. Raises `UserError`: something that is none."""
    import torch

    if isinstance(given, np.ndarray):
        return list(given) if given.ndim == 4 else [given]
    if _is_picture(given):
        return [given]
    # of these the pieces are no pictures: lines, numbers, names
    pieces = bytearray | memoryview | Mapping | torch.Tensor
    whole = not isinstance(given, Iterable) or isinstance(given, pieces) or hasattr(given, "read")
    several = [given] if whole else list(given)
    for one in several:
        if not _is_picture(one):
            raise UserError(
                f"a picture of type {type(one).__name__}: expected a file's path, its bytes, a Pillow image, a uint8 array, or "
                "a list of these"
            )
    return several


def _is_picture(given: Any) -> bool:
    return isinstance(given, str | os.PathLike | bytes | np.ndarray) or hasattr(given, "getexif")


def read_picture(given: Given, side: int | None = None) -> np.ndarray:
    """uint8 RGB (H, W, 3), as the evaluation decodes it.

    Args:
        given: a file's path, its bytes, a Pillow image, or a uint8 array (H, W) or (H, W, 1, 3 or 4), of four RGBA.
        side: what the model is given; a JPEG of more than 25 million pixels is reduced to no less than four times that.

    Raises:
        ValueError: it gives no picture, and why; `Passing` where another time it may.
    """
    if isinstance(given, np.ndarray):
        return _of_array(given)
    if hasattr(given, "getexif"):
        return _of_pillow(given)
    return _of_bytes(given if isinstance(given, bytes) else _content(given), side)


def _content(path: str | os.PathLike) -> bytes:
    from sycoca_ds.data.transforms import Passing

    try:
        # non-blocking: a pipe that nobody writes to would be waited for, for ever
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            facts = os.fstat(handle)
            if not stat.S_ISREG(facts.st_mode):
                raise ValueError("is no file")
            if facts.st_size > MAX_FILE_BYTES:
                raise ValueError(f"has {facts.st_size} bytes, more than {MAX_FILE_BYTES}")
            return file.read()
    except OSError as error:
        raise Passing(error.strerror or str(error)) from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def _of_bytes(data: bytes, side: int | None) -> np.ndarray:
    from data_pipeline.pictures import FetchError, read_header
    from data_pipeline.shards.samples import MAX_PIXELS
    from sycoca_ds.data.transforms import jpeg_size, load_image

    if not data:
        raise ValueError("is empty")
    try:
        read_header(data, MOST_PIXELS)  # or OpenCV would give a cut JPEG's lower half as grey
    except FetchError as error:
        raise ValueError(error.reason) from None
    height, width = jpeg_size(data) or (0, 0)
    return load_image(data, REDUCED * side if side and height * width > MAX_PIXELS else None)


def _of_pillow(picture: Image) -> np.ndarray:
    import cv2

    from data_pipeline.pictures.decoding import turn
    from data_pipeline.pictures.flatten import damage, flatten
    from data_pipeline.pictures.headers import APART, MAX_EXIF_BYTES, ORIENTATION, FetchError, exif_orientation

    try:
        pixels = flatten(picture)
        # only now: of a TIFF Pillow turns the pixels while it loads them, and a PNG's EXIF may lie behind them
        if picture.format in APART:
            orientation = picture.getexif().get(ORIENTATION, 1)
        else:  # not `getexif`, which believes XMP and texts, too
            orientation = exif_orientation(picture.info.get("exif", b"")[:MAX_EXIF_BYTES].removeprefix(b"Exif\0\0"))
    except FetchError as error:
        raise ValueError(f"{error.reason} {picture.mode}; convert it to RGB") from None
    except Exception as error:  # Pillow decodes when it is first asked, and raises whatever damaged data leads it to
        raise ValueError(damage(error)) from None
    pixels = turn(pixels, orientation if orientation in range(1, 9) else 1)
    return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)


def _of_array(pixels: np.ndarray) -> np.ndarray:
    from data_pipeline.pictures.flatten import on_white

    channels = 1 if pixels.ndim == 2 else pixels.shape[2] if pixels.ndim == 3 else 0
    if pixels.dtype != np.uint8 or channels not in (1, 3, 4) or not pixels.size:
        raise ValueError(f"array of {pixels.dtype} {pixels.shape}: expected uint8 (H, W) or (H, W, 1, 3 or 4), RGB or RGBA")
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    if channels == 3:
        return np.ascontiguousarray(pixels)
    bgra = np.ascontiguousarray(pixels[..., [2, 1, 0, 3]])
    return np.ascontiguousarray(on_white(bgra)[..., ::-1])


def name_of(given: Given, number: int) -> str:
    """What a picture is called in messages: its path, or its place."""
    return os.fspath(given) if isinstance(given, str | os.PathLike) else f"picture {number}"


class GivenPictures(PictureSet):
    """Pictures as a call gave them; each is read when it is needed."""

    def __init__(self, given: Sequence[Given], image_size: int):
        names = [name_of(one, number) for number, one in enumerate(given)]
        pictures = [Picture(f"{number} {name}", name, name) for number, name in enumerate(names)]
        super().__init__(Path(), image_size, sha256_text("\n".join(names)), pictures, [], [])
        self.given = given

    def pixels(self, number: int) -> np.ndarray:
        try:
            return read_picture(self.given[number], self.image_size)
        except ValueError as error:
            raise UserError(f"{self.pictures[number].key}: no picture that can be read ({error})") from None


def readable(given: Sequence[Given], side: int) -> tuple[list[int], list[np.ndarray], dict[int, ValueError]]:
    """(places of those that can be read, these as the model is shown them, uint8 (side, side, 3), {place: why it is not})."""
    from sycoca_ds.data.transforms import eval_image

    places, shown, problems = [], [], {}
    for place, one in enumerate(given):
        try:
            shown.append(eval_image(read_picture(one, side), side).permute(1, 2, 0).contiguous().numpy())
            places.append(place)
        except ValueError as error:
            problems[place] = error
    return places, shown, problems


def thumbnail(picture: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3), whole, its longer side THUMBNAIL pixels or less."""
    import cv2

    height, width = picture.shape[:2]
    scale = min(1.0, THUMBNAIL / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)

"""Pictures of every kind and shape to what a model is shown: opacity on white, thin ones in bounded memory."""

from __future__ import annotations

import io
import resource
import struct
import zlib

import cv2
import numpy as np
import torch
from PIL import Image

from data_pipeline.pictures import decode, read_header
from sycoca_ds.data.resampling import resize_crops
from sycoca_ds.data.transforms import Augmentation, eval_image, load_image


def test_opacity_is_matted_on_white_as_in_what_is_downloaded() -> None:
    """A black bar on nothing, whose clear pixels are black underneath; and half-clear blue."""
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[20:44, 10:86, 3] = 255
    rgba[50:60, 10:86] = (0, 0, 200, 51)
    bar = Image.fromarray(rgba)
    palette = Image.fromarray((rgba[..., 3] // 51).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0] + [0, 0, 200] + [0, 0, 0] * 4)
    deep = np.zeros((64, 96, 4), np.uint16)
    deep[...] = rgba.astype(np.uint16) * 257
    kinds = {
        "png": (bar, "PNG", {}),
        "grey": (bar.convert("LA"), "PNG", {}),
        "palette": (palette, "PNG", {"transparency": bytes([0, 51, 0, 0, 0, 255])}),
        "one colour": (Image.fromarray(rgba[..., :3] + rgba[..., 3:] // 51), "PNG", {"transparency": (0, 0, 0)}),
        "webp": (bar, "WEBP", {"lossless": True, "exact": True}),
        "gif": (palette, "GIF", {"transparency": 0}),
    }
    for name, (picture, kind, options) in kinds.items():
        file = io.BytesIO()
        picture.save(file, kind, **options)
        for at_least in (None, 24):
            seen = load_image(file.getvalue(), at_least)
            share = 64 // seen.shape[0]
            assert seen[2 // share, 2].tolist() == [255, 255, 255], name
            assert seen[32 // share, 48 // share].max() <= 5, name
        stored = decode(file.getvalue(), read_header(file.getvalue(), 10**7), 10**7)[0]
        stored = stored if stored.ndim == 3 else np.repeat(stored[..., None], 3, 2)
        assert np.array_equal(load_image(file.getvalue())[..., ::-1], stored), name
        if name in ("png", "palette", "webp"):
            assert np.abs(load_image(file.getvalue())[55, 48].astype(int) - (204, 204, 244)).max() <= 1, name
    sixteen = cv2.imencode(".png", deep[..., [2, 1, 0, 3]])[1].tobytes()
    assert load_image(sixteen)[2, 2].tolist() == [255, 255, 255] and load_image(sixteen)[32, 48].tolist() == [0, 0, 0]


def test_the_clear_colour_of_a_deep_png_is_white() -> None:
    """16 bits a channel; Pillow compares them with the pixels' high 8."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    clear, other = b"\xff\xff\x00\x00\x80\x00", b"\x10\x00\x20\x00\x30\x00"
    rows = b"".join(b"\0" + clear * 4 + other * 4 for _ in range(8))
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)),
        (b"tRNS", clear),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    seen = load_image(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    assert (seen[:, :4] == 255).all() and seen[0, 5].tolist() == [0x10, 0x20, 0x30]


def test_jpegs_and_pictures_without_opacity_are_what_opencv_makes_of_them() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for kind, options in (
        (".jpg", []),
        (".png", []),
        (".webp", [cv2.IMWRITE_WEBP_QUALITY, 80]),
        (".png", [cv2.IMWRITE_PNG_BILEVEL, 0]),
    ):
        for pixels in (noise, noise[..., 0]):
            data = cv2.imencode(kind, pixels, options)[1]
            assert np.array_equal(load_image(data.tobytes()), cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


def test_thin_pictures_are_prepared_in_bounded_memory() -> None:
    """Resized whole, one of 60,000 x 1 would have 13 million columns: 10 GB."""
    for height, width in ((1, 60000), (60000, 1), (16, 65000), (65000, 16), (2, 20000)):
        across = (np.arange(max(height, width)) // 100 % 200).astype(np.uint8)
        image = np.broadcast_to(across[None, :, None] if width > height else across[:, None, None], (height, width, 3))
        data = cv2.imencode(".png", image)[1].tobytes()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seen = eval_image(load_image(data), 224)
        assert (seen.float() - float(across[len(across) // 2])).abs().max() <= 1, "the middle"
        crop = Augmentation(224)(load_image(data, at_least=224), np.random.default_rng(0))
        assert max(crop.shape[:2]) <= 2 * min(crop.shape[:2])
        resize_crops(torch.from_numpy(crop.reshape(-1).copy()), torch.tensor([crop.shape[:2]]), 224)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def test_thin_pictures_are_cut_from_the_same_places() -> None:
    for height, width in ((5, 300), (300, 5), (900, 20), (20, 900), (3, 99), (41, 4000)):
        image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)
        scale = (48, int(48 * height / width)) if width <= height else (int(48 * width / height), 48)
        whole = Image.fromarray(image).resize(scale, Image.Resampling.BICUBIC)
        left, top = round((scale[0] - 48) / 2), round((scale[1] - 48) / 2)
        expected = np.asarray(whole.crop((left, top, left + 48, top + 48))).astype(int)
        assert np.abs(eval_image(image, 48).permute(1, 2, 0).numpy() - expected).max() <= 2

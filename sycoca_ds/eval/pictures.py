"""Pictures of what the model sees and rebuilds. Pure functions; used by the report and by training's TensorBoard
pictures.

Pictures are uint8 (H, W, 3) RGB arrays. Patches are numbered row by row, a patch vector is (p, p, 3) with channels last
(as in MAE). Legend: B batch, N patches, P = p * p * 3 numbers of a patch, S image side in pixels, g = S / p patches a
side.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PAPER = (255, 255, 255)
INK = (40, 44, 52)
# Anchors of matplotlib's "inferno": dark is low, light is high, and it survives greyscale printing and colour
# blindness.
INFERNO = np.array(
    [
        [0, 0, 4],
        [40, 11, 84],
        [101, 21, 110],
        [159, 42, 99],
        [212, 72, 66],
        [245, 125, 21],
        [250, 193, 39],
        [252, 255, 164],
    ],
    float,
)


def patch_side(patch_values: int) -> int:
    """p from P = 3 p p. Raises ValueError if P is not of that form."""
    side = round((patch_values / 3) ** 0.5)
    if 3 * side * side != patch_values:
        raise ValueError(f"a patch of {patch_values} values is not p * p * 3 for any p")
    return side


def grid_side(patches: int) -> int:
    """g from N = g g. Raises ValueError if N is not a square."""
    side = round(patches**0.5)
    if side * side != patches:
        raise ValueError(f"{patches} patches do not form a square")
    return side


def to_picture(image_3SS: torch.Tensor) -> np.ndarray:
    """One normalised float image (3, S, S) -> uint8 picture, clipped to what a screen can show."""
    from sycoca_ds.model.pixels import denormalise

    picture = denormalise(image_3SS.detach().cpu()[None])[0]
    return picture.permute(1, 2, 0).contiguous().numpy()


def patches_to_picture(patch_NP: torch.Tensor) -> np.ndarray:
    """Patches of one image in the model's normalised units -> uint8 picture (S, S, 3)."""
    from sycoca_ds.model.image_encoder import unpatchify

    grid_side(len(patch_NP))
    return to_picture(unpatchify(patch_NP[None], patch_side(patch_NP.shape[-1]))[0])


def per_pixel(value_N: np.ndarray, side: int) -> np.ndarray:
    """(N,) -> (S, S): every patch's value at each of its pixels. Raises ValueError if the patches do not tile `side`
    pixels."""
    value_N = np.asarray(value_N)
    g = grid_side(len(value_N))
    if side % g:
        raise ValueError(f"{g} x {g} patches do not tile {side} pixels")
    return np.kron(value_N.reshape(g, g), np.ones((side // g, side // g), value_N.dtype))


def hide(picture: np.ndarray, hidden_N: np.ndarray, colour: tuple[int, int, int] = (222, 222, 222)) -> np.ndarray:
    """The picture with its hidden patches painted over: what the image encoder gets to see."""
    hidden_SS = per_pixel(np.asarray(hidden_N, bool), picture.shape[0])
    return np.where(hidden_SS[..., None], np.array(colour, np.uint8), picture)


def mask_overlay(
    picture: np.ndarray, hidden_N: np.ndarray, colour: tuple[int, int, int] = (230, 57, 70), strength: float = 0.55
) -> np.ndarray:
    """The picture with its hidden patches tinted: which patches were chosen."""
    hidden_SS = per_pixel(np.asarray(hidden_N, bool), picture.shape[0])
    tinted = picture * (1 - strength) + np.array(colour, float) * strength
    return np.where(hidden_SS[..., None], tinted.round(), picture).astype(np.uint8)


def paste(picture: np.ndarray, rebuilt: np.ndarray, hidden_N: np.ndarray) -> np.ndarray:
    """The rebuilt pixels where patches were hidden, the original elsewhere (kept patches are not rebuilt: no loss asks
    for it)."""
    hidden_SS = per_pixel(np.asarray(hidden_N, bool), picture.shape[0])
    return np.where(hidden_SS[..., None], rebuilt, picture).astype(np.uint8)


def heat_map(score_N: np.ndarray, side: int, picture: np.ndarray | None = None, strength: float = 0.65) -> np.ndarray:
    """Scores of patches as colours, lowest dark, highest light (scaled to the range of this image); laid over `picture`
    if given."""
    score_N = np.asarray(score_N, np.float64)
    low, high = score_N.min(), score_N.max()
    place = per_pixel((score_N - low) / (high - low) if high > low else np.zeros_like(score_N), side) * (len(INFERNO) - 1)
    colour = np.stack([np.interp(place, np.arange(len(INFERNO)), INFERNO[:, channel]) for channel in range(3)], axis=-1)
    if picture is not None:
        colour = colour * strength + picture.mean(axis=-1, keepdims=True) * (1 - strength)
    return colour.round().astype(np.uint8)


def enlarge(picture: np.ndarray, at_least: int) -> np.ndarray:
    """Whole-number enlargement (nearest: pixels stay honest) until the shorter side has `at_least` pixels."""
    factor = max(1, -(-at_least // min(picture.shape[:2])))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Letters `size` pixels high: matplotlib's where it is installed, which has those of more alphabets than Pillow's own."""
    found = importlib.util.find_spec("matplotlib")  # not imported, which takes a second
    own = Path(found.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf" if found and found.origin else None
    if own is None or not own.is_file():
        return ImageFont.load_default(size)
    return ImageFont.truetype(own, size, layout_engine=ImageFont.Layout.BASIC)  # raqm fails on what a model may make up


def shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """A text that fits: three dots stand for its middle, since names differ at both ends."""
    text = text.encode("utf-8", "replace").decode()
    kept, found = len(text), text
    while kept > 1 and font.getlength(found) > width:
        kept -= 1
        found = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
    return found


def grid(
    pictures: Sequence[np.ndarray],
    columns: int,
    labels: Sequence[str] | None = None,
    gap: int = 6,
    text_size: int = 10,
    narrowest: int = 1,
) -> np.ndarray:
    """Pictures in rows of `columns`, each with its label underneath, on white. All are placed in the largest one's cell.

    Args:
        labels: of one line or several, each shortened to fit.
        narrowest: pixels that a cell has at least.

    Raises ValueError without pictures or with another number of labels than pictures.
    """
    if not pictures or columns < 1:
        raise ValueError("a grid needs at least one picture and one column")
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f"{len(labels)} labels for {len(pictures)} pictures")
    height, width = max(p.shape[0] for p in pictures), max(narrowest, *(p.shape[1] for p in pictures))
    font, line_height = font_of(text_size), round(1.4 * text_size)
    text_height = 0 if labels is None else line_height * max(label.count("\n") + 1 for label in labels)
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + text_height + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        x = gap + number % columns * (width + gap)
        y = gap + number // columns * (height + text_height + gap)
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))
        for line, text in enumerate(labels[number].split("\n") if labels is not None else ()):
            draw.text((x, y + height + 1 + line * line_height), shortened(text, font, width), fill=INK, font=font)
    return np.asarray(sheet)

"""Outlines of shapes -> pixels, and which object is seen where. Drawn four times too large and averaged down: smooth edges at
48 px.

Shapes below: n corners, S = SIDE."""

from __future__ import annotations

import cv2
import numpy as np

SIDE = 64
OVERSAMPLE = 4
WIDE = SIDE * OVERSAMPLE
"""Side of the canvas before it is averaged down."""
NOISE = 2.0
"""Deviation of the noise, of 255."""
JPEG_QUALITY = 92
SUBPIXEL_BITS = 4


def _round(corners: int = 48) -> np.ndarray:
    angles = np.arange(corners) * (2 * np.pi / corners)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int = 5, inner: float = 0.46) -> np.ndarray:
    angles = np.arange(2 * points) * (np.pi / points) - np.pi / 2
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, inner)
    return np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)


def _heart(corners: int = 64) -> np.ndarray:
    t = np.arange(corners) * (2 * np.pi / corners)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 17, (y - 2.5) / 17], axis=1)


def _crescent(corners: int = 32, bite: float = 0.45) -> np.ndarray:
    """The unit circle without a circle of the same size, which is shifted to the right by 2 * `bite`."""
    half = np.arccos(bite)
    outer = np.linspace(half, 2 * np.pi - half, corners)
    inner = np.linspace(np.pi + half, np.pi - half, corners)[1:-1]
    outer_arc = np.stack([np.cos(outer), np.sin(outer)], axis=1)
    return np.concatenate([outer_arc, np.stack([np.cos(inner) + 2 * bite, np.sin(inner)], axis=1)])


def _cross(a: float = 0.3, b: float = 0.95) -> np.ndarray:
    return np.array([(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)])


def _arrow(stem: float = 0.3, wing: float = 0.85, neck: float = 0.0) -> np.ndarray:
    return np.array([(0, -1), (wing, neck), (stem, neck), (stem, 0.95), (-stem, 0.95), (-stem, neck), (-wing, neck)], float)


OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "square": (np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)]),),
    "triangle": (np.array([(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)]),),
    "cross": (_cross(),),
    "ring": (_round(), 0.52 * _round()),
    "circle": (_round(),),
    "star": (_star(),),
    "heart": (_heart(),),
    "crescent": (_crescent(),),
    "diamond": (np.array([(0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)]),),
    "arrow": (_arrow(),),
}
"""Corners of each shape in about the square [-1, 1]^2, float64 (n, 2), x to the right, y downwards; a second outline is a hole."""


def turned(outlines: tuple[np.ndarray, ...], degrees: float, radius: float, center: np.ndarray) -> list[np.ndarray]:
    """Outlines turned, made `radius` times larger and put at `center` (x, y) of the canvas."""
    turn = np.deg2rad(degrees)
    rotation = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    return [corners @ rotation * radius + center for corners in outlines]


def _fill(canvas: np.ndarray, outlines: list[np.ndarray], value: object) -> None:
    points = [np.rint(corners * (1 << SUBPIXEL_BITS)).astype(np.int32) for corners in outlines]
    cv2.fillPoly(canvas, points, value, shift=SUBPIXEL_BITS)


def footprint(outlines: list[np.ndarray], side: int) -> np.ndarray:
    """bool (side, side): the pixels of a square that outlines cover."""
    covered = np.zeros((side, side), np.uint8)
    _fill(covered, outlines, 1)
    return covered.astype(bool)


class Canvas:
    """A picture in the making: pixels, and the label of the object on top of each."""

    def __init__(self, background: np.ndarray):
        """Args: background: an RGB colour (3,), or one a pixel (WIDE, WIDE, 3); uint8."""
        self.pixels = np.empty((WIDE, WIDE, 3), np.uint8)
        self.pixels[:] = background
        self.labels = np.zeros((WIDE, WIDE), np.uint8)

    def fill(self, label: int, outlines: list[np.ndarray], color: np.ndarray) -> None:
        """Draws an object over what is there. Args: color: RGB, 0 to 255."""
        _fill(self.pixels, outlines, color.tolist())
        _fill(self.labels, outlines, label)

    def mask(self) -> np.ndarray:
        """uint8 (S, S): the label that most of a pixel shows, of equal ones the lowest."""
        wide = [(self.labels == label).astype(np.float32) for label in range(int(self.labels.max()) + 1)]
        shares = np.stack([cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for part in wide])
        return shares.argmax(0).astype(np.uint8)

    def picture(self, rng: np.random.Generator) -> np.ndarray:
        """uint8 RGB (S, S, 3), with noise."""
        small = cv2.resize(self.pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        small += rng.standard_normal(small.shape, dtype=np.float32) * NOISE
        return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def encode_jpeg(picture: np.ndarray) -> bytes:
    """A picture (S, S, 3) as the world serves it."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    return data.tobytes()


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask (S, S) as a PNG of one 8-bit channel, its labels the values."""
    ok, data = cv2.imencode(".png", mask)
    assert ok
    return data.tobytes()

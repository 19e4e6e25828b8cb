"""Pixels of the drawn world. Drawn four times too large and averaged down: smooth edges at 48 px."""

from __future__ import annotations

import cv2
import numpy as np

from data_pipeline.world.scenes import BACKGROUNDS, COLORS, SHAPES, Scene, Thing

SIDE = 64
OVERSAMPLE = 4
CELL = SIDE * OVERSAMPLE / 3
LARGE, SMALL = 0.96, 0.62
"""Width of an object as a share of its cell."""
JITTER_PLACE, JITTER_SIZE, JITTER_TURN, JITTER_COLOR, NOISE = 0.04, 0.04, 5.0, 8.0, 2.0
"""Largest shift (of a cell), scale change, turn (degrees), colour change and the deviation of the noise (of 255)."""
JPEG_QUALITY = 92

COLOR_RGB = {
    "red": (216, 24, 24),
    "green": (16, 128, 40),
    "blue": (28, 60, 224),
    "purple": (132, 28, 168),
    "brown": (116, 66, 24),
    "black": (16, 16, 16),
}
BACKGROUND_RGB = {
    "white": (250, 250, 250),
    "gray": (192, 192, 192),
    "yellow": (250, 232, 120),
    "pink": (252, 196, 212),
    "cyan": (150, 236, 240),
}
SUBPIXEL_BITS = 4


def outline(shape: str) -> np.ndarray:
    """Corners of a shape in the square [-1, 1]^2, float64 (n, 2), y downwards."""
    if shape == "square":
        return np.array([(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)])
    if shape == "triangle":
        return np.array([(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)])
    if shape == "cross":
        a, b = 0.3, 0.95
        return np.array(
            [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        )
    angles = np.arange(48) * np.pi / 24
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


OUTLINES = {shape: outline(shape) for shape in SHAPES}


def _draw_thing(canvas: np.ndarray, thing: Thing, share: float, rng: np.random.Generator) -> None:
    row, column = divmod(thing.cell, 3)
    center = (np.array([column, row]) + 0.5 + rng.uniform(-JITTER_PLACE, JITTER_PLACE, 2)) * CELL
    radius = 0.5 * CELL * share * (1 + rng.uniform(-JITTER_SIZE, JITTER_SIZE))
    turn = np.deg2rad(rng.uniform(-JITTER_TURN, JITTER_TURN))
    rotation = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    color = np.clip(np.array(COLOR_RGB[COLORS[thing.color]]) + rng.uniform(-JITTER_COLOR, JITTER_COLOR, 3), 0, 255)
    shape = SHAPES[thing.shape]
    rings = [OUTLINES[shape]] + ([0.52 * OUTLINES[shape]] if shape == "ring" else [])
    scale = 1 << SUBPIXEL_BITS
    points = [np.rint((corners @ rotation * radius + center) * scale).astype(np.int32) for corners in rings]
    cv2.fillPoly(canvas, points, color.tolist(), shift=SUBPIXEL_BITS)


def draw(scene: Scene, seed: tuple[int, ...]) -> np.ndarray:
    """uint8 RGB picture (SIDE, SIDE, 3). `seed` decides jitter and noise; the description decides everything else."""
    rng = np.random.default_rng(seed)
    background = np.array(BACKGROUND_RGB[BACKGROUNDS[scene.background]]) + rng.uniform(-4, 4, 3)
    canvas = np.empty((SIDE * OVERSAMPLE, SIDE * OVERSAMPLE, 3), np.uint8)
    canvas[:] = np.clip(background, 0, 255).astype(np.uint8)
    _draw_thing(canvas, scene.main, LARGE, rng)
    for other in scene.others:
        _draw_thing(canvas, other, SMALL, rng)
    small = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    small += rng.standard_normal(small.shape, dtype=np.float32) * NOISE
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def encode_jpeg(picture: np.ndarray) -> bytes:
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    assert ok
    return data.tobytes()

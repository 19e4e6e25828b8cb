"""Pixels of the demo world."""

from __future__ import annotations

import numpy as np

from data_pipeline.world.drawn.canvas import OUTLINES, WIDE, Canvas, turned
from data_pipeline.world.drawn.demo_scenes import BACKGROUNDS, COLORS, SHAPES, DemoScene, Thing

CELL = WIDE / 3
LARGE, SMALL = 0.96, 0.62
"""Width of an object as a share of its cell."""
JITTER_PLACE, JITTER_SIZE, JITTER_TURN, JITTER_COLOR = 0.04, 0.04, 5.0, 8.0
"""Largest shift (of a cell), scale change, turn (degrees) and colour change (of 255)."""

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


def _draw_thing(canvas: Canvas, label: int, thing: Thing, share: float, rng: np.random.Generator) -> None:
    row, column = divmod(thing.cell, 3)
    center = (np.array([column, row]) + 0.5 + rng.uniform(-JITTER_PLACE, JITTER_PLACE, 2)) * CELL
    radius = 0.5 * CELL * share * (1 + rng.uniform(-JITTER_SIZE, JITTER_SIZE))
    outlines = turned(OUTLINES[SHAPES[thing.shape]], rng.uniform(-JITTER_TURN, JITTER_TURN), radius, center)
    color = np.clip(np.array(COLOR_RGB[COLORS[thing.color]]) + rng.uniform(-JITTER_COLOR, JITTER_COLOR, 3), 0, 255)
    canvas.fill(label, outlines, color)


def paint(scene: DemoScene, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB picture (SIDE, SIDE, 3) and mask (SIDE, SIDE). `seed` decides jitter and noise; the description decides
    everything else."""
    rng = np.random.default_rng(seed)
    background = np.array(BACKGROUND_RGB[BACKGROUNDS[scene.background]]) + rng.uniform(-4, 4, 3)
    canvas = Canvas(np.clip(background, 0, 255).astype(np.uint8))
    for label, thing in enumerate(scene.things, 1):
        _draw_thing(canvas, label, thing, LARGE if label == 1 else SMALL, rng)
    return canvas.picture(rng), canvas.mask()


def draw(scene: DemoScene, seed: tuple[int, ...]) -> np.ndarray:
    """The picture alone."""
    return paint(scene, seed)[0]

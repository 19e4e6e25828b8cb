"""Pixels of the hard world."""

from __future__ import annotations

import numpy as np

from data_pipeline.world.drawn.canvas import Canvas
from data_pipeline.world.drawn.hard_layout import COLORS
from data_pipeline.world.drawn.hard_scenes import BACKGROUNDS, HardScene
from data_pipeline.world.drawn.textures import TEXTURES, pattern

JITTER_COLOR, JITTER_TINT = 8.0, 4.0
"""Largest change of a colour, of 255."""
DARK, LIGHT = 0.84, 0.60
"""The dark tone is a tint times DARK; the light one lies LIGHT of the way from it to white."""

# Objects are strong, backgrounds pale: in Lab no object is closer than 29 to a tone of a background, nor than 34 to another object
# (a difference of 10 is seen at a glance).
COLOR_RGB = {
    "red": (216, 24, 24),
    "orange": (244, 124, 0),
    "yellow": (250, 212, 0),
    "green": (16, 128, 40),
    "teal": (0, 118, 128),
    "blue": (28, 60, 224),
    "purple": (124, 28, 160),
    "pink": (244, 64, 160),
    "brown": (116, 66, 24),
    "black": (16, 16, 16),
}
TINT_RGB = {
    "white": (252, 252, 252),
    "gray": (186, 186, 186),
    "cyan": (158, 234, 242),
    "beige": (240, 220, 184),
    "mint": (176, 236, 180),
    "lavender": (206, 190, 246),
}


def tones(tint: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two tones (3,) of a background: dark, light."""
    return tint * DARK, tint + (255 - tint) * LIGHT


def paint(scene: HardScene, seed: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 RGB picture (SIDE, SIDE, 3) and mask (SIDE, SIDE). `seed` decides shades, the pattern's place and noise; the
    description decides everything else."""
    rng = np.random.default_rng(seed)
    tint = np.array(TINT_RGB[BACKGROUNDS[scene.tint]]) + rng.uniform(-JITTER_TINT, JITTER_TINT, 3)
    dark, light = tones(tint)
    steps = np.clip(np.rint(np.linspace(light, dark, 256)), 0, 255).astype(np.uint8)
    canvas = Canvas(steps[np.rint(255 * pattern(TEXTURES[scene.texture], rng)).astype(np.uint8)])
    for label, thing in enumerate(scene.things, 1):
        color = np.array(COLOR_RGB[COLORS[thing.color]]) + rng.uniform(-JITTER_COLOR, JITTER_COLOR, 3)
        canvas.fill(label, thing.outlines(), np.clip(color, 0, 255))
    return canvas.picture(rng), canvas.mask()

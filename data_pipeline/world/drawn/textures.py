"""Patterns of the hard world's backgrounds, in two tones of one colour."""

from __future__ import annotations

import math

import numpy as np

from data_pipeline.world.drawn.canvas import OVERSAMPLE, SIDE, WIDE

TEXTURES = ("plain", "striped", "checkered", "dotted", "speckled", "shaded")
Y, X = (np.mgrid[:WIDE, :WIDE].astype(np.float32) + 0.5) / OVERSAMPLE
"""Place of each pixel of the canvas, in pixels of the picture."""


def _across(degrees: float) -> np.ndarray:
    """How far each pixel lies in a direction."""
    turn = math.radians(degrees)
    return X * math.cos(turn) + Y * math.sin(turn)


def pattern(texture: str, rng: np.random.Generator) -> np.ndarray:
    """float32 (WIDE, WIDE): 0 where a pixel has the light tone, 1 where it has the dark one. `rng` decides widths, directions and
    where it begins. No part is narrower than 3 pixels of the picture, which are 2 at 48 px."""
    if texture == "plain":
        return np.full((WIDE, WIDE), 0.5, np.float32)
    if texture == "striped":
        period = rng.uniform(8, 11)
        return ((_across(45.0 * rng.integers(4)) + rng.uniform(0, period)) % period < period / 2).astype(np.float32)
    if texture == "checkered":
        cell = rng.uniform(6, 8)
        columns, rows = (np.floor((place + rng.uniform(0, 2 * cell)) / cell) for place in (X, Y))
        return (columns + rows) % 2
    if texture == "dotted":
        spacing = rng.uniform(8.5, 10.5)
        row, y = np.divmod(Y + rng.uniform(0, spacing), spacing)
        x = (X + rng.uniform(0, spacing) + row % 2 * spacing / 2) % spacing  # every other row is shifted by half
        return (np.hypot(x - spacing / 2, y - spacing / 2) < 0.3 * spacing).astype(np.float32)
    if texture == "speckled":
        grain = 3
        grains = rng.random((-(-SIDE // grain), -(-SIDE // grain))) < 0.5
        return grains.repeat(grain * OVERSAMPLE, 0).repeat(grain * OVERSAMPLE, 1)[:WIDE, :WIDE].astype(np.float32)
    assert texture == "shaded"
    along = _across(rng.uniform(0, 360))
    return (along - along.min()) / np.ptp(along)

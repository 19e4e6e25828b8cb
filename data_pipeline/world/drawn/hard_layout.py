"""Where the objects of a hard scene are: their centres on a lattice, none outside, none hidden by more than a little.

A model of 3 M parameters has to find ten shapes in some hundred steps. On the lattice of `tiny`'s patches an outline falls into
patches the same way wherever the object is; with free places, sizes that vary and turns a thousand steps taught it no shape
(benchmarks/results/2026-11-26_hard_world.md).


Lengths are in pixels of the picture (SIDE x SIDE), x to the right, y downwards."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from data_pipeline.world.drawn.canvas import OUTLINES, OVERSAMPLE, SIDE, footprint, turned

SHAPES = ("square", "triangle", "cross", "ring", "circle", "star", "heart", "crescent", "diamond", "arrow")
COLORS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "brown", "black")
SIZES = ("small", "large")
RADII = (10.3, 16.0)
"""Of a square or a circle about; what is thinner is drawn wider (`SPREAD`), so that a size is about the same area for every shape:
2.3 and 5.4 patches of a 6 x 6 grid. A small one lies within about 2 x 2 of them."""
LATTICE = SIDE / 6
"""Distance between the places where a centre may be: the corners of those patches."""
SPREAD_AREA, SPREAD = 2.4, (0.9, 1.2)
"""A shape is scaled towards this area at radius 1, within these bounds."""
VISIBLE = 0.85
"""Every object shows at least this share of its area."""
APART = 2.0
"""Least distance between two objects of one colour: touching, they would look like one object."""
EDGE = 1.0
"""Least distance to the picture's border."""
OVERLAP = 0.8
"""Of the sum of two radii: objects at this distance, which overlap at an edge, are not in each other's way yet."""
GRID = 2
"""Pixels of the layout to one of the picture: what is hidden is counted on these."""
CLEAR = 12.0
"""One object is left of another if their centres are this far apart in x, and further in x than in y by SLANT."""
SLANT = 1.5
RELATIONS = ("left", "right", "above", "below")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def area_and_center(outlines: tuple[np.ndarray, ...]) -> tuple[float, np.ndarray]:
    """Area and centre of mass (x, y) of a shape, holes taken off (the shoelace formula)."""
    area, moment = 0.0, np.zeros(2)
    for number, corners in enumerate(outlines):
        after = np.roll(corners, -1, axis=0)
        cross = corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]
        sign = np.sign(cross.sum()) * (1 if number == 0 else -1)
        area += sign * cross.sum() / 2
        moment += sign * ((corners + after) * cross[:, None]).sum(0) / 6
    return area, moment / area


def _balanced(shape: str) -> tuple[np.ndarray, ...]:
    """A shape's outlines around its centre of mass, thin ones wider."""
    area, center = area_and_center(OUTLINES[shape])
    spread = np.clip(np.sqrt(SPREAD_AREA / area), *SPREAD)
    return tuple((corners - center) * spread for corners in OUTLINES[shape])


BALANCED = {shape: _balanced(shape) for shape in SHAPES}


@dataclass(frozen=True)
class Thing:
    """One object of a scene, with its place."""

    shape: int
    """Index into SHAPES."""
    color: int
    """Index into COLORS."""
    size: int
    """Index into SIZES."""
    x: float
    """Centre of mass of the whole object."""
    y: float
    radius: float

    @property
    def name(self) -> str:
        return f"{COLORS[self.color]} {SHAPES[self.shape]}"

    @property
    def kind(self) -> tuple[int, int, int]:
        """All but its place."""
        return (self.size, self.color, self.shape)

    def outlines(self) -> list[np.ndarray]:
        """On the canvas."""
        center = np.array([self.x, self.y]) * OVERSAMPLE
        return turned(BALANCED[SHAPES[self.shape]], 0.0, self.radius * OVERSAMPLE, center)


def _grow(covered: np.ndarray) -> np.ndarray:
    """The pixels within APART of those that are covered."""
    size = 2 * round(APART * GRID) + 1
    return cv2.dilate(covered.astype(np.uint8), np.ones((size, size), np.uint8)).astype(bool)


def _places(around: np.ndarray) -> np.ndarray:
    """(P, 2): the points of the lattice at which an outline (n, 2) around its centre lies within the picture."""
    points = np.arange(1, round(SIDE / LATTICE)) * LATTICE
    x, y = (
        points[(points + low >= EDGE) & (points + high <= SIDE - EDGE)]
        for low, high in zip(around.min(0), around.max(0), strict=True)
    )
    return np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def _crowding(places: np.ndarray, radius: float, things: list[Thing]) -> np.ndarray:
    """(P,): how deep circles around each of (P, 2) places would lie in those around the objects that are there; a little counts as
    nothing. The least crowded place first: few layouts fail then, and which of the free places is taken stays random."""
    there = np.array([(thing.x, thing.y, thing.radius) for thing in things]).reshape(-1, 3)
    distance = np.hypot(places[:, :1] - there[:, 0], places[:, 1:] - there[:, 1])
    return np.maximum(OVERLAP * (radius + there[:, 2]) - distance, 0).sum(1)


def _placed_once(kinds: list[tuple[int, int, int]], rng: np.random.Generator) -> tuple[Thing, ...] | None:
    things: list[Thing] = []
    visible: list[np.ndarray] = []
    needed: list[float] = []
    for size, color, shape in kinds:
        radius = RADII[size]
        around = turned(BALANCED[SHAPES[shape]], 0.0, radius, np.zeros(2))
        places = rng.permutation(_places(around[0]))
        alike = [number for number, thing in enumerate(things) if thing.color == color]
        for center in places[np.argsort(_crowding(places, radius, things), kind="stable")]:
            covered = footprint([(corners + center) * GRID for corners in around], SIDE * GRID)
            left = [seen & ~covered for seen in visible]
            hidden = any(np.count_nonzero(seen) < least for seen, least in zip(left, needed, strict=True))
            if not hidden and not (alike and (_grow(covered) & np.any([visible[number] for number in alike], axis=0)).any()):
                things.append(Thing(shape, color, size, float(center[0]), float(center[1]), radius))
                visible = [*left, covered]
                needed.append(VISIBLE * np.count_nonzero(covered))
                break
        else:
            return None
    return tuple(things)


def place(kinds: list[tuple[int, int, int]], rng: np.random.Generator, attempts: int = 16) -> tuple[Thing, ...] | None:
    """Objects at places that keep each of them visible; later ones lie on top of earlier ones.

    Args:
        kinds: (size, colour, shape) of each.

    Returns:
        None if `attempts` layouts failed: these objects are too large together.
    """
    for _ in range(attempts):
        things = _placed_once(kinds, rng)
        if things is not None:
            return things
    return None


def relation(first: Thing, second: Thing) -> str | None:
    """Where `first` is, seen from `second`: one of RELATIONS, or None where it is not clear."""
    dx, dy = first.x - second.x, first.y - second.y
    if max(abs(dx), abs(dy)) < CLEAR or max(abs(dx), abs(dy)) < SLANT * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"

"""The hard world's pixels: masks beside an independent drawing, colours, what is hidden, what can be told apart."""

import cv2
import numpy as np
import pytest

from data_pipeline.world.drawn.canvas import OUTLINES
from data_pipeline.world.drawn.hard_layout import BALANCED, COLORS, RADII, SHAPES, VISIBLE, area_and_center, place
from data_pipeline.world.drawn.hard_pixels import COLOR_RGB, TINT_RGB, paint, tones
from data_pipeline.world.drawn.hard_scenes import BACKGROUNDS, HardScene, sample_scenes
from data_pipeline.world.drawn.textures import TEXTURES, pattern

FINE = 6
"""Samples a pixel and axis of the independent drawing."""


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (u, v), v downwards, lie in a shape, from its formula."""
    r, angle = np.hypot(u, v), np.arctan2(v, u)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.86
    if shape == "triangle":
        return (v <= 0.85) & (abs(u) <= (v + 0.95) / 1.8)
    if shape == "cross":
        return np.maximum(abs(u), abs(v)) <= 0.95 * (np.minimum(abs(u), abs(v)) <= 0.3)
    if shape == "ring":
        return (r <= 1) & (r >= 0.52)
    if shape == "circle":
        return r <= 1
    if shape == "star":  # between a tip and the next notch the edge is one line
        beside = np.abs((angle + np.pi / 2 + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        x, y, (a, b) = r * np.cos(beside), r * np.sin(beside), 0.46 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        return (1 - x) * b >= y * (1 - a)
    if shape == "heart":  # right half: y between the two branches of the curve over x = 16 sin^3 t
        t = np.arcsin(np.cbrt(np.clip(abs(u) * 17 / 16, 0, 1)))

        def height(t):
            return -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))

        y = v * 17 + 2.5
        return (abs(u) * 17 <= 16) & (y >= height(t)) & (y <= height(np.pi - t))
    if shape == "crescent":
        return (r <= 1) & (np.hypot(u - 0.9, v) >= 1)
    if shape == "diamond":
        return abs(u) / 0.72 + abs(v) <= 1
    assert shape == "arrow"
    return ((v >= -1) & (v <= 0) & (abs(u) <= 0.85 * (v + 1))) | ((abs(u) <= 0.3) & (v >= 0) & (v <= 0.95))


def moments(shape: str) -> tuple[float, np.ndarray]:
    """Area and centre of mass of a shape, by counting."""
    step = 0.004
    u, v = np.meshgrid(*(np.arange(-1.1, 1.1, step) + step / 2,) * 2)
    there = inside(shape, u, v)
    return float(there.sum() * step**2), np.array([u[there].mean(), v[there].mean()])


MOMENTS = {shape: moments(shape) for shape in SHAPES}


def covered(thing) -> np.ndarray:
    """bool (64 * FINE, 64 * FINE): samples that an object covers."""
    shape = SHAPES[thing.shape]
    area, center = MOMENTS[shape]
    spread = np.clip(np.sqrt(2.4 / area), 0.9, 1.2)
    y, x = (np.mgrid[: 64 * FINE, : 64 * FINE] + 0.5) / FINE - 1 / 8  # OpenCV counts from the centre of a pixel of the canvas
    dx, dy = (x - thing.x) / thing.radius / spread, (y - thing.y) / thing.radius / spread
    return inside(shape, dx + center[0], dy + center[1])


@pytest.fixture(scope="module")
def scenes() -> list[HardScene]:
    return sample_scenes(80, seed=12)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_have_the_area_and_centre_of_their_formula(shape):
    area, center = area_and_center(OUTLINES[shape])
    assert abs(area - MOMENTS[shape][0]) < 0.02 * area and np.abs(center - MOMENTS[shape][1]).max() < 0.01
    area, center = area_and_center(BALANCED[shape])
    assert 1.9 < area < 2.6 and np.abs(center).max() < 1e-9


def test_masks_are_those_of_an_independent_drawing_and_hardly_hide_an_object(scenes):
    differing = []
    for number, scene in enumerate(scenes):
        _, mask = paint(scene, (number,))
        parts = [covered(thing) for thing in scene.things]
        top = np.zeros((64 * FINE, 64 * FINE), np.uint8)
        for label, part in enumerate(parts, 1):
            top[part] = label
        cells = top.reshape(64, FINE, 64, FINE)
        shares = np.stack([(cells == label).sum((1, 3)) for label in range(len(parts) + 1)]) / FINE**2
        clear = shares.max(0) > 0.85
        assert np.array_equal(mask[clear], shares.argmax(0)[clear]), scene.caption
        differing.append((mask != shares.argmax(0)).mean())
        for label, part in enumerate(parts, 1):
            whole = part.sum() / FINE**2
            assert (top == label).sum() / FINE**2 >= (VISIBLE - 0.02) * whole, scene.caption
            assert (mask == label).sum() >= (VISIBLE - 0.06) * whole, scene.caption
            assert not (
                part[: FINE // 2].any() or part[-FINE // 2 :].any() or part[:, : FINE // 2].any() or part[:, -FINE // 2 :].any()
            )
    assert np.mean(differing) < 0.01


def test_pixels_have_the_colours_that_are_named(scenes):
    for number, scene in enumerate(scenes):
        picture, mask = paint(scene, (number,))
        for label, thing in enumerate(scene.things, 1):
            inner = cv2.erode((mask == label).astype(np.uint8), np.ones((3, 3))).astype(bool)
            assert inner.sum() > 20, "enough of it is no edge"
            assert np.abs(picture[inner].mean(0) - COLOR_RGB[COLORS[thing.color]]).max() < 10, scene.names
        ground = picture[cv2.erode((mask == 0).astype(np.uint8), np.ones((3, 3))).astype(bool)].astype(float)
        dark, light = tones(np.array(TINT_RGB[BACKGROUNDS[scene.tint]], float))
        way = np.clip((ground - light) @ (dark - light) / ((dark - light) @ (dark - light)), 0, 1)
        assert np.abs(ground - light - way[:, None] * (dark - light)).mean(0).max() < 8, scene.background_name


def test_no_colour_is_close_to_another_one():
    """Distances in Lab: 2.3 is the least that is seen at all."""

    def lab(*colors):
        return cv2.cvtColor(np.array([colors], np.float32) / 255, cv2.COLOR_RGB2LAB)[0]

    objects = lab(*COLOR_RGB.values())
    grounds = lab(*(tone for tint in TINT_RGB.values() for tone in tones(np.array(tint, float))))
    between = np.linalg.norm(objects[:, None] - objects, axis=2) + 1000 * np.eye(len(objects))
    assert between.min() > 34
    assert np.linalg.norm(objects[:, None] - grounds, axis=2).min() > 29
    tints = lab(*TINT_RGB.values())
    assert (np.linalg.norm(tints[:, None] - tints, axis=2) + 1000 * np.eye(len(tints))).min() > 22
    assert not set(COLOR_RGB) & set(TINT_RGB)


def test_objects_lie_on_the_lattice_and_cover_two_or_five_patches_and_a_third_of_the_picture(scenes):
    shares = {size: [] for size in range(len(RADII))}
    total = []
    for number, scene in enumerate(scenes):
        _, mask = paint(scene, (number,))
        for label, thing in enumerate(scene.things, 1):
            shares[thing.size].append((mask == label).mean() * 36)
            at = np.array([thing.x, thing.y]) * 6 / 64
            assert np.allclose(at, at.round(), atol=1e-9), "a corner of tiny's patches"
        total.append((mask > 0).mean())
    small, large = (np.array(shares[size]) for size in range(2))
    assert small.min() > 1.4 and small.max() < 2.8 and large.min() > 3.7 and large.max() < 6.5
    assert abs(np.median(small) - 2.2) < 0.3 and abs(np.median(large) - 5.4) < 0.5
    assert 0.2 < np.mean(total) < 0.35 and min(total) > 0.14 and max(total) < 0.5


def test_objects_of_one_colour_do_not_touch():
    scenes = [scene for scene in sample_scenes(400, seed=13) if len({thing.color for thing in scene.things}) < len(scene.things)]
    assert len(scenes) > 80
    for number, scene in enumerate(scenes):
        _, mask = paint(scene, (number,))
        for first in range(len(scene.things)):
            for second in range(first):
                if scene.things[first].color == scene.things[second].color:
                    wide = cv2.dilate((mask == first + 1).astype(np.uint8), np.ones((3, 3)))
                    assert not (wide.astype(bool) & (mask == second + 1)).any()


def test_what_cannot_be_placed_is_given_up():
    assert place([(1, 0, shape) for shape in range(6)], np.random.default_rng(0), attempts=3) is None


def test_two_pictures_of_one_description_differ_and_one_seed_repeats(scenes):
    first, again, other = (paint(scenes[0], (1, seed)) for seed in (2, 2, 3))
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0]) and np.array_equal(first[1], other[1])


@pytest.mark.parametrize("texture", TEXTURES)
def test_patterns_are_half_dark_and_coarse_enough_to_be_seen(texture):
    values = [pattern(texture, np.random.default_rng(seed)) for seed in range(12)]
    for value in values:
        assert value.shape == (256, 256) and value.min() >= 0 and value.max() <= 1
        assert 0.2 < value.mean() < 0.65
        at_48 = cv2.resize(value, (48, 48), interpolation=cv2.INTER_AREA)
        if texture == "plain":
            assert np.ptp(value) == 0
        elif texture == "shaded":
            assert np.ptp(at_48) > 0.9 and np.abs(np.diff(at_48, axis=0)).max() < 0.05
        else:
            assert at_48.std() > 0.33, "of 0.5, were nothing averaged away"
    assert texture == "plain" or not np.array_equal(values[0], values[1])

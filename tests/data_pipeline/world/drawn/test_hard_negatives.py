"""Captions that nearly fit: false of their scenes, by a check of its own, and no more different than their kind says."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from data_pipeline.world.drawn.hard_layout import CLEAR, COLORS, SHAPES, SLANT
from data_pipeline.world.drawn.hard_negatives import KINDS, negatives
from data_pipeline.world.drawn.hard_scenes import HardScene, sample_scenes

OBJECT = re.compile(rf"(small|large) ({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")
RELATED = re.compile(rf"({OBJECT.pattern}) (?:to the )?(left of|right of|above|over|below|under) an? ({OBJECT.pattern})")


@pytest.fixture(scope="module")
def scenes() -> list[HardScene]:
    return sample_scenes(1500, seed=11)


def true_of(scene: HardScene, caption: str) -> bool:
    """Whether all objects that a caption names are there, and the two that it relates lie as it says."""
    places = {(("small", "large")[thing.size], *thing.name.split()): thing for thing in scene.things}
    if not all(match.groups() in places for match in OBJECT.finditer(caption)):
        return False
    for match in RELATED.finditer(caption):
        first, second = (places[match.group(*where)] for where in ((2, 3, 4), (7, 8, 9)))
        dx, dy = first.x - second.x, first.y - second.y
        along, across = (dx, dy) if match[5] in ("left of", "right of") else (dy, dx)
        if match[5] in ("left of", "above", "over"):
            along = -along
        if not (along >= CLEAR and along >= SLANT * abs(across)):
            return False
    return True


def test_they_are_false_where_the_caption_is_true(scenes: list[HardScene]) -> None:
    count = Counter()
    for scene in scenes:
        assert true_of(scene, scene.caption), scene.caption
        for kind, negative in negatives(scene, 0).items():
            assert not true_of(scene, negative), (kind, scene.caption, negative)
            count[kind] += 1
    assert set(count) == set(KINDS) and min(count.values()) > 400, count


def test_each_kind_differs_as_it_says(scenes: list[HardScene]) -> None:
    for scene in scenes:
        words = scene.caption.replace(",", "").split()
        for kind, negative in negatives(scene, 0).items():
            others = negative.replace(",", "").split()
            if kind.startswith("swap"):
                assert Counter(words) == Counter(others) and words != others
            if kind in ("replace_att", "replace_obj", "replace_rel"):
                (changed,) = [(one, other) for one, other in zip(words, others, strict=True) if one != other]
                relations = ("left", "right", "above", "over", "below", "under")
                assert set(changed) <= set({"replace_att": COLORS, "replace_obj": SHAPES}.get(kind, relations))
            if kind == "add_obj":
                assert negative.startswith(f"{scene.caption}, with a small ")


def test_a_pure_function_of_scene_and_seed(scenes: list[HardScene]) -> None:
    assert [negatives(scene, 3) for scene in scenes[:50]] == [negatives(scene, 3) for scene in scenes[:50]]
    assert [negatives(scene, 3) for scene in scenes[:50]] != [negatives(scene, 4) for scene in scenes[:50]]

"""The drawn worlds by name: what `on_disk` needs of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.world.drawn import demo_pixels, demo_scenes, hard_negatives, hard_pixels, hard_scenes
from data_pipeline.world.drawn.scene import Scene


@dataclass(frozen=True)
class World:
    """One kind of drawn world. Everything of it is a pure function of its arguments."""

    name: str
    title: str
    """First part of the name of its sets of labels and questions."""
    max_scenes: int
    classes: tuple[str, ...]
    class_templates: Callable[[], list[str]]
    sample_scenes: Callable[[int, int], Sequence[Scene]]
    """(count, seed) -> scenes with different identities; the first n of a longer list are the shorter list."""
    questions: Callable[[Any, int], list[dict[str, str]]]
    """(scene, seed) -> questions with kind and answer."""
    paint: Callable[[Any, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]
    """(scene, seed) -> uint8 picture (SIDE, SIDE, 3) and the labels (SIDE, SIDE) of what is seen at the top."""
    negatives: Callable[[Any, int], dict[str, str]] | None = None
    """(scene, seed) -> captions that nearly fit, by their kind in SugarCrepe."""


WORLDS = {
    name: World(
        name=name,
        title=title,
        max_scenes=scenes.MAX_SCENES,
        classes=scenes.CLASSES,
        class_templates=scenes.class_templates,
        sample_scenes=scenes.sample_scenes,
        questions=scenes.questions,
        paint=pixels.paint,
        negatives=negatives,
    )
    for name, title, scenes, pixels, negatives in (
        ("demo", "scenes", demo_scenes, demo_pixels, None),
        ("hard", "hard-scenes", hard_scenes, hard_pixels, hard_negatives.negatives),
    )
}

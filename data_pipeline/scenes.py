"""The language of the drawn world: what a scene is, how it is told, what can be asked about it. Pure functions.

A scene is one large object and up to two small ones on a 3 x 3 grid before a plain background. Its caption mentions all
of it, so the caption alone picks the picture out; its class is colour and shape of the large object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan")
BACKGROUNDS = ("white", "black", "gray", "beige", "pink", "brown")
# Three words each: the longest caption is 26 words, 30 tokens with commas and specials.
PLACES = (
    "at top left",
    "at the top",
    "at top right",
    "on the left",
    "in the middle",
    "on the right",
    "at bottom left",
    "at the bottom",
    "at bottom right",
)
SHORT_PLACES = tuple(place.split(" ", 1)[1].removeprefix("the ") for place in PLACES)
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
COUNT_SHARES = (0.10, 0.45, 0.45)
"""Shares of scenes with one, two and three objects."""
# One object gives only 42 x 9 x 6 = 2,268 scenes; the share above is taken from what is left of them.
MAX_SCENES = 200_000
COUNT_WORDS = ("one", "two", "three")
CAPTION_FORMS = ("{objects} on a {background} background", "on a {background} background, {objects}")
CAPTION_SHARES = (0.75, 0.25)
CLASS_TEMPLATES = tuple(
    f"a large {{c}} {place} on a {BACKGROUNDS[index % len(BACKGROUNDS)]} background"
    for index, place in enumerate(PLACES)
) + ("a large {c}",)


@dataclass(frozen=True, order=True)
class Thing:
    """One object of a scene."""

    cell: int
    """Grid cell 0 to 8 in reading order."""
    shape: int
    """Index into SHAPES."""
    color: int
    """Index into COLORS."""

    def words(self, size: str) -> str:
        return f"a {size} {COLORS[self.color]} {SHAPES[self.shape]} {PLACES[self.cell]}"


@dataclass(frozen=True)
class Scene:
    """A description. Two pictures of one description differ only in jitter and noise."""

    main: Thing
    """The only large object."""
    others: tuple[Thing, ...]
    """Small objects in reading order."""
    background: int
    """Index into BACKGROUNDS."""
    form: int
    """Index into CAPTION_FORMS; not part of what makes two scenes the same."""

    @property
    def identity(self) -> tuple:
        """What two equal scenes share: the objects with their places, and the background."""
        return (self.main, self.others, self.background)

    @property
    def label(self) -> int:
        """Index into CLASSES."""
        return self.main.color * len(SHAPES) + self.main.shape

    @property
    def caption(self) -> str:
        parts = [self.main.words("large"), *(other.words("small") for other in self.others)]
        objects = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return CAPTION_FORMS[self.form].format(objects=objects, background=BACKGROUNDS[self.background])


def sample_scenes(count: int, seed: int) -> list[Scene]:
    """`count` scenes with different identities; the first n of a longer list are the shorter list."""
    rng = np.random.default_rng([seed, 1])
    seen: set[tuple] = set()
    scenes: list[Scene] = []
    while len(scenes) < count:
        number = 1 + int(rng.choice(3, p=COUNT_SHARES))
        cells = rng.permutation(9)[:number]
        things = [Thing(int(cell), int(rng.integers(len(SHAPES))), int(rng.integers(len(COLORS)))) for cell in cells]
        scene = Scene(
            things[0],
            tuple(sorted(things[1:])),
            int(rng.integers(len(BACKGROUNDS))),
            int(rng.choice(len(CAPTION_FORMS), p=CAPTION_SHARES)),
        )
        if scene.identity not in seen:
            seen.add(scene.identity)
            scenes.append(scene)
    return scenes


def questions(scene: Scene, seed: int) -> list[dict[str, str]]:
    """Questions with one-word or two-word answers; the yes/no pair is balanced, its "no" names an absent object."""
    things = (scene.main, *scene.others)
    rng = np.random.default_rng([seed, 2, scene.background, *(n for t in things for n in (t.cell, t.shape, t.color))])
    present = {(thing.color, thing.shape) for thing in things}
    asked = things[int(rng.integers(len(things)))]
    absent = next(pair for pair in rng.permutation(len(CLASSES)) if divmod(int(pair), len(SHAPES)) not in present)
    result = [
        ("color", "what color is the large object?", COLORS[scene.main.color]),
        ("shape", "what shape is the large object?", SHAPES[scene.main.shape]),
        ("place", f"where is the large {SHAPES[scene.main.shape]}?", SHORT_PLACES[scene.main.cell]),
        ("count", "how many objects are there?", COUNT_WORDS[len(scene.others)]),
        ("background", "what color is the background?", BACKGROUNDS[scene.background]),
        ("exists", f"is there a {COLORS[asked.color]} {SHAPES[asked.shape]}?", "yes"),
        ("exists", f"is there a {CLASSES[int(absent)]}?", "no"),
    ]
    # Only where the shape names one object: "what color is the small star" has no answer with two of them.
    shapes = [other.shape for other in scene.others]
    result += [
        ("color", f"what color is the small {SHAPES[other.shape]}?", COLORS[other.color])
        for other in scene.others
        if shapes.count(other.shape) == 1
    ]
    return [{"kind": kind, "question": question, "answer": answer} for kind, question, answer in result]

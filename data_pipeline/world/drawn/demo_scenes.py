"""The language of the demo world: what a scene is, how it is told, what can be asked about it. Pure functions.

A scene is one large object and up to two small ones on a 3 x 3 grid before a plain background. Its caption mentions all
of it, so the caption alone picks the picture out; its class is colour and shape of the large object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.world.drawn.scene import BACKGROUND, Scene, joined

SHAPES = ("square", "triangle", "cross", "ring")
COLORS = ("red", "green", "blue", "purple", "brown", "black")
BACKGROUNDS = ("white", "gray", "yellow", "pink", "cyan")
"""All light, all objects dark: a shape is then the same pattern in every picture, whatever its colors."""
# One word names each cell: a model of 3M parameters binds it to its object in minutes, "at top left" takes it far longer.
PLACES = (
    "in the northwest",
    "in the north",
    "in the northeast",
    "in the west",
    "in the center",
    "in the east",
    "in the southwest",
    "in the south",
    "in the southeast",
)
SHORT_PLACES = tuple(place.split(" ", 1)[1].removeprefix("the ") for place in PLACES)
CLASSES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
COUNT_SHARES = (0.10, 0.50, 0.40)
"""Shares of scenes with one, two and three objects."""
# One object gives only 24 x 9 x 5 = 1,080 scenes; the share above is taken from what is left of them.
MAX_SCENES = 200_000
COUNT_WORDS = ("one", "two", "three")
CAPTION_FORMS = ("{objects} on a {background}", "on a {background}, {objects}")
CAPTION_SHARES = (0.75, 0.25)


@dataclass(frozen=True, order=True)
class Thing:
    """One object of a scene."""

    cell: int
    """Grid cell 0 to 8 in reading order."""
    shape: int
    """Index into SHAPES."""
    color: int
    """Index into COLORS."""

    @property
    def name(self) -> str:
        return f"{COLORS[self.color]} {SHAPES[self.shape]}"


@dataclass(frozen=True)
class DemoScene(Scene):
    """Two pictures of one description differ only in jitter and noise."""

    main: Thing
    """The only large object."""
    others: tuple[Thing, ...]
    """Small objects in reading order."""
    background: int
    """Index into BACKGROUNDS."""
    form: int
    """Index into CAPTION_FORMS; not part of what makes two scenes the same."""

    @property
    def things(self) -> tuple[Thing, ...]:
        """The object with label k is things[k - 1]."""
        return (self.main, *self.others)

    @property
    def identity(self) -> tuple:
        """The objects with their places, and the background."""
        return (self.main, self.others, self.background)

    @property
    def label(self) -> int:
        """Index into CLASSES."""
        return self.main.color * len(SHAPES) + self.main.shape

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)

    @property
    def background_name(self) -> str:
        return BACKGROUNDS[self.background]

    @property
    def marked(self) -> str:
        sizes = ("large", *("small" for _ in self.others))
        parts = [
            f"a [{label}|{size} {thing.name}] {PLACES[thing.cell]}"
            for label, (size, thing) in enumerate(zip(sizes, self.things, strict=True), 1)
        ]
        background = f"[{BACKGROUND}|{self.background_name} background]"
        return CAPTION_FORMS[self.form].format(objects=joined(parts), background=background)


def sample_scenes(count: int, seed: int) -> list[DemoScene]:
    """`count` scenes with different identities; the first n of a longer list are the shorter list."""
    rng = np.random.default_rng([seed, 1])
    seen: set[tuple] = set()
    scenes: list[DemoScene] = []
    while len(scenes) < count:
        number = 1 + int(rng.choice(3, p=COUNT_SHARES))
        cells = rng.permutation(9)[:number]
        things = [Thing(int(cell), int(rng.integers(len(SHAPES))), int(rng.integers(len(COLORS)))) for cell in cells]
        scene = DemoScene(
            things[0],
            tuple(sorted(things[1:])),
            int(rng.integers(len(BACKGROUNDS))),
            int(rng.choice(len(CAPTION_FORMS), p=CAPTION_SHARES)),
        )
        if scene.identity not in seen:
            seen.add(scene.identity)
            scenes.append(scene)
    return scenes


def class_templates(count: int = 80) -> list[str]:
    """Prompts for zero-shot classification, `{c}` for the class: captions of `count` drawn scenes with the large object's name
    taken out. Captions hardly ever name one object alone, so a bare "a large {c}" is a text the model has not learned to read;
    over many prompts the other objects average out."""
    templates = []
    for scene in sample_scenes(count, seed=1_000_003):
        start, end = scene.told.spans[1]
        templates.append(f"{scene.caption[:start]}large {{c}}{scene.caption[end:]}")
    return templates


def questions(scene: DemoScene, seed: int) -> list[dict[str, str]]:
    """Questions with one-word or two-word answers; the yes/no pair is balanced, its "no" names an absent object."""
    things = scene.things
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
    # Only where the shape names one object: "what color is the small ring" has no answer with two of them.
    shapes = [other.shape for other in scene.others]
    result += [
        ("color", f"what color is the small {SHAPES[other.shape]}?", COLORS[other.color])
        for other in scene.others
        if shapes.count(other.shape) == 1
    ]
    return [{"kind": kind, "question": question, "answer": answer} for kind, question, answer in result]

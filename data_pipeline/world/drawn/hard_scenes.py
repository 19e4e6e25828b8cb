"""The language of the hard world: which objects a scene has, which of them its caption names, what can be asked about it.

Two to five objects, one of them large, before a pattern. The caption names some of them and now and then the background, in varying
words, and says of two of them how they lie to each other: it is true of its picture, and may be true of another one. Its class is
the shape of the large object, which each of ten has equally often."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_pipeline.world.drawn.hard_layout import COLORS, OPPOSITE, SHAPES, SIZES, Thing, place, relation
from data_pipeline.world.drawn.scene import BACKGROUND, Scene, joined
from data_pipeline.world.drawn.textures import TEXTURES

BACKGROUNDS = ("white", "gray", "cyan", "beige", "mint", "lavender")
"""All light, and none a colour of an object."""
CLASSES = SHAPES
MAX_SCENES = 200_000
COUNT_SHARES = {2: 0.35, 3: 0.35, 4: 0.2, 5: 0.1}
"""Shares of scenes by how many objects they have."""
NAMED_SHARES = {
    2: (0.30, 0.70),
    3: (0.10, 0.90),
    4: (0.05, 0.35, 0.60),
    5: (0.00, 0.30, 0.70),
}
"""By the number of objects: shares of captions that name one, two, three of them."""
BACKGROUND_SAID, RELATION_SAID = 1 / 3, 0.7
"""Shares of captions that name the background, and that say how two named objects lie to each other where that is clear."""
COUNT_WORDS = {2: "two", 3: "three", 4: "four", 5: "five"}

RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
OPENINGS = ("{objects}", "{objects}", "there is {objects}", "a picture of {objects}", "a drawing with {objects}")
BACKGROUND_FORMS = ("{said} on a {background}", "{said} in front of a {background}", "{said} before a {background}")
BACKGROUND_FIRST = "on a {background}, {said}"
"""Not behind an opening that would make it `on a ..., a picture of`."""
MORE_FORMS = ("{pair}, with {more}", "{pair}, also {more}", "{more}, also {pair}")
"""Not `{pair} and {more}`: a star left of a ring and a heart is left of both."""


@dataclass(frozen=True)
class HardScene(Scene):
    """Two pictures of one description differ in noise, shades, and where the background's pattern begins."""

    things: tuple[Thing, ...]
    """The object with label k is things[k - 1]; later ones lie on top. The first is the only large one."""
    texture: int
    """Index into TEXTURES."""
    tint: int
    """Index into BACKGROUNDS."""
    marked: str
    """The caption with its marks; not part of what makes two scenes the same."""

    @property
    def identity(self) -> tuple:
        """Kinds of the objects, wherever they are, and the background."""
        return (tuple(sorted(thing.kind for thing in self.things)), self.texture, self.tint)

    @property
    def label(self) -> int:
        """Index into CLASSES."""
        return self.things[0].shape

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(thing.name for thing in self.things)

    @property
    def background_name(self) -> str:
        return background_name(self.texture, self.tint)


def background_name(texture: int, tint: int) -> str:
    return f"{TEXTURES[texture]} {BACKGROUNDS[tint]}"


def _choice(options: tuple[str, ...], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def with_article(words: str) -> str:
    """`a red star`, `an orange star`; words may begin with a mark."""
    return f"{'an' if words.split('|')[-1][0] in 'aeiou' else 'a'} {words}"


def _tell_objects(things: tuple[Thing, ...], named: list[int], rng: np.random.Generator) -> str:
    """Names the objects with the labels `named`, two of them by how they lie to each other, where that is clear."""
    words = {}
    for label in named:
        thing = things[label - 1]
        words[label] = with_article(f"[{label}|{SIZES[thing.size]} {thing.name}]")
    pairs = [
        (first, second, how)
        for first in named
        for second in named
        if first != second and (how := relation(things[first - 1], things[second - 1]))
    ]
    if not pairs or rng.random() >= RELATION_SAID:
        return joined(list(words.values()))
    first, second, how = pairs[int(rng.integers(len(pairs)))]
    pair = f"{words.pop(first)} {_choice(RELATION_WORDS[how], rng)} {words.pop(second)}"
    return _choice(MORE_FORMS, rng).format(pair=pair, more=joined(list(words.values()))) if words else pair


def tell_scene(things: tuple[Thing, ...], texture: int, tint: int, rng: np.random.Generator) -> str:
    """A caption with its marks: some of the objects in any order, now and then the background."""
    shares = NAMED_SHARES[len(things)]
    count = 1 + int(rng.choice(len(shares), p=shares))
    named = [int(label) for label in 1 + rng.permutation(len(things))[:count]]
    said = _tell_objects(things, named, rng)
    opening = _choice(OPENINGS, rng)
    said = opening.format(objects=said)
    if rng.random() >= BACKGROUND_SAID:
        return said
    forms = BACKGROUND_FORMS if opening.startswith("a ") else (*BACKGROUND_FORMS, BACKGROUND_FIRST)
    return _choice(forms, rng).format(said=said, background=f"[{BACKGROUND}|{background_name(texture, tint)} background]")


def _kinds(count: int, rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """(size, colour, shape) of each object, the large one first, which is placed first and lies below. No two have colour and shape
    in common, so that these two name it."""
    pairs = rng.permutation(len(COLORS) * len(SHAPES))[:count]
    return [(int(number == 0), *divmod(int(pair), len(SHAPES))) for number, pair in enumerate(pairs)]


def sample_scenes(count: int, seed: int) -> list[HardScene]:
    """`count` scenes with different identities; the first n of a longer list are the shorter list."""
    rng = np.random.default_rng([seed, 5])
    counts, shares = list(COUNT_SHARES), list(COUNT_SHARES.values())
    seen: set[tuple] = set()
    scenes: list[HardScene] = []
    while len(scenes) < count:
        number, things = counts[int(rng.choice(len(counts), p=shares))], None
        while things is None:  # a layout of few sizes fails; another scene instead would have fewer objects on average
            things = place(_kinds(number, rng), rng)
        texture, tint = int(rng.integers(len(TEXTURES))), int(rng.integers(len(BACKGROUNDS)))
        scene = HardScene(things, texture, tint, tell_scene(things, texture, tint, rng))
        if scene.identity not in seen:
            seen.add(scene.identity)
            scenes.append(scene)
    return scenes


def class_templates(count: int = 80) -> list[str]:
    """Prompts for zero-shot classification, `{c}` for the class: captions of drawn scenes that name the large object and call it
    large, with its shape taken out. Over many prompts colours and other objects average out."""
    templates: dict[str, None] = {}
    needed = 2 * count
    while len(templates) < count:
        needed *= 2
        for scene in sample_scenes(needed, seed=1_000_003):
            if "[1|" in scene.marked:
                end = scene.told.spans[1][1]
                templates[f"{scene.caption[: end - len(CLASSES[scene.label])]}{{c}}{scene.caption[end:]}"] = None
    return list(templates)[:count]


def questions(scene: HardScene, seed: int) -> list[dict[str, str]]:
    """Questions with one-word or two-word answers; yes and no are balanced, and what is asked for with the answer "no" has the
    colour of one object and the shape of another where that is no third one."""
    things = scene.things
    rng = np.random.default_rng([seed, 6, scene.texture, scene.tint, *(number for thing in things for number in thing.kind)])
    present = {thing.name for thing in things}
    mixed = [f"{COLORS[a.color]} {SHAPES[b.shape]}" for a in things for b in things]
    absent = [name for name in mixed if name not in present]
    if not absent:
        absent = [f"{color} {shape}" for color in COLORS for shape in SHAPES if f"{color} {shape}" not in present]
    asked = things[int(rng.integers(len(things)))]
    result = [
        ("color", "what color is the large object?", COLORS[things[0].color]),
        ("shape", "what shape is the large object?", SHAPES[things[0].shape]),
        ("count", "how many objects are there?", COUNT_WORDS[len(things)]),
        ("background", "what color is the background?", BACKGROUNDS[scene.tint]),
        ("texture", "what pattern does the background have?", TEXTURES[scene.texture]),
        ("exists", f"is there {with_article(asked.name)}?", "yes"),
        ("exists", f"is there {with_article(absent[int(rng.integers(len(absent)))])}?", "no"),
    ]
    # Only where the shape names one object: "what color is the ring" has no answer with two of them.
    shapes = [thing.shape for thing in things]
    result += [
        ("color", f"what color is the {SHAPES[thing.shape]}?", COLORS[thing.color])
        for thing in things
        if shapes.count(thing.shape) == 1
    ]
    pairs = [(a, b, how) for a in things for b in things if a is not b and (how := relation(a, b))]
    for answer in ("yes", "no") if pairs else ():
        a, b, how = pairs[int(rng.integers(len(pairs)))]
        words = RELATION_WORDS[how if answer == "yes" else OPPOSITE[how]][0]
        result.append(("relation", f"is the {a.name} {words} the {b.name}?", answer))
    return [{"kind": kind, "question": question, "answer": answer} for kind, question, answer in result]

"""Captions that nearly fit a hard scene, in the kinds of SugarCrepe: words are swapped, replaced or added, and what they say then
is not in the picture."""

from __future__ import annotations

import re

import numpy as np

from data_pipeline.world.drawn.hard_layout import COLORS, OPPOSITE, SHAPES
from data_pipeline.world.drawn.hard_scenes import RELATION_WORDS, HardScene

KINDS = ("add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
"""SugarCrepe's, but for add_att: size, colour and shape of everything that is named are said already."""
OPPOSITES = {
    words: RELATION_WORDS[OPPOSITE[how]][place] for how, forms in RELATION_WORDS.items() for place, words in enumerate(forms)
}
"""`left of` -> `right of`, `over` -> `under`."""
BETWEEN = re.compile(rf" ({'|'.join(sorted(OPPOSITES, key=len, reverse=True))}) an? ")
"""What stands between two phrases that a caption relates."""


def negatives(scene: HardScene, seed: int) -> dict[str, str]:
    """{kind: a caption that is false of the scene}, the kinds that its caption allows.

    add_obj says of an object that is not there; swap_att exchanges the colours of two named objects where neither mixture is there;
    swap_obj the two that it relates; replace_att, replace_obj and replace_rel put another colour, shape or the opposite relation.
    """
    rng = np.random.default_rng([seed, 7, scene.texture, scene.tint, *(number for thing in scene.things for number in thing.kind)])
    there, caption = set(scene.names), scene.caption
    # labels of named objects in order of the caption; a phrase ends in the object's colour and shape
    named = sorted((label for label in scene.told.spans if label), key=lambda label: scene.told.spans[label])
    spans = [scene.told.spans[label] for label in named]
    looks = [tuple(scene.names[label - 1].split()) for label in named]
    absent = [(color, shape) for color in COLORS for shape in SHAPES if f"{color} {shape}" not in there]

    def chosen(options: list) -> tuple | None:
        return options[int(rng.integers(len(options)))] if options else None

    def renamed(places: dict[int, tuple[str, str]]) -> str:
        """The caption with other colours and shapes at some of the named objects."""
        text = caption
        for place in sorted(places, reverse=True):
            end = spans[place][1]
            text = text[: end - len(" ".join(looks[place]))] + " ".join(places[place]) + text[end:]
        return text

    color, shape = chosen(absent)
    found = {"add_obj": f"{caption}, with a small {color} {shape}"}
    place = int(rng.integers(len(named)))
    if look := chosen([look for look in absent if look[1] == looks[place][1]]):
        found["replace_att"] = renamed({place: look})
    if look := chosen([look for look in absent if look[0] == looks[place][0]]):
        found["replace_obj"] = renamed({place: look})
    pairs = [(a, b) for a in range(len(named)) for b in range(a + 1, len(named)) if looks[a][0] != looks[b][0]]
    mixed = {(a, b): ((looks[b][0], looks[a][1]), (looks[a][0], looks[b][1])) for a, b in pairs}
    if pair := chosen([pair for pair in pairs if set(mixed[pair]) <= set(absent)]):
        found["swap_att"] = renamed(dict(zip(pair, mixed[pair], strict=True)))
    for (start, end), (other_start, other_end) in zip(spans, spans[1:], strict=False):
        if match := BETWEEN.fullmatch(caption[end:other_start]):
            between = match[0].replace(match[1], OPPOSITES[match[1]])
            found["replace_rel"] = caption[:end] + between + caption[other_start:]
            first, second = caption[start:end], caption[other_start:other_end]
            found["swap_obj"] = caption[:start] + second + caption[end:other_start] + first + caption[other_end:]
    return found

"""Names of categories found as words of a caption.

A category that the caption calls by another word counts as unnamed, which would make a score that finds it look wrong. For the
commonest, other words are known here; `synonyms.txt` beside the annotations adds more: a line a category, its name first, then
other words for it, with commas between (the layout of the list behind CHAIR, Rohrbach et al. 2018).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.data.alignment import Span

WORDS = {
    "person": "people man woman boy girl child kid baby lady guy gentleman player rider skier surfer snowboarder skateboarder "
    "adult toddler crowd",
    "aeroplane": "airplane plane jet aircraft",
    "airplane": "aeroplane plane jet aircraft",
    "bicycle": "bike",
    "motorbike": "motorcycle",
    "motorcycle": "motorbike",
    "tvmonitor": "tv television monitor",
    "tv": "television monitor",
    "sofa": "couch",
    "couch": "sofa",
    "diningtable": "dining_table table",
    "dining table": "table",
    "pottedplant": "potted_plant plant",
    "potted plant": "plant",
    "cell phone": "phone cellphone",
    "refrigerator": "fridge",
    "donut": "doughnut",
    "cow": "cattle",
}
"""Other words for categories of PASCAL VOC and COCO."""
IRREGULAR = {
    "person": "persons",
    "people": "people",
    "man": "men",
    "woman": "women",
    "gentleman": "gentlemen",
    "child": "children",
    "mouse": "mice",
    "knife": "knives",
    "sheep": "sheep",
    "cattle": "cattle",
    "aircraft": "aircraft",
}


def plural(name: str) -> str:
    """Of an English noun, or of the last word of one of several."""
    *first, last = name.split(" ")
    if last in IRREGULAR:
        last = IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "" if last in ("skis", "scissors") else "es"
    elif last.endswith("y") and last[-2:-1] not in ("a", "e", "o", "u"):
        last = f"{last[:-1]}ies"
    else:
        last += "s"
    return " ".join([*first, last])


def plain(words: str) -> str:
    """In lower case, with a space wherever there is a space or a hyphen."""
    return " ".join(re.split(r"[\s-]+", words.strip().lower()))


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """{category: other words for it} of a synonyms.txt; nothing where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    except (OSError, ValueError) as error:
        raise UserError(f"regions {path}: cannot be read ({error})") from error
    words = [[word.strip().lower() for word in line.split(",") if word.strip()] for line in lines]
    return {row[0]: row[1:] for row in words if row}


class Names:
    """Looks for the names of all categories of a data set at once, the longest first: in "a hot dog" there is no dog."""

    def __init__(self, categories: Iterable[str], synonyms: Mapping[str, Iterable[str]]):
        self.category_of: dict[str, str] = {}
        known = {category.lower(): category for category in categories}
        words = [(own, own) for own in known]  # first: a category's own name is nobody else's other word
        words += [(own, word.replace("_", " ")) for own in known for word in WORDS.get(own, "").split()]
        words += [(own, word) for own in known for word in synonyms.get(own, ())]
        for own, word in words:
            for form in (word, plural(word)):
                self.category_of.setdefault(plain(form), known[own])
        ways = sorted(self.category_of, key=len, reverse=True)
        pattern = "|".join(r"[\s-]+".join(map(re.escape, way.split())) for way in ways)
        self.pattern = re.compile(rf"(?<!\w)(?:{pattern or '(?!)'})(?!\w)", re.IGNORECASE)

    def find(self, caption: str) -> dict[str, tuple[Span, ...]]:
        """{category: where the caption names it}."""
        found: dict[str, tuple[Span, ...]] = {}
        for match in self.pattern.finditer(caption):
            category = self.category_of[plain(match[0])]
            found[category] = (*found.get(category, ()), match.span())
        return found

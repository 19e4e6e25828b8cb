"""ARO's two sets on Visual Genome (Yuksekgonul et al. 2023, https://github.com/mertyg/vision-language-models-are-bows).

    visual_genome_relation.json: [{"image_path": "2377986.jpg", "bbox_x": 26, "bbox_y": 59, "bbox_w": 333, "bbox_h": 440,
        "true_caption": "...", "false_caption": "...", "relation_name": "to the right of", ...}, ...]
    visual_genome_attribution.json: the same, with "attributes": ["white", "black"] in place of the relation
    images/2377986.jpg (vgr_vga_images.zip, unpacked)

The number of either is its macro accuracy: accuracy within each relation or pair of attributes, then the mean over these, as its
notebook and `aro_datasets.py` have it: symmetric relations are left out, and pairs with fewer than 25 items.

COCO_Order and Flickr30k_Order are not published as files: a script shuffles captions anew with spaCy's tagger, and depends on that.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.eval.compositions.items import CompositionSet, Item, View, check_pictures, digest_of, read_json, texts_of

NAME = "aro"
PAGE = "https://github.com/mertyg/vision-language-models-are-bows"
FILES = {"vg_relation": "visual_genome_relation.json", "vg_attribution": "visual_genome_attribution.json"}
TITLES = {"vg_relation": "ARO, relations", "vg_attribution": "ARO, attributes"}
EXPECTED = f"{' or '.join(FILES.values())}, and their folder images, which is vgr_vga_images.zip unpacked ({PAGE})"
BOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
LEAST_OF_A_PAIR = 25
SYMMETRIC = frozenset(
    name.strip()
    for name in """
    adjusting, attached to, between, bigger than, biting, boarding, brushing, chewing, cleaning, climbing, close to, coming
    from, coming out of, contain, crossing, dragging, draped over, drinking, drinking from, driving, driving down, driving on,
    eating from, eating in, enclosing, exiting, facing, filled with, floating in, floating on, flying, flying above, flying
    in, flying over, flying through, full of, going down, going into, going through, grazing in, growing in, growing on,
    guiding, hanging from, hanging in, hanging off, hanging over, higher than, holding onto, hugging, in between, jumping off,
    jumping on, jumping over, kept in, larger than, leading, leaning over, leaving, licking, longer than, looking in, looking
    into, looking out, looking over, looking through, lying next to, lying on top of, making, mixed with, mounted on, moving,
    on the back of, on the edge of, on the front of, on the other side of, opening, painted on, parked at, parked beside,
    parked by, parked in, parked in front of, parked near, parked next to, perched on, petting, piled on, playing, playing in,
    playing on, playing with, pouring, reaching for, reading, reflected on, riding on, running in, running on, running
    through, seen through, sitting behind, sitting beside, sitting by, sitting in front of, sitting near, sitting next to,
    sitting under, skiing down, skiing on, sleeping in, sleeping on, smiling at, sniffing, splashing, sprinkled on, stacked
    on, standing against, standing around, standing behind, standing beside, standing in front of, standing near, standing
    next to, staring at, stuck in, surrounding, swimming in, swinging, talking to, topped with, touching, traveling down,
    traveling on, tying, typing on, underneath, wading in, waiting for, walking across, walking by, walking down, walking next
    to, walking through, working in, working on, worn on, wrapped around, wrapped in, by, of, near, next to, with, beside, on
    the side of, around
    """.split(",")
)
"""Relations that the notebook leaves out, under this name."""


def read_aro(folder: Path, pictures: Path | None) -> list[CompositionSet]:
    """Those of the two sets that are there.

    Args:
        folder: with either json file.
        pictures: default the folder `images` beside them.

    Raises:
        UserError: neither file, or what is in them is not as above, or pictures are not there.
    """
    if not any((folder / file).is_file() for file in FILES.values()):
        raise UserError(f"--compositions {NAME}={folder}: its files are not there; expected {EXPECTED} in that folder")
    sets = []
    for name, file in FILES.items():
        path = folder / file
        if not path.is_file():
            continue
        content = read_json(NAME, path, EXPECTED)
        if not isinstance(content, list) or not content:
            raise UserError(f"--compositions {NAME}: {path}: expected a list of items, found {str(content)[:40]!r}")
        items = tuple(
            _item(name, f"{path}, item {number}", entry, pictures or folder / "images", number)
            for number, entry in enumerate(content)
        )
        check_pictures(NAME, items, f"those of vgr_vga_images.zip ({PAGE}) in {pictures or folder / 'images'}")
        sets.append(CompositionSet(name, TITLES[name], folder, items, _counted(name, items), digest_of(items)))
    return sets


def _item(name: str, where: str, entry: Any, pictures: Path, number: int) -> Item:
    file, true, false = texts_of(NAME, where, entry, ("image_path", "true_caption", "false_caption"))
    if not all(isinstance(entry.get(side), int) and not isinstance(entry[side], bool) for side in BOX):
        raise UserError(f"--compositions {NAME}: {where}: expected {', '.join(BOX)} in whole pixels")
    left, top, width, height = (entry[side] for side in BOX)
    if name == "vg_relation":
        (group,) = texts_of(NAME, where, entry, ("relation_name",))
    else:
        pair = entry.get("attributes")
        if not isinstance(pair, list) or len(pair) < 2 or not all(isinstance(word, str) for word in pair[:2]):
            raise UserError(f"--compositions {NAME}: {where}: expected attributes, a list of two texts")
        group = "_".join(pair[:2])
    return Item(str(number), group, (View(pictures / file, (left, top, left + width, top + height)),), (true, false))


def _counted(name: str, items: tuple[Item, ...]) -> tuple[str, ...]:
    """Relations that are not symmetric; pairs of attributes with enough items."""
    count = Counter(item.group for item in items)
    if name == "vg_relation":
        return tuple(sorted(group for group in count if group not in SYMMETRIC))
    return tuple(sorted(group for group in count if count[group] >= LEAST_OF_A_PAIR))

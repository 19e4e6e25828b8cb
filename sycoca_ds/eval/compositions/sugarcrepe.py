"""SugarCrepe (Hsieh et al. 2023, https://github.com/RAIVNLab/sugar-crepe): seven files in its `data/`, on COCO's val2017.

    add_att.json: {"0": {"filename": "000000085329.jpg", "caption": "...", "negative_caption": "..."}, ...}

The number of each is the share of items whose caption scores higher than the negative one (`main_eval.py`).
"""

from __future__ import annotations

from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.eval.compositions.items import CompositionSet, Item, View, check_pictures, digest_of, read_json, texts_of

NAME = "sugarcrepe"
SUBSETS = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")
FILES = f"{', '.join(f'{subset}.json' for subset in SUBSETS)} (https://github.com/RAIVNLab/sugar-crepe, folder data)"
PICTURES = "the pictures of COCO's val2017 (https://cocodataset.org/#download, val2017.zip)"


def read_sugarcrepe(folder: Path, pictures: Path | None) -> list[CompositionSet]:
    """The subsets that are there; one that is not is told as missing.

    Args:
        folder: with the json files, or their repository.
        pictures: default the folder `val2017` or `images` beside the json files.

    Raises:
        UserError: no file, or what is in it is not as above, or pictures are not there.
    """
    place = next((place for place in (folder, folder / "data") if any((place / f"{s}.json").is_file() for s in SUBSETS)), None)
    if place is None:
        raise UserError(f"--compositions {NAME}={folder}: none of its files is there; expected {FILES} in that folder")
    pictures = pictures or next((place / name for name in ("val2017", "images") if (place / name).is_dir()), place / "val2017")
    items, missing = [], {}
    for subset in SUBSETS:
        path = place / f"{subset}.json"
        if not path.is_file():
            missing[subset] = f"{path} is not there"
            continue
        content = read_json(NAME, path, FILES)
        if not isinstance(content, dict):
            raise UserError(
                f"--compositions {NAME}: {path} holds a {type(content).__name__}, expected an object of items by number"
            )
        for number, entry in content.items():
            file, caption, negative = texts_of(NAME, f"{path}, {number}", entry, ("filename", "caption", "negative_caption"))
            items.append(Item(f"{subset}/{number}", subset, (View(pictures / file),), (caption, negative)))
        if not content:
            missing[subset] = f"{path} has no items"
    if not items:
        raise UserError(f"--compositions {NAME}={folder}: its files have no items; expected {FILES}")
    check_pictures(NAME, items, f"{PICTURES} in {pictures}; another place is named by {NAME}={folder},PICTURES")
    return [CompositionSet(NAME, "SugarCrepe", folder, tuple(items), SUBSETS, digest_of(items), missing)]

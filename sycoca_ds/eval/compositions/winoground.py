"""Winoground (Thrush et al. 2022, https://huggingface.co/datasets/facebook/winoground): two pictures, and two captions of the same
words.

    examples.jsonl: {"id": 0, "image_0": "ex_0_img_0", "image_1": "ex_0_img_1", "caption_0": "...", "caption_1": "...", ...}
    images/ex_0_img_0.png (images.zip, unpacked)
"""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.errors import UserError
from sycoca_ds.eval.compositions.items import CompositionSet, Item, View, check_pictures, digest_of, texts_of

NAME = "winoground"
FILES = "examples.jsonl and the folder images, which is images.zip unpacked (https://huggingface.co/datasets/facebook/winoground)"
EXTENSIONS = (".png", ".jpg", ".jpeg")
FIELDS = ("image_0", "image_1", "caption_0", "caption_1")


def read_winoground(folder: Path, pictures: Path | None) -> list[CompositionSet]:
    """
    Args:
        folder: with examples.jsonl, or its repository.
        pictures: default the folder `images` beside it.

    Raises:
        UserError: no such file, or what is in it is not as above, or pictures are not there.
    """
    place = next((place for place in (folder, folder / "data") if (place / "examples.jsonl").is_file()), None)
    if place is None:
        raise UserError(f"--compositions {NAME}={folder}: examples.jsonl is not there; expected {FILES} in that folder")
    pictures, path = pictures or place / "images", place / "examples.jsonl"
    items = []
    try:
        lines = path.read_bytes().decode().split("\n")  # not splitlines, which breaks lines at U+2028, too
    except (OSError, ValueError) as error:
        raise UserError(f"--compositions {NAME}: {path} cannot be read ({error}); expected {FILES}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UserError(f"--compositions {NAME}: {path}, line {number}, is no JSON ({error})") from error
        first, second, *captions = texts_of(NAME, f"{path}, line {number}", entry, FIELDS)
        views = tuple(View(_file(pictures, name)) for name in (first, second))
        items.append(Item(str(entry.get("id", number - 1)), NAME, views, tuple(captions)))
    if not items:
        raise UserError(f"--compositions {NAME}: {path} has no items; expected {FILES}")
    check_pictures(NAME, items, f"those of images.zip (https://huggingface.co/datasets/facebook/winoground) in {pictures}")
    return [CompositionSet(NAME, "Winoground", folder, tuple(items), (NAME,), digest_of(items))]


def _file(pictures: Path, name: str) -> Path:
    """A picture's file: names stand without extension in the published file."""
    tried = [pictures / name, *(pictures / f"{name}{extension}" for extension in EXTENSIONS)]
    return next((file for file in tried if file.is_file()), tried[1])

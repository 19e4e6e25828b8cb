"""Flickr30K Entities (Plummer et al. 2015; github.com/BryanPlummer/flickr30k_entities): a folder with Sentences/ and Annotations/.

Sentences/ID.txt has a caption a line, its phrases as `[/EN#CHAIN/TYPE/.. words]`; a chain is one entity over all five captions.
Annotations/ID.xml has boxes by chain, counted from 1, both ends inside, and says which chains are the whole scene or not to be
seen. Named is what this caption mentions; what has a box and is mentioned by the other four only is there and not named.
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data_pipeline.errors import UserError
from sycoca_ds.data.alignment import Span
from sycoca_ds.eval.collection import Picture
from sycoca_ds.eval.regions.annotated import Annotated, OtherCaption, Phrase, Thing, names_of, same_caption, uncovered

PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s\]/]+)+ ([^\]]*)\]")


def parse_sentence(line: str) -> tuple[str, list[tuple[Span, str]]]:
    """(the plain caption, [(characters of a phrase, its chain)])."""
    plain, phrases, at = "", [], 0
    for match in PHRASE.finditer(line):
        plain += line[at : match.start()]
        phrases.append(((len(plain), len(plain) + len(match[2])), match[1]))
        plain, at = plain + match[2], match.end()
    return plain + line[at:], phrases


def parse_boxes(path: Path) -> tuple[tuple[int, int], dict[str, list[tuple[int, int, int, int]]], set[str]]:
    """((H, W), {chain: its boxes, (top, left, bottom, right) from 0, the last two outside}, chains that are the whole scene).
    UserError: not as published."""
    try:
        root = ElementTree.parse(path).getroot()
        size = int(root.findtext("size/height")), int(root.findtext("size/width"))
        boxes: dict[str, list[tuple[int, int, int, int]]] = {}
        scenes: set[str] = set()
        for entry in root.iter("object"):
            chains, box = [name.text for name in entry.findall("name")], entry.find("bndbox")
            if box is not None:
                left, top, right, bottom = (int(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
                for chain in chains:
                    boxes.setdefault(chain, []).append((top - 1, left - 1, bottom, right))
            elif entry.findtext("scene") == "1":
                scenes.update(chains)
        return size, boxes, scenes
    except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
        raise UserError(f"regions {path}: not as Flickr30K Entities publishes it ({error})") from error


class Flickr:
    """Pictures by file name."""

    kind = "Flickr30K Entities"
    classes = ()

    def __init__(self, folder: Path):
        self.folder = folder
        self.known = {path.stem for path in (folder / "Annotations").glob("*.xml")}

    def find(self, picture: Picture) -> str | None:
        return next((name for name in names_of(picture) if name in self.known), None)

    def load(self, found: str, caption: str) -> Annotated:
        path = self.folder / "Sentences" / f"{found}.txt"
        try:
            sentences = [parse_sentence(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(f"regions {path}: cannot be read ({error})") from error
        said = next(((plain, phrases) for plain, phrases in sentences if same_caption(plain, caption)), None)
        if said is None:
            raise OtherCaption
        shape, boxes, scenes = parse_boxes(self.folder / "Annotations" / f"{found}.xml")
        plain, phrases = said
        chains, mentioned = list(boxes), {chain for _, chain in phrases}
        things = tuple(Thing(chain, box_mask(boxes[chain], shape), chain in mentioned) for chain in chains)
        shown = tuple(Phrase((span,), (chains.index(chain),)) for span, chain in phrases if chain in boxes)
        return Annotated(things, shown, plain, uncovered(things, shape), bool(scenes & mentioned))

    def labels(self, found: str) -> np.ndarray:
        raise ValueError("boxes of phrases are no classes of pixels")


def box_mask(boxes: list[tuple[int, int, int, int]], shape: tuple[int, int]) -> np.ndarray:
    """bool (H, W): what any of the boxes covers."""
    mask_HW = np.zeros(shape, bool)
    for top, left, bottom, right in boxes:
        mask_HW[max(0, top) : bottom, max(0, left) : right] = True
    return mask_HW

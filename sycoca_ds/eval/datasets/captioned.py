"""Sets with captions: Karpathy's splits of Flickr30K and MSCOCO, COCO's own annotations, NoCaps.

    dataset_flickr30k.json, dataset_coco.json (Karpathy and Fei-Fei):
        {"images": [{"filepath": "val2014", "filename", "cocoid", "split": train | restval | val | test, "sentids": [int],
                     "sentences": [{"raw", "tokens", "sentid"}]}]}       filepath and cocoid only for COCO
    captions_val2014.json (cocodataset.org, format-data):
        {"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}
    nocaps_val_4500_captions.json (nocaps.org): the same, and a "domain" for each image; of test the images only

Texts are `raw`, never `tokens`, which have lost case and punctuation. All captions of a picture stay: COCO's have five to seven.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sycoca_ds.eval.datasets.reading import Damaged, Files, Split, checked, needed, present, read_json


def said(caption: Any, path: Path, of: str) -> str:
    """A caption without the spaces around it. `Damaged` for what is no text: null would become a word."""
    if not isinstance(caption, str):
        raise Damaged(f"{path}: {of} has {str(caption)[:40]} ({type(caption).__name__}) in place of a caption, expected a text")
    return caption.strip()


@dataclass(frozen=True)
class Karpathy:
    """One of Karpathy's json files beside its pictures."""

    file: str
    folders: tuple[str, ...]
    """Below which a picture's `filepath/filename` may lie, each ending with `/`; "" is the set's folder itself."""

    def needs(self, split: str) -> tuple[str, ...]:
        return (self.file, *([" or ".join(self.folders)] if "" not in self.folders else []))

    def read(self, root: Path, split: str) -> Split:
        path = root / self.file
        content = read_json(path)
        names, ids, captions = [], [], []
        try:
            for image in content["images"]:
                if image["split"] != split:
                    continue
                folder, sentences = image.get("filepath", ""), image["sentences"]
                names.append(f"{folder}/{image['filename']}" if folder else str(image["filename"]))
                ids.append(str(image["cocoid"]) if "cocoid" in image else "")
                captions.append(tuple(said(sentence["raw"], path, names[-1]) for sentence in sentences))
                if "sentids" in image and sorted(image["sentids"]) != sorted(sentence["sentid"] for sentence in sentences):
                    raise Damaged(f"{path}: {names[-1]} has sentences other than its sentids")
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path}: not as Karpathy's json ({error!r})") from error
        if not names:
            raise Damaged(f"{path}: no image of split {split}")
        below = self._below(root, names)
        return checked(Split(Files(below, names), tuple(captions), ids=tuple(ids) if all(ids) else ()), path)

    def _below(self, root: Path, names: list[str]) -> Path:
        """The folder that has the first picture's folder in it, or the first one that is there."""
        places = [root / folder for folder in self.folders if (root / folder).is_dir()]
        first = names[0].rpartition("/")[0]
        return next((place for place in places if (place / first).is_dir()), places[0] if places else root)


@dataclass(frozen=True)
class CocoJson:
    """Annotations in COCO's format, a file a split."""

    files: dict[str, str]
    """{split: annotations, with alternatives}."""
    folders: dict[str, str]
    """{split: pictures, with alternatives}."""
    captioned: tuple[str, ...]
    """Splits whose captions are public."""
    grouped: str | None = None
    """The split whose pictures have a domain."""

    def needs(self, split: str) -> tuple[str, ...]:
        return self.files[split], self.folders[split]

    def read(self, root: Path, split: str) -> Split:
        path, folder = needed(root, self.files[split]), present(root, self.folders[split])
        below = (folder or root / self.folders[split].split(" or ")[0]).relative_to(root).as_posix()
        content = read_json(path)
        captions = defaultdict(list)
        try:
            images = content["images"]
            ids = [image["id"] for image in images]
            names = [f"{below}/{image['file_name']}" for image in images]
            groups = [image.get("domain") for image in images]
            for entry in content.get("annotations", []) if split in self.captioned else []:
                captions[entry["image_id"]].append(said(entry["caption"], path, f"image {entry['image_id']}"))
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path}: not as COCO's captions ({error!r})") from error
        without = sum(group is None for group in groups)
        no_groups = f"{path.name} gives no domain for {without:,} of its {len(groups):,} pictures" if self.grouped == split else ""
        stray = set(captions) - set(ids)
        if stray:
            raise Damaged(f"{path}: captions of {len(stray)} images that it does not list, the first {min(map(str, stray))}")
        return checked(
            Split(
                Files(root, names),
                tuple(tuple(captions[number]) for number in ids) if split in self.captioned else None,
                group_N=None if without else tuple(map(str, groups)),
                no_groups=no_groups if without else "",
                notes=(no_groups,) if without and no_groups else (),
                ids=tuple(map(str, ids)),
            ),
            path,
        )

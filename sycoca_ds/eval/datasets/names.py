"""What the classes of a set are called, and the sentences they are put into: from the user, from open_clip, from the set's files.

Templates of CIFAR, STL-10 and Caltech-101, and where Caltech's names differ from its folders': openai/CLIP data/prompts.md.
ImageNet's 1,000 names and 80 templates are open_clip's, if that is installed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.command_line import nearest
from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.folders import WNID, names_of_wnids
from sycoca_ds.eval.datasets.reading import Split, folders_in
from sycoca_ds.eval.datasets.registry import SETS, OfficialSet
from sycoca_ds.eval.exports.finding import called
from sycoca_ds.eval.labels import LabelSet, tell_namesakes

PLAIN = ("a photo of a {c}.",)
THOUSAND = 1000
"""Classes of ImageNet-1K, of which every WordNet id has its place in the order of the labels."""


def both_articles(*templates: str) -> tuple[str, ...]:
    """The templates, then the same with `the` for the last `a` before the name."""
    parts = [text.partition("{c}") for text in templates]
    return templates + tuple(re.sub(r"^(.*)\ba\b", r"\1the", head) + name + tail for head, name, tail in parts)


TEMPLATES: dict[str, tuple[str, ...]] = {
    "cifar": both_articles(
        "a photo of a {c}.",
        *(f"a {kind} photo of a {{c}}." for kind in ("blurry", "black and white", "low contrast", "high contrast", "bad", "good")),
        "a photo of a small {c}.",
        "a photo of a big {c}.",
    ),
    "stl10": both_articles("a photo of a {c}."),
    "caltech101": both_articles(
        "a photo of a {c}.",
        "a painting of a {c}.",
        "a plastic {c}.",
        *(f"a {kind} of a {{c}}." for kind in ("sculpture", "sketch", "tattoo")),
        "a toy {c}.",
        "a rendition of a {c}.",
        "a embroidered {c}.",
        "a cartoon {c}.",
        "a {c} in a video game.",
        "a plushie {c}.",
        "a origami {c}.",
        *(f"{kind} of a {{c}}." for kind in ("art", "graffiti", "a drawing", "a doodle")),
    ),
}
CALTECH = {
    "BACKGROUND_Google": "background",
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
}


@dataclass(frozen=True)
class Prompts:
    """Names and templates that a user gives for a set."""

    path: str
    classes: tuple[str, ...] | dict[str, str] | None
    """In the order of the labels, or by what the files call the classes."""
    templates: tuple[str, ...] | None


def read_prompts(path: str | Path, entries: Sequence[OfficialSet]) -> dict[str, Prompts]:
    """{set: prompts} from {"SET": {"classes": [str] or {key: str}, "templates": ["... {c} ..."]}}, of which either may be left out.

    entries: the sets that are evaluated, by whose names they may be called as by `--sets`.

    Raises:
        UserError: names the field; a key is none of these sets, or two are one.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--prompts {path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"--prompts {path}: expected a JSON object by names of sets; found {type(content).__name__}")
    found: dict[str, Prompts] = {}
    for key, value in content.items():
        entry = called(key, entries)
        if entry is None:
            names = [entry.name for entry in entries]
            there = f"{nearest(key, names)} ({' '.join(names)})"
            raise UserError(f"--prompts {path}: {key} is none of the sets that are evaluated{there}")
        if entry.name in found:
            raise UserError(f"--prompts {path}: {key} is {entry.name}, which stands in it twice; leave one of them")
        found[entry.name] = _prompts(f"--prompts {path}: {key}", str(path), value)
    return found


def _prompts(where: str, path: str, entry: Any) -> Prompts:
    classes, templates = (entry.get("classes"), entry.get("templates")) if isinstance(entry, dict) else (None, None)
    if classes is None and templates is None:
        raise UserError(f"{where}: expected classes, templates or both")
    for field, value in (("classes", classes), ("templates", templates)):
        texts = value.values() if isinstance(value, dict) and field == "classes" else value
        if value is not None and not (
            isinstance(value, list | dict) and texts and all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise UserError(f"{where}: field '{field}' must hold at least one text, and no empty one")
    for template in templates or ():
        if "{c}" not in template:
            raise UserError(f"{where}: template {template!r} lacks {{c}}, the place of the class name")
    named = tuple(classes) if isinstance(classes, list) else classes
    return Prompts(path, named, tuple(templates) if templates is not None else None)


def labels_of(entry: OfficialSet, root: Path, split: Split, data_root: Path, prompts: Prompts | None) -> tuple[LabelSet, dict]:
    """What classification needs of a split, and where its names and templates come from.

    Raises:
        UserError: nothing says what the classes are called; what does is of other classes.
    """
    classes, named_by = _classes(entry, split, data_root, prompts)
    templates, worded_by = _templates(entry, split, prompts)
    tell_namesakes(entry.name, classes)
    labels = dict(zip(split.pictures.names, split.label_N.tolist(), strict=True))
    parts = json.dumps([entry.name, classes, templates, labels], sort_keys=True)
    digest = hashlib.sha256(parts.encode()).hexdigest()
    labelled = LabelSet(entry.name, classes, templates, labels, digest, str(root), entry.primary)
    return labelled, {"names": named_by, "templates": worded_by}


def _classes(entry: OfficialSet, split: Split, data_root: Path, prompts: Prompts | None) -> tuple[tuple[str, ...], str]:
    if prompts is not None and prompts.classes is not None:
        return _given(entry, split, prompts), prompts.path
    if split.named_by:
        return split.classes, split.named_by
    if entry.name.startswith("imagenet"):
        return _of_imagenet(entry, split, data_root)
    if entry.name == "caltech101":
        return tuple(
            CALTECH.get(name, _spaced(name)) for name in split.classes
        ), "folders, as openai/CLIP data/prompts.md mends them"
    if split.nameless and entry.tasks != ("linear_probe",):  # which asks for no names
        raise UserError(f"{entry.name}: {split.nameless}; give the classes' names by --prompts")
    return tuple(map(_spaced, split.classes)), "the set's files"


def _spaced(name: str) -> str:
    return " ".join(name.replace("_", " ").split())


def _given(entry: OfficialSet, split: Split, prompts: Prompts) -> tuple[str, ...]:
    where = f"--prompts {prompts.path}: {entry.name}"
    if isinstance(prompts.classes, dict):
        lacking = [key for key in split.keys if key not in prompts.classes]
        if lacking:
            raise UserError(f"{where}: no name for {len(lacking)} of {len(split.keys)} classes, the first {lacking[0]}")
        return tuple(prompts.classes[key] for key in split.keys)
    if len(prompts.classes) != len(split.keys):
        raise UserError(f"{where}: {len(prompts.classes)} names for {len(split.keys)} classes")
    return prompts.classes


def _of_imagenet(entry: OfficialSet, split: Split, data_root: Path) -> tuple[tuple[str, ...], str]:
    """open_clip's names by place among the 1,000 sorted WordNet ids, or WordNet's own from the files of the set or of ImageNet. A
    class that is no WordNet id has a place only in a set of all 1,000: others count their own classes."""
    everything, wordnet = thousand(data_root)
    by_wnid = all(WNID.fullmatch(key) for key in split.keys)
    whole = len(split.keys) == THOUSAND
    places: list[int] = []
    if by_wnid:
        sorted_wnids = sorted(split.keys) if whole else everything
        place = {wnid: number for number, wnid in enumerate(sorted_wnids)}
        places = [place[key] for key in split.keys] if all(key in place for key in split.keys) else []
    elif whole:
        places = list(range(THOUSAND))
    metadata = open_clip_metadata()
    if metadata is not None and places and len(metadata.IMAGENET_CLASSNAMES) == THOUSAND:
        return tuple(metadata.IMAGENET_CLASSNAMES[number] for number in places), "open_clip"
    if by_wnid and all(name != key for name, key in zip(split.classes, split.keys, strict=True)):
        return split.classes, "WordNet's first names, from the set's files"
    wnids = split.keys if by_wnid else [everything[number] for number in places if everything]
    if wnids and all(wnid in wordnet for wnid in wnids):
        return tuple(wordnet[wnid] for wnid in wnids), "WordNet's first names, from ImageNet's files"
    if split.nameless and not places:
        raise UserError(f"{entry.name}: {split.nameless}; give the classes' names by --prompts")
    if not by_wnid and not any(key.isdecimal() for key in split.keys):
        return tuple(name.split(",")[0] for name in split.classes), "the set's files, the first of each class's names"
    raise UserError(
        f"{entry.name}: nothing here says what its classes are called; install open_clip_torch (and for -A and -R have ImageNet's "
        "val/ or LOC_synset_mapping.txt in the data root), or give the names by --prompts"
    )


def thousand(data_root: Path) -> tuple[list[str], dict[str, str]]:
    """The sorted WordNet ids of ImageNet's 1,000 classes and their first names, as far as the data root knows them."""
    for place in SETS["imagenet1k"].places(data_root):
        names = names_of_wnids(place)
        wnids = sorted(names)
        for folder in ("val", "train"):
            if len(wnids) != THOUSAND and (place / folder).is_dir():
                wnids = [name for name in folders_in(place / folder) if WNID.fullmatch(name)]
        if len(wnids) == THOUSAND:
            return wnids, names
    return [], {}


def open_clip_metadata() -> Any:
    """open_clip's lists, None where it is not installed."""
    try:
        from open_clip import zero_shot_metadata
    except ImportError:
        return None
    return zero_shot_metadata


def _templates(entry: OfficialSet, split: Split, prompts: Prompts | None) -> tuple[tuple[str, ...], str]:
    if prompts is not None and prompts.templates is not None:
        return prompts.templates, prompts.path
    if split.templates:
        return split.templates, "the set's files"
    kind = "cifar" if entry.name.startswith("cifar") else entry.name
    if kind in TEMPLATES:
        return TEMPLATES[kind], "openai/CLIP data/prompts.md"
    metadata = open_clip_metadata() if entry.name.startswith("imagenet") else None
    if metadata is not None:
        return tuple(template("{c}") for template in metadata.OPENAI_IMAGENET_TEMPLATES), "open_clip"
    if entry.name.startswith("imagenet"):
        return PLAIN, "one plain template: open_clip, which has ImageNet's 80, is not installed"
    return PLAIN, "one plain template"

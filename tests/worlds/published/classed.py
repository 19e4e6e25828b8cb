"""ImageNet and its relatives, Caltech-101: a folder a class, or the development kit's lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.worlds.published.pictures import write_picture

WNIDS = ("n01440764", "n01443537", "n01484850", "n02012849", "n03126707")
WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "great white shark", "crane", "crane")
"""Two of WordNet's first names are the same, as ImageNet's cranes."""
IDS = (5, 2, 4, 1, 3)
"""ILSVRC2012_ID of each: not in the order of the WordNet ids."""


def write_imagenet_folders(root: Path, below: str = "imagenet/val", listed: str | None = "LOC_synset_mapping.txt") -> Path:
    """Two pictures in the second folder, one in the first and the last, a folder without pictures, a file that is none; one picture
    is grey, one CMYK."""
    folder = root / below
    for wnid in (WNIDS[4], WNIDS[1], WNIDS[0], WNIDS[2]):
        (folder / wnid).mkdir(parents=True, exist_ok=True)
    write_picture(folder / WNIDS[1] / "ILSVRC2012_val_00000009.JPEG", 40, "L")
    write_picture(folder / WNIDS[1] / "ILSVRC2012_val_00000002.JPEG", 41, "CMYK")
    write_picture(folder / WNIDS[0] / "ILSVRC2012_val_00000005.JPEG", 42)
    write_picture(folder / WNIDS[4] / "ILSVRC2012_val_00000001.JPEG", 43)
    (folder / WNIDS[1] / "Thumbs.db").write_bytes(b"no picture")
    if listed:
        lines = [f"{wnid} {words}" for wnid, words in zip(WNIDS, WORDS, strict=True)]
        (root / below.split("/")[0] / listed).write_text("\n".join(["# classes", *lines]) + "\n")
    return root / below.split("/")[0]


def write_imagenet_kit(root: Path, truth: tuple[int, ...] = (3, 5, 2, 1, 5, 4)) -> Path:
    """Pictures as they are published, with the development kit; meta.mat has a parent of classes, too."""
    from scipy.io import savemat

    folder = root / "ILSVRC2012"
    for number in range(1, len(truth) + 1):
        write_picture(folder / f"val/ILSVRC2012_val_{number:08d}.JPEG", 50 + number)
    data = folder / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{number}\n" for number in truth))
    kind = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")]
    rows = [(own, wnid, words, "a gloss", 0, []) for own, wnid, words in zip(IDS, WNIDS, WORDS, strict=True)]
    rows.append((6, "n00001740", "entity", "that which is", 2, [1, 2]))
    synsets = np.array(rows, dtype=kind).reshape(-1, 1)
    savemat(data / "meta.mat", {"synsets": synsets})
    return folder


def write_imagenet_v2(root: Path, numbers: tuple[int, ...] = (0, 1, 2, 10, 100, 999)) -> Path:
    folder = root / "imagenetv2-matched-frequency-format-val"
    for number in numbers:
        for name in ("b.jpeg", "a.jpeg"):
            write_picture(folder / str(number) / name, number % 200 + (name == "b.jpeg"))
    return folder


def write_caltech(root: Path) -> Path:
    folder = root / "caltech101/101_ObjectCategories"
    counts = {"accordion": 2, "Faces": 1, "Faces_easy": 1, "BACKGROUND_Google": 3, "yin_yang": 1, "Leopards": 1}
    number = 60
    for name, count in counts.items():
        for k in range(1, count + 1):
            write_picture(folder / name / f"image_{k:04d}.jpg", number, "L" if name == "accordion" else "RGB")
            number += 1
    return folder

"""Flickr30K and MSCOCO by Karpathy's json, COCO's own annotations, NoCaps."""

from __future__ import annotations

import json
from pathlib import Path

from tests.worlds.published.pictures import write_picture


def sentence(sentid: int, raw: str) -> dict:
    return {"tokens": raw.lower().split(), "raw": raw, "imgid": 0, "sentid": sentid}


def write_flickr(root: Path) -> Path:
    """Four pictures: test, train, test, val; no filepath."""
    folder, images = root / "Flickr30K", []
    for number, split in enumerate(("test", "train", "test", "val")):
        said = [sentence(5 * number + k, f"Caption {k}, of picture {number}.{' ' * k}") for k in range(5)]
        name = f"{1000 - number}.jpg"
        images.append({"sentids": [s["sentid"] for s in said], "sentences": said, "split": split, "filename": name})
        write_picture(folder / "flickr30k-images" / name, number)
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"dataset": "flickr30k", "images": images}))
    return folder


MSCOCO = (  # filepath, filename, cocoid, split, captions; the first two have one file name in two folders
    ("val2014", "same.jpg", 391895, "test", 5),
    ("train2014", "same.jpg", 17, "train", 5),
    ("val2014", "b.jpg", 3, "restval", 5),
    ("val2014", "a.jpg", 90, "test", 7),
    ("val2014", "c.jpg", 4, "val", 6),
    ("val2014", "d.jpg", 2, "test", 5),
)


def write_mscoco(root: Path) -> Path:
    folder, images, sentid = root / "coco", [], 0
    for number, (filepath, name, cocoid, split, count) in enumerate(MSCOCO):
        said = [sentence(sentid + k, f"A {name[0]} number {k} of {cocoid}") for k in range(count)]
        sentid += count
        images.append(
            {
                "filepath": filepath,
                "sentids": [s["sentid"] for s in said],
                "filename": name,
                "imgid": number,
                "split": split,
                "sentences": said,
                "cocoid": cocoid,
            }
        )
        write_picture(folder / filepath / name, 10 + number)
    (folder / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    return folder


def write_coco_captions(root: Path) -> Path:
    """val2017 of three pictures, whose captions stand in another order than they."""
    folder = root / "coco"
    images = [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (42, 7, 99)]
    order = [(7, "seven, first"), (42, "forty-two\n"), (7, "seven, second"), (99, "ninety-nine"), (42, "  again forty-two")]
    annotations = [{"id": 900 - k, "image_id": image, "caption": caption} for k, (image, caption) in enumerate(order)]
    for place, image in enumerate(images):
        write_picture(folder / "val2017" / image["file_name"], 20 + place)
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    (folder / "annotations/captions_val2017.json").write_text(json.dumps(content))
    return folder


def write_coco_2014(root: Path) -> Path:
    """What COCO's server takes captions of: val2014, two pictures with captions, and test2014, three whose captions nobody has."""
    folder = root / "coco"
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    for split, numbers, kind in (("val2014", (391895, 42), "captions"), ("test2014", (7, 581929, 9), "image_info")):
        images = [{"id": number, "file_name": f"COCO_{split}_{number:012d}.jpg"} for number in numbers]
        for image in images:
            write_picture(folder / split / image["file_name"], 60 + image["id"] % 100)
        content = {"info": {}, "licenses": [], "images": images}
        if kind == "captions":
            content["annotations"] = [{"id": number, "image_id": number, "caption": f"number {number}"} for number in numbers]
        (folder / f"annotations/{kind}_{split}.json").write_text(json.dumps(content))
    return folder


def write_nocaps(root: Path) -> Path:
    folder = root / "nocaps"
    domains = ("in-domain", "out-domain", "near-domain", "out-domain")
    images = [
        {"id": k, "file_name": f"{k:016x}.jpg", "open_images_id": f"{k:016x}", "domain": domain} for k, domain in enumerate(domains)
    ]
    annotations = [{"id": 10 * k + n, "image_id": k, "caption": f"thing {k} said {n}"} for k in range(4) for n in range(10)]
    for image in images:
        write_picture(folder / "images" / image["file_name"], 30 + image["id"])
    (folder / "nocaps_val_4500_captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    hidden = [{"id": 4500 + k, "file_name": f"{k + 9:016x}.jpg"} for k in range(2)]
    for k, image in enumerate(hidden):
        write_picture(folder / "images" / image["file_name"], 35 + k)
    (folder / "nocaps_test_image_info.json").write_text(json.dumps({"images": hidden}))
    return folder

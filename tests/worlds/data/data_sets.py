"""Data set folders of a few samples, as the data pipeline and as others write them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np

from data_pipeline.shards.manifest import Manifest
from data_pipeline.shards.verify import verify
from data_pipeline.tokenizer.bpe import train as train_tokenizer

RNG = np.random.default_rng(0)


def picture(width: int = 24, height: int = 16, kind: str = ".jpg") -> bytes:
    return cv2.imencode(kind, RNG.integers(0, 256, (height, width, 3), np.uint8))[1].tobytes()


def member(name: str, data: bytes, **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_700_000_000.25  # a fraction: an extended header, as webdataset writes them
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def sample(number: int, key: str | None = None, caption: bytes | None = None, image: bytes | None = None, **meta) -> list:
    key = key or f"{number:08d}"
    record = {
        "uid": f"{number:016x}",
        "url": f"http://a.example/{number // 2}.jpg",
        "key": key,
        "width": 24,
        "height": 16,
    } | meta
    return [
        member(f"{key}.jpg", picture() if image is None else image),
        member(f"{key}.txt", f"caption number {number} \u00e9".encode() if caption is None else caption),
        member(f"{key}.json", json.dumps(record).encode()),
    ]


def parts(key: str, **data: bytes) -> list:
    """The members of one sample: suffix=content."""
    return [member(f"{key}.{suffix}", content, mtime=0) for suffix, content in data.items()]


def write_tar(path: Path, members: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def data_set(root: Path, shards: int = 3, each: int = 4) -> Path:
    for shard in range(shards):
        write_tar(
            root / "shards" / f"{shard:05d}.tar",
            [part for number in range(shard * each, (shard + 1) * each) for part in sample(number)],
        )
    return root


WORDS = ("red", "green", "blue", "white", "black", "small", "large", "round", "square", "on", "under", "beside")


def write_data_set(folder: Path, samples_per_shard: list[int], seed: int = 0, side: int = 32) -> Path:
    """A data set folder with real tars of real JPEGs, verified by the pipeline's own `verify`, and a tokenizer trained on it.

    The captions name the colours of the picture's halves, so that there is something to learn.
    """
    random = np.random.default_rng(seed)
    colours = {"red": (200, 30, 30), "green": (30, 160, 30), "blue": (30, 30, 200), "white": (240, 240, 240), "black": (10, 10, 10)}
    count = 0
    for number, size in enumerate(samples_per_shard):
        members = []
        for place in range(size):
            left, right = random.choice(list(colours), 2)
            picture = np.empty((side, side, 3), np.uint8)
            picture[:, : side // 2], picture[:, side // 2 :] = colours[left], colours[right]
            picture[random.integers(side - 6) :][:4] = random.integers(0, 255, 3)
            caption = " ".join([left, "beside", right, *random.choice(WORDS, random.integers(0, 6))])
            jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
            facts = {
                "uid": f"{count:016x}",
                "url": f"http://example.org/{seed}/{count}.jpg",
                "caption": caption,
                "width": side,
                "height": side,
                "status": "success",
            }
            members += parts(f"{number:05d}{place:04d}", jpg=jpeg, txt=caption.encode(), json=json.dumps(facts).encode())
            count += 1
        write_tar(folder / "shards" / f"{number:05d}.tar", members)
    verify(folder, processes=1)
    train_tokenizer(folder, folder / "tokenizer.json", vocab_size=320)
    return folder


def write_labels(data: Path, path: Path) -> Path:
    """The colour of each picture's left half as its class, taken from its caption."""
    manifest, value, classes = Manifest.load(data), {}, ["red", "green", "blue", "white", "black"]
    for number, shard in enumerate(manifest.shards):
        content = shard.path.read_bytes()
        for row in manifest.index(number).to_pylist():
            word = content[row["text_offset"] : row["text_offset"] + row["text_bytes"]].decode().split()[0]
            value[row["url"]] = classes.index(word)
    path.write_text(json.dumps({"name": "left", "classes": classes, "templates": ["{c} beside red"], "labels": value}))
    return path


def write_regions(data: Path, path: Path) -> Path:
    """Regions of a `write_data_set`: the left half is named by the first word of the caption, the upper right quarter is an object
    that it is said not to name, the lower right one is the background."""
    manifest, pictures = Manifest.load(data), {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, shard in enumerate(manifest.shards):
        content = shard.path.read_bytes()
        for row in manifest.index(number).to_pylist():
            caption = content[row["text_offset"] : row["text_offset"] + row["text_bytes"]].decode()
            label_HW = np.zeros((row["height"], row["width"]), np.uint8)
            label_HW[:, : row["width"] // 2], label_HW[: row["height"] // 2, row["width"] // 2 :] = 1, 2
            cv2.imwrite(str(path.parent / f"{row['key']}.png"), label_HW)
            left = {"label": 1, "name": "left", "named": True, "span": [0, len(caption.split()[0])]}
            right = {"label": 2, "name": "right", "named": False, "span": None}
            background = {"name": "rest", "named": False, "span": None}
            pictures[row["url"]] = {
                "mask": f"{row['key']}.png",
                "caption": caption,
                "objects": [left, right],
                "background": background,
            }
    path.write_text(json.dumps({"format": 1, "pictures": pictures}))
    return path


def write_mirror(folder: Path, tars: int = 2, each: int = 4) -> Path:
    """As pixparse/cc12m-wds: cc12m-train-0000.tar with KEY.jpg, KEY.txt and a KEY.json that has url and key, no uid; keys repeat in
    every tar. One sample has no json, one an unreadable one, one no caption."""
    for number in range(tars):
        members = []
        for place in range(each):
            picture = np.random.default_rng(number * each + place).integers(0, 255, (40, 50, 3)).astype(np.uint8)
            key = f"{place:09d}"
            facts = {"key": key, "status": "success", "url": f"http://example.org/{number}/{place}.jpg", "width": 999}
            own = {
                "jpg": cv2.imencode(".jpg", picture)[1].tobytes(),
                "json": b"{" if place == 2 else json.dumps(facts).encode(),
                "txt": f"caption {place} of {number}".encode(),
            }
            if place == 1:
                del own["json"]
            if place == 3 and number == 1:
                del own["txt"]
            members += parts(key, **own)
        write_tar(folder / f"cc12m-train-{number:04d}.tar", members)
    return folder


def questions_on(data: Path, path: Path) -> Path:
    """A drawn world's file of questions on the pictures of a folder."""
    manifest = Manifest.load(data)
    urls = [url for shard in range(len(manifest.shards)) for url in manifest.index(shard, ["url"])["url"].to_pylist()]
    asked = [{"url": url, "kind": "color", "question": "what is it?", "answer": str(place % 3)} for place, url in enumerate(urls)]
    path.write_text(json.dumps({"name": "asked", "questions": asked}))
    return path

"""A user's own photographs: a folder and a csv of captions -> catalogues of URLs, and a server for them on loopback."""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from data_pipeline.errors import UserError
from data_pipeline.files import no_folder, sha256_text, write_json
from data_pipeline.world.laion import write_laion_catalogue
from data_pipeline.world.server import HOST, TYPES, PictureServer, serve_until_interrupted

HASH_SPACE = 1 << 32


@dataclass(frozen=True, kw_only=True)
class FolderCommand:
    """Writes catalogues (LAION's schema) of a folder of photographs with captions, then serves the folder on
    loopback."""

    images: Path
    """Folder of the photographs (jpg, png, webp, gif), folders inside it included."""
    captions: Path
    """csv with the columns image (path below --images) and caption; several rows per photograph are fine."""
    out: Path
    """Folder of the catalogues: train.parquet and one per held-out split."""
    port: int = 8732
    """Port on 127.0.0.1; it is part of every URL of the catalogues."""
    holdout: tuple[str, ...] = ()
    """Splits held out of training, as NAME=SHARE of the photographs, for example val=0.1 test=0.1. All captions of one
    photograph are in one split, decided by a hash of its name."""
    serve: bool = True
    """Serve after writing; --no-serve only writes."""

    def run(self) -> int:
        shares = parse_holdout(self.holdout)
        if not 1 <= self.port <= 65535:
            raise UserError(f"--port {self.port}: expected 1 to 65535")
        if not self.images.is_dir():
            raise UserError(f"--images {self.images}: {no_folder(self.images)}")
        server = PictureServer(self.images, self.port) if self.serve else None
        counts = write_catalogues(self.images, self.captions, self.out, self.port, shares)
        for split, count in counts["splits"].items():
            print(
                f"{self.out / (split + '.parquet')}: {count['photographs']} photographs, {count['captions']} captions",
                file=sys.stderr,
            )
        return serve_until_interrupted(server, str(self.images)) if server else 0


def parse_holdout(values: tuple[str, ...]) -> dict[str, float]:
    """`("val=0.1",)` -> {"val": 0.1}. UserError for anything that is no share."""
    shares: dict[str, float] = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not name.isidentifier() or name == "train" or name in shares or not 0 < share < 1:
            raise UserError(f"--holdout {value}: expected NAME=SHARE with a share between 0 and 1, for example val=0.1")
        shares[name] = share
    if sum(shares.values()) >= 1:
        raise UserError(
            f"--holdout {' '.join(values)}: the shares add up to {sum(shares.values()):g}, nothing is left for training"
        )
    return shares


def split_of(image: str, shares: dict[str, float]) -> str:
    """The split of a photograph, from a hash of its name: other photographs coming or going change nothing for it."""
    place = int(sha256_text(image)[:8], 16) / HASH_SPACE
    for name, share in shares.items():
        if place < share:
            return name
        place -= share
    return "train"


def read_captions(path: Path, images: Path) -> list[tuple[str, str]]:
    """(image, caption) rows. UserError names the line of a row that cannot be used."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"image", "caption"} <= set(reader.fieldnames or ()):
                raise UserError(
                    f"--captions {path}: needs the columns image and caption, found {', '.join(reader.fieldnames or ['nothing'])}"
                )
            rows = []
            for entry in reader:
                image, caption = entry["image"], entry["caption"]
                where = f"--captions {path}, line {reader.line_num}"
                if not image or caption is None:
                    raise UserError(f"{where}: expected an image and a caption")
                if Path(image).is_absolute() or ".." in Path(image).parts:
                    raise UserError(f"{where}: image {image!r} is not below --images {images}")
                rows.append((image, caption))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--captions {path}: cannot be read ({error})") from None
    if not rows:
        raise UserError(f"--captions {path}: no rows below the header")
    return rows


def write_catalogues(images: Path, captions: Path, out: Path, port: int, shares: dict[str, float]) -> dict:
    """Writes one parquet per split in LAION's schema and folder.json; returns the counts in the latter.

    Photographs that are named but not there, or whose header cannot be read, are counted and left out; UserError if
    none is left or a split is empty.
    """
    from PIL import Image

    rows = read_captions(captions, images)
    sizes: dict[str, tuple[int, int] | None] = {}
    for image in dict.fromkeys(name for name, _ in rows):
        try:
            if Path(image).suffix.lower() not in TYPES:
                raise OSError("no picture's suffix")
            with Image.open(images / image) as picture:
                sizes[image] = picture.size
        except (OSError, ValueError, Image.DecompressionBombError):
            sizes[image] = None
    unusable = [image for image, size in sizes.items() if size is None]
    if len(unusable) == len(sizes):
        raise UserError(
            f"--images {images}: none of the {len(sizes)} photographs of {captions} can be read there, for example {unusable[0]}"
        )
    if unusable:
        print(
            f"{len(unusable)} of {len(sizes)} photographs cannot be read and are left out, for example {unusable[0]}",
            file=sys.stderr,
        )
    splits: dict[str, list[dict]] = {split: [] for split in ("train", *shares)}
    for number, (image, caption) in enumerate(rows):
        size = sizes[image]
        if size is not None:
            url = f"http://{HOST}:{port}/images/{quote(Path(image).as_posix())}"
            splits[split_of(image, shares)].append(
                {"SAMPLE_ID": number, "URL": url, "TEXT": caption, "HEIGHT": size[1], "WIDTH": size[0]}
            )
    empty = [split for split, entries in splits.items() if not entries]
    if empty:
        raise UserError(f"--holdout: no photograph fell into {' or '.join(empty)}; give it a larger share or more photographs")
    for split, entries in splits.items():
        write_laion_catalogue(out / f"{split}.parquet", entries)
    record = {
        "images": str(images),
        "port": port,
        "unusable": len(unusable),
        "splits": {
            split: {"photographs": len({entry["URL"] for entry in entries}), "captions": len(entries)}
            for split, entries in splits.items()
        },
    }
    write_json(out / "folder.json", record)
    return record

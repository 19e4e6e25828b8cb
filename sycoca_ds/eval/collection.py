"""What is evaluated: the distinct images of a data set folder and all their captions.

Legend: I distinct images (by image_id, in tar order), T captions (one a kept sample, or one a line of it), S image side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.catalogue.captions import lines_of
from data_pipeline.errors import UserError
from data_pipeline.shards.manifest import Manifest, ManifestError

COLUMNS = ["key", "url", "image_id", "image_offset", "image_bytes", "text_offset", "text_bytes", "captions", "width", "height"]


@dataclass(frozen=True)
class Picture:
    """Where one distinct image lies."""

    image_id: str
    url: str
    key: str
    shard: Path
    offset: int
    size: int
    """Bytes."""
    width: int
    height: int
    """Pixels, as stored."""


class Collection:
    """Images on demand, captions in memory. Read-only; the order is the manifest's and depends on nothing else."""

    def __init__(self, folder: str | Path, image_size: int):
        """folder: a data set folder. image_size: S. UserError if there is no manifest, it is damaged, or it keeps
        nothing."""
        try:
            manifest = Manifest.load(folder)
        except ManifestError as error:
            raise UserError(f"--data {folder}: {error}") from error
        self.folder, self.image_size, self.digest = Path(folder), image_size, manifest.digest
        self.pictures: list[Picture] = []
        self.captions: list[str] = []
        image_of_text: list[int] = []
        number_of: dict[str, int] = {}
        for number, shard in enumerate(manifest.shards):
            try:
                rows = manifest.index(number, columns=COLUMNS).to_pylist()
            except ManifestError as error:
                raise UserError(f"--data {folder}: {error}") from error
            with open(shard.path, "rb") as file:
                for row in rows:
                    if row["image_id"] not in number_of:
                        number_of[row["image_id"]] = len(self.pictures)
                        self.pictures.append(
                            Picture(
                                row["image_id"],
                                row["url"],
                                row["key"],
                                shard.path,
                                row["image_offset"],
                                row["image_bytes"],
                                row["width"],
                                row["height"],
                            )
                        )
                    text = os.pread(file.fileno(), row["text_bytes"], row["text_offset"]).decode("utf-8", "replace")
                    captions = [text.strip()] if row["captions"] == 1 else lines_of(text)
                    self.captions += captions
                    image_of_text += [number_of[row["image_id"]]] * len(captions)
        if not self.pictures:
            raise UserError(f"--data {folder}: the manifest keeps no sample; run: python -m data_pipeline verify --data {folder}")
        self.image_of_text_T = np.array(image_of_text, dtype=np.int64)
        self.captions_of_image: list[list[str]] = [[] for _ in self.pictures]
        for caption, image in zip(self.captions, image_of_text, strict=True):
            self.captions_of_image[image].append(caption)

    def __len__(self) -> int:
        """I, distinct images."""
        return len(self.pictures)

    def image(self, number: int) -> torch.Tensor:
        """(3, S, S) uint8: short side resized (bicubic), centre crop. UserError names a picture that cannot be read: it
        is never skipped, since a skipped image would make every number look better or worse without saying so."""
        from sycoca_ds.data.transforms import eval_image, load_image

        picture = self.pictures[number]
        try:
            with open(picture.shard, "rb") as file:
                data = os.pread(file.fileno(), picture.size, picture.offset)
            return eval_image(load_image(data), self.image_size)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{picture.shard}, sample {picture.key}: the image cannot be read ({error}); run: python -m "
                f"data_pipeline verify "
                f"{self.folder}"
            ) from error

    def picture(self, number: int) -> np.ndarray:
        """(S, S, 3) uint8: what the model is shown, for people."""
        return self.image(number).permute(1, 2, 0).contiguous().numpy()

    def batches(self, size: int) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(numbers, (B, 3, S, S) uint8) over all images in order."""
        for start in range(0, len(self), size):
            numbers = list(range(start, min(start + size, len(self))))
            yield numbers, torch.stack([self.image(number) for number in numbers])

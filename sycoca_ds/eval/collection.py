"""What is evaluated: distinct images and all their captions, here those of a data set folder.

Legend: I distinct images (by image_id, in tar order), T captions (one a kept sample, or one a line of it), S image side, H, W an
image's own pixels.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.catalogue.captions import lines_of
from data_pipeline.errors import UserError, to_run
from data_pipeline.shards.manifest import Manifest, ManifestError
from sycoca_ds.eval.datasets.reading import Question

COLUMNS = ["key", "url", "image_id", "image_offset", "image_bytes", "text_offset", "text_bytes", "captions", "width", "height"]


@dataclass(frozen=True)
class Picture:
    """One distinct image."""

    image_id: str
    """What it is called in results."""
    url: str
    key: str
    """Of its sample, or its place in an official set."""


@dataclass(frozen=True)
class StoredPicture(Picture):
    """Where one distinct image lies."""

    shard: Path
    offset: int
    size: int
    """Bytes."""
    width: int
    height: int
    """Pixels, as stored."""


class PictureSet(ABC):
    """Images on demand, captions in memory. Read-only."""

    compared_by_url = True
    """Whether its images' ids are those that training data has for the same urls."""

    def __init__(
        self,
        folder: str | Path,
        image_size: int,
        digest: str,
        pictures: Sequence[Picture],
        captions: list[str],
        image_of_text: Sequence[int],
    ):
        """image_size: S. digest: of all that results depend on. captions: T texts. image_of_text: the picture of each."""
        self.folder, self.image_size, self.digest = Path(folder), image_size, digest
        self.pictures, self.captions = pictures, captions
        self.image_of_text_T = np.array(image_of_text, dtype=np.int64)
        self.captions_of_image: list[list[str]] = [[] for _ in pictures]
        for caption, image in zip(captions, image_of_text, strict=True):
            self.captions_of_image[image].append(caption)
        self.facts: dict[str, Any] = {}
        """What results say of it beside counts."""
        self.domains: Sequence[str] | None = None
        """The part of the set that each picture belongs to, as NoCaps has them; None: this set has no parts, or does not say."""
        self.no_domains = "the pictures of this data are in no domains, as NoCaps' are"
        """Why there are none."""
        self.cues: Sequence[Question] = ()
        """WinoGAViL's questions on its pictures."""

    def __len__(self) -> int:
        """I, distinct images."""
        return len(self.pictures)

    @abstractmethod
    def pixels(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, the whole image. UserError names one that cannot be read: it is never skipped, since a skipped image
        would make every number look better or worse without saying so."""

    def image(self, number: int) -> torch.Tensor:
        """(3, S, S) uint8: short side resized (bicubic), centre crop. Errors as of `pixels`."""
        from sycoca_ds.data.transforms import eval_image

        return eval_image(self.pixels(number), self.image_size)

    def picture(self, number: int) -> np.ndarray:
        """(S, S, 3) uint8: what the model is shown, for people."""
        return self.image(number).permute(1, 2, 0).contiguous().numpy()

    def batches(self, size: int, among: range | None = None) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(numbers, (B, 3, S, S) uint8) over all images in order, or over those `among`."""
        among = range(len(self)) if among is None else among
        for start in range(0, len(among), size):
            numbers = list(among[start : start + size])
            yield numbers, torch.stack([self.image(number) for number in numbers])


class Collection(PictureSet):
    """A data set folder; the order is the manifest's and depends on nothing else."""

    def __init__(self, folder: str | Path, image_size: int):
        """folder: a data set folder. image_size: S. UserError if there is no manifest, it is damaged, or it keeps
        nothing."""
        try:
            manifest = Manifest.load(folder)
        except ManifestError as error:
            raise UserError(f"--data {folder}: {error}") from error
        pictures: list[StoredPicture] = []
        captions: list[str] = []
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
                        number_of[row["image_id"]] = len(pictures)
                        pictures.append(
                            StoredPicture(
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
                    said = [text.strip()] if row["captions"] == 1 else lines_of(text)
                    captions += said
                    image_of_text += [number_of[row["image_id"]]] * len(said)
        if not pictures:
            raise UserError(f"--data {folder}: the manifest keeps no sample; run: {to_run('verify', folder)}")
        super().__init__(folder, image_size, manifest.digest, pictures, captions, image_of_text)

    def pixels(self, number: int) -> np.ndarray:
        from sycoca_ds.data.transforms import load_image

        picture = self.pictures[number]
        try:
            with open(picture.shard, "rb") as file:
                data = os.pread(file.fileno(), picture.size, picture.offset)
            return load_image(data)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{picture.shard}, sample {picture.key}: the image cannot be read ({error}); run: python -m "
                f"data_pipeline verify "
                f"{self.folder}"
            ) from error

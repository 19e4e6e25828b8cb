"""Regions in patches of the pictures as the model is shown them, and the tokens that name them.

Legend: N patches, R things, H, W a mask's pixels, S image side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.data.alignment import carry
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.eval.collection import Collection, StoredPicture
from sycoca_ds.eval.regions.annotated import Annotated, Layout, OtherCaption
from sycoca_ds.eval.regions.reading import open_layout

NONE, NAMED, UNNAMED, BACKGROUND, NAMED_BACKGROUND = range(5)
"""What a patch shows: nothing in particular, an object that the caption names, one that it does not name, the background of a
picture whose caption does not name that, or does."""
LEAST_SHARE = 0.5
"""Of a patch that a region has to cover to have it."""
PIXELS_OFF = 1.5
"""By which a stored side may differ from the annotated picture's, resized: two roundings."""


@dataclass(frozen=True)
class PatchPhrase:
    """Words of the caption and the patches that show what they name."""

    region_N: np.ndarray
    """bool, at least one True and one False."""
    places: tuple[int, ...]
    """Of the words' tokens in the encoded caption."""


@dataclass(frozen=True)
class PictureRegions:
    """What the patches of one picture show under its first caption."""

    kind_N: np.ndarray
    """int8: NONE to NAMED_BACKGROUND."""
    phrases: tuple[PatchPhrase, ...]

    def has(self, *kinds: int) -> np.ndarray:
        """bool (N,): patches of these kinds."""
        return np.isin(self.kind_N, kinds)


@dataclass(frozen=True)
class Regions:
    """Regions of the pictures of a data set, in its order."""

    kind: str
    """Of their layout."""
    pictures: tuple[PictureRegions | None, ...]
    """None: not annotated, or with other captions."""
    counts: dict[str, int]
    """pictures, annotated, other_caption, other_size, phrases, phrases_cut."""
    annotations: str = ""
    """Digest of what is annotated: the same for every model, whatever its patches and tokens make of it."""

    @property
    def phrases(self) -> int:
        """Most phrases of one picture."""
        return max((len(picture.phrases) for picture in self.pictures if picture is not None), default=0)

    @property
    def there(self) -> list[tuple[int, PictureRegions]]:
        """The pictures that have regions, with their numbers."""
        return [(number, picture) for number, picture in enumerate(self.pictures) if picture is not None]

    def shows(self, *kinds: int) -> bool:
        """Whether any picture has a patch of these kinds."""
        return any(picture is not None and picture.has(*kinds).any() for picture in self.pictures)

    def kinds(self, number: int) -> np.ndarray:
        """(N,) int8: what the patches of a picture show, NONE of one that has no regions."""
        picture = self.pictures[number]
        return picture.kind_N if picture is not None else np.zeros_like(next(p.kind_N for p in self.pictures if p is not None))

    @property
    def digest(self) -> str:
        """Of all that numbers of this model depend on."""
        seen = hashlib.sha256()
        for picture in self.pictures:
            seen.update(b"-" if picture is None else picture.kind_N.tobytes())
            for phrase in picture.phrases if picture is not None else ():
                seen.update(phrase.region_N.tobytes() + repr(phrase.places).encode())
        return seen.hexdigest()

    def told(self) -> str:
        """One line for people."""
        counts = self.counts
        left_out = [
            f"{counts[name]:,} {words}"
            for name, words in (
                ("not_annotated", "are not annotated"),
                ("other_caption", "are annotated with other captions"),
                ("other_size", "were cropped or padded since they were annotated"),
            )
            if counts[name]
        ]
        line = f"regions ({self.kind}): {counts['annotated']:,} of {counts['pictures']:,} pictures, {counts['phrases']:,} phrases"
        line += f", {counts['phrases_cut']:,} more cut off or without a patch" if counts["phrases_cut"] else ""
        return f"{line}; {', '.join(left_out)}" if left_out else line


def patch_shares(mask_RHW: np.ndarray, size: int, patch: int) -> np.ndarray:
    """Share of each patch that each mask covers, after the resizing and cropping of evaluation pictures: (R, N) float64.

    Args:
        mask_RHW: bool.
        size: S. patch: its side, which divides S.
    """
    side = size // patch
    share_RN = np.zeros((len(mask_RHW), side * side))
    for first in range(0, len(mask_RHW), 3):  # three masks are the channels of one picture
        three_CHW = mask_RHW[first : first + 3]
        picture_HWC = np.zeros((*mask_RHW.shape[1:], 3), np.uint8)
        picture_HWC[..., : len(three_CHW)] = np.moveaxis(three_CHW, 0, 2) * np.uint8(255)
        shown_CSS = eval_image(picture_HWC, size)[: len(three_CHW)].numpy() / 255
        share_RN[first : first + 3] = shown_CSS.reshape(-1, side, patch, side, patch).mean(axis=(2, 4)).reshape(-1, side * side)
    return share_RN


def kinds_of(annotated: Annotated, size: int, patch: int) -> tuple[np.ndarray, np.ndarray]:
    """(kind_N int8, has_RN bool: patches that each thing covers by half).

    A patch is of a kind if exactly one region, the background being one, covers at least half of it: where several do, or none, it
    is NONE.
    """
    shape = annotated.background_HW.shape
    masks = [*(thing.mask_HW for thing in annotated.things), annotated.background_HW]
    if any(mask.shape != shape for mask in masks):
        raise ValueError(f"masks of {sorted({mask.shape for mask in masks})} pixels for one picture")
    has_RN = patch_shares(np.stack(masks), size, patch) >= LEAST_SHARE
    kind_R = [NAMED if thing.named else UNNAMED for thing in annotated.things]
    kind_R.append(NAMED_BACKGROUND if annotated.background_named else BACKGROUND)
    kind_N = np.where(has_RN.sum(0) == 1, np.array(kind_R)[has_RN.argmax(0)], NONE).astype(np.int8)
    return kind_N, has_RN[:-1]


def fits(picture: StoredPicture, shape: tuple[int, int]) -> bool:
    """Whether a picture was stored as it was annotated, perhaps smaller: a mask of (H, W) then goes the same way through the
    crop."""
    height, width = shape
    across = abs(picture.width * height / width - picture.height) <= PIXELS_OFF
    return across or abs(picture.height * width / height - picture.width) <= PIXELS_OFF


def read_regions(
    path: str | Path,
    collection: Collection,
    tokenizer: Tokenizer,
    patch: int,
    context_length: int,
    count: int | None = None,
    shown: bool = True,
) -> Regions:
    """Regions of the first `count` pictures of a data set (default all) under their first captions.

    Args:
        shown: whether this process says how far it is; of several that read the same, one does.

    Raises:
        UserError: of no known layout, damaged, or of other pictures, captions or sizes than all of these.
    """
    layout, size = open_layout(path), collection.image_size
    pictures = collection.pictures[:count]
    counts = dict.fromkeys(("pictures", "annotated", "not_annotated", "other_caption", "other_size", "phrases", "phrases_cut"), 0)
    counts["pictures"] = len(pictures)
    found: list[PictureRegions | None] = []
    seen = hashlib.sha256()
    with Progress("read regions", total=len(pictures), unit="images", enabled=shown) as bar:
        for picture, captions in zip(pictures, collection.captions_of_image, strict=False):
            annotated, why = _annotated(layout, picture, captions[0])
            regions = None if annotated is None else _regions_of(annotated, captions[0], size, patch, tokenizer, context_length)
            seen.update(b"-" if annotated is None else annotated.digest)
            found.append(regions)
            counts[why] += 1
            if regions is not None:
                kept = [phrase for phrase in regions.phrases if phrase.places and 0 < phrase.region_N.sum() < len(phrase.region_N)]
                counts["phrases"] += len(kept)
                counts["phrases_cut"] += len(regions.phrases) - len(kept)
                found[-1] = PictureRegions(regions.kind_N, tuple(kept))
            bar.advance(1)
    if not counts["annotated"]:
        raise UserError(_nothing(path, layout, counts, pictures))
    return Regions(layout.kind, tuple(found), counts, seen.hexdigest())


def _annotated(layout: Layout, picture: StoredPicture, caption: str) -> tuple[Annotated | None, str]:
    """What is known of a picture, or None; and which of `counts` it belongs to."""
    entry = layout.find(picture)
    if entry is None:
        return None, "not_annotated"
    try:
        annotated = layout.load(entry, caption)
    except OtherCaption:
        return None, "other_caption"
    if not fits(picture, annotated.background_HW.shape):
        return None, "other_size"
    return annotated, "annotated"


def _regions_of(
    annotated: Annotated, caption: str, size: int, patch: int, tokenizer: Tokenizer, context_length: int
) -> PictureRegions:
    """A picture's regions, with phrases as they come."""
    kind_N, has_RN = kinds_of(annotated, size, patch)
    phrases = []
    for phrase in annotated.phrases:
        spans = carry(phrase.spans, annotated.sentence, caption)
        places = sorted({place for them in tokenizer.places(caption, spans, context_length) for place in them})
        phrases.append(PatchPhrase(has_RN[list(phrase.things)].any(0), tuple(places)))
    return PictureRegions(kind_N, tuple(phrases))


def _nothing(path: str | Path, layout: Layout, counts: dict[str, int], pictures: Sequence[StoredPicture]) -> str:
    """Why not one picture has regions."""
    if counts["not_annotated"] == len(pictures):
        why = f"none of the data set's {len(pictures):,} pictures is among them (the first is {pictures[0].url})"
    elif counts["other_caption"] >= counts["other_size"]:
        why = f"{counts['other_caption']:,} pictures are among them, each with other captions than the data set's"
    else:
        why = f"{counts['other_size']:,} pictures are among them, but stored cropped or padded: build the data set of whole ones"
    return f"regions {path} ({layout.kind}): {why}; give the regions of this data set"

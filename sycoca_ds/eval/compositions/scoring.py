"""What a model says of the items of a benchmark: cosines, likelihoods under the text decoder, and what is left of these without a
picture.

Every distinct text and picture is read once, and every pair of them: two captions of the same tokens then have the same score to
the last bit, whichever batches they would have been in, and tie.

Legend: N items, P views and C = 2 captions of an item, D distinct pictures, T distinct texts, Q pairs of them, K empty pictures,
B batch, L text tokens, S image side.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.compositions.items import CompositionSet, Item, View
from sycoca_ds.eval.runner.bench import PROBLEM, TRANSFORM, Bench, digest_of_texts, distinct_rows
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.stats.cosines import exact_unit_vectors

log = logging.getLogger(__name__)

EMPTY_PICTURES = 3
"""Pictures of noise in place of the own one. Lin et al. 2024 (arXiv 2306.01879), who estimate a caption's probability
without a picture as the mean over such pictures, find as few as three to be enough."""

TIES = {"cosine": 0.0, "likelihood": 1e-3, "gain": 1e-3, "blind": 1e-3}
"""By score: how far apart two of them are still equal. Cosines are exact. Of a log-probability the float32 sums leave about 1e-5
open: without this, a picture that changes nothing would win every other item by rounding."""
ITEMS_AT_ONCE = 1024
"""Whose cosines are computed together: 50 MB of features."""


@dataclass(frozen=True)
class Scores:
    """Of the items whose pictures can be read."""

    items: tuple[Item, ...]
    cosine_NPC: np.ndarray
    """float64, exact to 2^-48: equal vectors, equal cosines."""
    likelihood_NPC: np.ndarray | None
    """float64, log-probability of the caption given the picture; None: the model has no text decoder."""
    prior_NC: np.ndarray | None
    """float64, its log-probability without a picture."""
    counts: dict[str, int]
    """items, pictures; of the items: unreadable, same_tokens, cut, empty."""
    unreadable: tuple[str, ...]
    """The first files that cannot be read, with the reason."""

    def by_name(self) -> dict[str, np.ndarray]:
        """{score: (N, P, C) float64}, of a model without a text decoder only the cosine.

        gain: how much the picture adds to the caption's log-probability, VisualGPTScore's debiasing with alpha = 1, the pointwise
        mutual information; other alphas are tuned on labelled items. blind: the same for every picture.
        """
        found = {"cosine": self.cosine_NPC}
        if self.likelihood_NPC is not None:
            blind_NPC = np.broadcast_to(self.prior_NC[:, None], self.likelihood_NPC.shape)
            found |= {"likelihood": self.likelihood_NPC, "gain": self.likelihood_NPC - blind_NPC, "blind": blind_NPC}
        return found


class Texts:
    """The distinct captions of some items, by their tokens."""

    def __init__(self, bench: Bench, items: Sequence[Item]):
        captions = list(dict.fromkeys(caption for item in items for caption in item.captions))
        length = bench.config.model.text.context_length
        ids = bench.tokenizer.encode(captions, length + 1)
        # of a caption that fits the last place is a pad; one that does not ends there, and is cut one token shorter by `ids`
        self.cut = {caption for caption, last in zip(captions, ids[:, -1].tolist(), strict=True) if last == bench.tokenizer.eot_id}
        self.ids_TL, first, number = distinct_rows(bench.ids(captions))
        self.captions = [captions[place] for place in first]
        self.number = dict(zip(captions, number, strict=True))

    def of(self, item: Item) -> tuple[int, int]:
        """Which text each caption is."""
        return self.number[item.captions[0]], self.number[item.captions[1]]


@dataclass(frozen=True)
class ViewFeatures:
    """Features of pictures, of what the model is shown a digest, or why there is none."""

    views: list[View]

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        size, loaded, digests, problems = bench.collection.image_size, [], [], []
        for number in numbers:
            try:
                image, problem = self.views[number].load(size), ""
            except (OSError, ValueError) as error:
                image, problem = torch.zeros(3, size, size, dtype=torch.uint8), str(error) or type(error).__name__
            loaded.append(image)
            digests.append(hashlib.sha256(image.numpy().tobytes()).hexdigest())
            problems.append(problem)
        feature_BE = bench.call("image_features", image_BCHW=bench.pixels(torch.stack(loaded))).float().cpu()
        return {"feature": feature_BE.numpy(), "digest": np.array(digests), PROBLEM: np.array(problems, dtype=str)}


class Pictures:
    """The distinct pictures of some items, by what the model is shown, and their features."""

    def __init__(self, bench: Bench, chosen: CompositionSet):
        self.size, self.digest = bench.collection.image_size, chosen.digest
        self.number: dict[View, int] = {}
        self.unreadable: dict[View, str] = {}
        self.views: list[View] = []
        seen: dict[str, int] = {}
        first = []
        views = list(dict.fromkeys(view for item in chosen.items for view in item.views))
        key = {"what": "compositions: image features", "data": chosen.digest, "image_size": self.size, "transform": TRANSFORM}
        found = bench.map(ViewFeatures(views), len(views), f"look at pictures: {chosen.title}", "images", key)
        for place, (view, digest, problem) in enumerate(zip(views, found["digest"], found[PROBLEM], strict=True)):
            if problem:
                self.unreadable[view] = f"{view.file}: {problem}"
                continue
            self.number[view] = seen.setdefault(digest, len(seen))
            if self.number[view] == len(self.views):
                self.views.append(view)
                first.append(place)
        if not first:
            raise UserError(f"compositions: none of the {len(views):,} pictures of {chosen.title} can be read ({self._first()[0]})")
        self.feature_DE = torch.from_numpy(found["feature"][first])

    def _first(self, most: int = 3) -> tuple[str, ...]:
        return tuple(list(self.unreadable.values())[:most])

    def readable(self, item: Item) -> bool:
        return all(view in self.number for view in item.views)


def empty_pictures(size: int, seed: int) -> torch.Tensor:
    """(K, 3, S, S) float32 as the model takes pictures, normalised: white noise with the mean and deviation that pictures have."""
    return torch.randn(EMPTY_PICTURES, 3, size, size, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Likelihoods:
    """Of pairs; in full precision whatever was asked for: a sum of logarithms of bf16 logits can be off by more than two captions
    differ."""

    views: list[View]
    ids_TL: torch.Tensor
    pairs: list[tuple[int, int]]

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        batch = [self.pairs[number] for number in numbers]
        shown = {picture: row for row, picture in enumerate(dict.fromkeys(picture for picture, _ in batch))}
        image = bench.pixels(torch.stack([self.views[picture].load(bench.collection.image_size) for picture in shown]))
        rows = torch.tensor([shown[picture] for picture, _ in batch])
        return {"likelihood": _ask(bench, image, self.ids_TL[[text for _, text in batch]], rows)}


def likelihoods(bench: Bench, pictures: Pictures, texts: Texts, pairs: Sequence[tuple[int, int]], title: str) -> np.ndarray:
    """(Q,) float64 of (picture, text) pairs that stand in order of their pictures."""
    work = Likelihoods(pictures.views, texts.ids_TL, list(pairs))
    key = {"what": "compositions: likelihoods", "data": pictures.digest, "texts": digest_of_texts(texts.captions)}
    key |= {"image_size": pictures.size, "transform": TRANSFORM, "precision": "fp32", "pairs": len(pairs)}
    return bench.map(work, len(pairs), f"read captions: {title}", "pairs", key)["likelihood"]


@dataclass(frozen=True)
class Priors:
    """Log of the mean over empty pictures of each text's probability."""

    ids_TL: torch.Tensor

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        image_KCHW = empty_pictures(bench.collection.image_size, bench.options.seed).to(bench.device)
        ids_BL, first = self.ids_TL[numbers], torch.zeros(len(numbers), dtype=torch.int64)
        of = [_ask(bench, image[None], ids_BL, first) for image in image_KCHW]
        return {"prior": np.logaddexp.reduce(of, axis=0) - math.log(len(of))}


def priors(bench: Bench, texts: Texts, title: str) -> np.ndarray:
    """(T,) float64."""
    key = {"what": "compositions: priors", "texts": digest_of_texts(texts.captions), "seed": bench.options.seed}
    key |= {"image_size": bench.collection.image_size, "pictures": EMPTY_PICTURES, "precision": "fp32"}
    what = f"read captions without pictures: {title}"
    return bench.map(Priors(texts.ids_TL), len(texts.ids_TL), what, "texts", key)["prior"]


def _ask(bench: Bench, image_BCHW: torch.Tensor, ids_QL: torch.Tensor, image_of_Q: torch.Tensor) -> np.ndarray:
    inputs = {"image_BCHW": image_BCHW, "text_TL": ids_QL.to(bench.device), "image_of_T": image_of_Q.to(bench.device)}
    return bench.call("caption_likelihoods", exact=True, **inputs).double().cpu().numpy()


def score(bench: Bench, chosen: CompositionSet) -> Scores:
    """Everything the model says of a benchmark. UserError where not one picture can be read."""
    pictures = Pictures(bench, chosen)
    items = tuple(item for item in chosen.items if pictures.readable(item))
    unreadable = len(chosen.items) - len(items)
    if unreadable:
        log.warning(
            "%s: %d of %d items are left out, their pictures cannot be read: %s",
            *(chosen.title, unreadable, len(chosen.items), "; ".join(pictures._first())),
        )
    texts = Texts(bench, items)
    view_NP = np.array([[pictures.number[view] for view in item.views] for item in items])
    text_NC = np.array([texts.of(item) for item in items])
    image_DE = exact_unit_vectors(pictures.feature_DE)
    text_TE = exact_unit_vectors(bench.encode_texts(texts.captions, f"read captions: {chosen.title}"))
    cosine_NPC = np.concatenate(
        [
            (image_DE[view_NP[rows]][:, :, None] * text_TE[text_NC[rows]][:, None]).sum(-1).numpy()
            for rows in np.array_split(np.arange(len(items)), -(-len(items) // ITEMS_AT_ONCE))
        ]
    )
    likelihood_NPC = prior_NC = None
    if bench.config.model.captions:
        both = list(zip(view_NP.tolist(), text_NC.tolist(), strict=True))
        pairs = sorted({(view, text) for row, pair in both for view in row for text in pair})
        of = dict(zip(pairs, likelihoods(bench, pictures, texts, pairs, chosen.title).tolist(), strict=True))
        likelihood_NPC = np.array([[[of[view, text] for text in pair] for view in row] for row, pair in both])
        prior_NC = priors(bench, texts, chosen.title)[text_NC]
    counts = {
        "items": len(items),
        "pictures": len({_file(item) for item in items}),
        "unreadable": unreadable,
        "same_tokens": int((text_NC[:, 0] == text_NC[:, 1]).sum()),
        "cut": sum(any(caption in texts.cut for caption in item.captions) for item in items),
        "empty": sum(any(not caption.strip() for caption in item.captions) for item in items),
    }
    return Scores(items, cosine_NPC, likelihood_NPC, prior_NC, counts, pictures._first())


def _file(item: Item) -> Path:
    """What is drawn when pictures are resampled: the parts of one picture, and the items on it, go together."""
    return item.views[0].file

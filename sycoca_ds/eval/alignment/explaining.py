"""Grad-CAM of the words of captions, own and another picture's.

Legend: I pictures, B rows, C conditions (own phrase, another caption's), Q most phrases of a picture, L text tokens, N patches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sycoca_ds.eval.masking.scoring import Scorer
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays

TARGETS = ("similarity", "likelihood")
"""What Grad-CAM explains: the similarity of the picture and the phrase alone as a text, or the log-probability of the phrase's
words in their caption."""
CONDITIONS = 2
WORD = re.compile(r"\w+")


def phrase_text(text_L: Tensor, words_L: Tensor, eot_id: int) -> Tensor:
    """int64 (L,): the chosen tokens of a caption as a text of their own, `[SOT] w.. [EOT]` and padding; words_L: bool."""
    words = text_L[words_L][: len(text_L) - 2]
    found_L = torch.zeros_like(text_L)
    found_L[: len(words) + 2] = torch.cat([text_L[:1], words, text_L.new_tensor([eot_id])])
    return found_L


def maps(bench: Bench, model: torch.nn.Module, image_B3SS: Tensor, text_BL: Tensor, words_BL: Tensor, target: str) -> Tensor:
    """(B, N) float32 on the host: Grad-CAM of the chosen words of each row's caption. target: one of `TARGETS`."""
    eot_id, found = bench.config.model.text.eot_id, []
    if target == "similarity":
        text_BL = torch.stack([phrase_text(*row, eot_id) for row in zip(text_BL, words_BL, strict=True)])
    size = bench.options.batch_size
    for image, text, words in zip(image_B3SS.split(size), text_BL.split(size), words_BL.split(size), strict=True):
        given = {"image_BCHW": bench.pixels(image), "text_BL": text.to(bench.device)}
        if target == "likelihood":
            given["words_BL"] = words.to(bench.device)
        found.append(bench.call("grad_cam", model=model, exact=True, gradient=True, **given).cpu())
    return torch.cat(found)


@dataclass(frozen=True)
class PhraseMaps:
    """Args: first: captions. other_I: for each picture the one whose caption it is given as another one."""

    first: list[str]
    other_I: np.ndarray
    target: str
    untrained: bool

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        model, regions = bench.untrained if self.untrained else bench.model, bench.inputs.regions
        scorer = Scorer(self.first, self.other_I, regions, bench.ids, bench.config.model.text.eot_id)
        own, other = [self.first[n] for n in numbers], [self.first[self.other_I[n]] for n in numbers]
        host_CBL = bench.ids([*own, *other, *[""] * len(numbers)]).unflatten(0, (3, -1))
        words_CBQL = scorer.words(numbers, host_CBL)[:CONDITIONS]
        map_BCQN = np.full((len(numbers), CONDITIONS, regions.phrases, bench.config.model.image.patches), np.nan, np.float32)
        at = words_CBQL.any(dim=3).nonzero()
        rows = bench.resources.team.most(len(at))
        if rows:
            images = torch.stack([bench.collection.image(n) for n in numbers])
            # a rank with fewer phrases looks at the first place again, so that all ranks ask as often
            asked = torch.cat([at, at.new_zeros(rows - len(at), at.shape[1])])
            c, b, q = asked.unbind(1)
            found_XN = maps(bench, model, images[b], host_CBL[c, b], words_CBQL[c, b, q], self.target)[: len(at)]
            c, b, q = at.unbind(1)
            map_BCQN[b.numpy(), c.numpy(), q.numpy()] = found_XN.numpy()
        return {"map": map_BCQN}


def phrase_maps(bench: Bench, first: list[str], other_I: np.ndarray, target: str, model: torch.nn.Module) -> np.ndarray:
    """(I, C, Q, N) float32: Grad-CAM of every phrase of every picture, and of another caption's phrase in its place (as `Scorer`
    has them); NaN where a picture has fewer phrases."""
    untrained = model is not bench.model
    key = {"what": "grad-cam", "target": target, "untrained": untrained, "precision": "fp32"}
    key["regions"] = bench.inputs.regions.digest
    what = f"Grad-CAM by {target}{', untrained' if untrained else ''}"
    return bench.map_images(PhraseMaps(first, other_I, target, untrained), what, key)["map"]


def chosen_words(bench: Bench, number: int, most: int) -> list[tuple[str, tuple[int, ...]]]:
    """Words of a picture's first caption to look at, with the places of their tokens: its phrases where regions know them, else
    words that say something, evenly spaced."""
    caption, length = bench.collection.captions_of_image[number][0], bench.config.model.text.context_length
    regions = bench.inputs.regions
    picture = regions.pictures[number] if regions is not None else None
    if picture is not None and picture.phrases:
        ids_L = bench.ids([caption])[0]
        return [(bench.tokenizer.decode(ids_L[list(p.places)].tolist()), p.places) for p in picture.phrases[:most]]
    common = set(bench.config.model.masking.common_words)
    spans = [(m.group(), m.span()) for m in WORD.finditer(caption) if m.group().lower() not in common]
    places = bench.tokenizer.places(caption, [span for _, span in spans], length)
    found = [(word, tuple(where)) for (word, _), where in zip(spans, places, strict=True) if where]
    return _evenly(found, most)


def _evenly(found: Sequence, most: int) -> list:
    return [found[n] for n in np.unique(np.linspace(0, len(found) - 1, num=min(most, len(found))).round().astype(int))]

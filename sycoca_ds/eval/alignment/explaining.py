"""Grad-CAM of the words of captions, own and another picture's.

Legend: I pictures, B rows, C conditions (own phrase, another caption's), Q most phrases of a picture, L text tokens, N patches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_pipeline.progress import Progress
from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.kept import pieces
from sycoca_ds.eval.masking.scoring import Scorer

TARGETS = ("similarity", "likelihood")
"""What Grad-CAM explains: the similarity of the picture and the phrase alone as a text, or the log-probability of the phrase's
words in their caption."""
CONDITIONS = 2
AT_ONCE = 256
"""Pictures whose maps are kept in one piece."""
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


def phrase_maps(bench: Bench, model: torch.nn.Module, scorer: Scorer, target: str) -> np.ndarray:
    """(I, C, Q, N) float32: Grad-CAM of every phrase of every picture, and of another caption's phrase in its place (as `Scorer`
    has them); NaN where a picture has fewer phrases."""
    regions, found = bench.inputs.regions, []
    patches = bench.config.model.image.patches
    untrained = "" if model is bench.model else ", untrained"
    whose = "untrained" if untrained else "own"
    with Progress(f"Grad-CAM by {target}{untrained}", total=len(bench.collection), unit="images") as bar:
        for name, numbers in pieces(len(bench.collection), AT_ONCE):

            def made(numbers: range = numbers) -> dict[str, np.ndarray]:
                map_ICQN = np.full((len(numbers), CONDITIONS, regions.phrases, patches), np.nan, np.float32)
                for start in range(0, len(numbers), bench.options.batch_size):
                    some = list(numbers[start : start + bench.options.batch_size])
                    own, other = [scorer.captions[n] for n in some], [scorer.captions[scorer.other_I[n]] for n in some]
                    host_CBL = bench.ids([*own, *other, *[""] * len(some)]).unflatten(0, (3, -1))
                    words_CBQL = scorer.words(some, host_CBL)[:CONDITIONS]
                    at = words_CBQL.any(dim=3).nonzero()
                    if len(at):
                        c, b, q = at.unbind(1)
                        images = torch.stack([bench.collection.image(n) for n in some])
                        found_XN = maps(bench, model, images[b], host_CBL[c, b], words_CBQL[c, b, q], target)
                        map_ICQN[start + b.numpy(), c.numpy(), q.numpy()] = found_XN.numpy()
                return {"map": map_ICQN}

            found.append(bench.kept.arrays(f"grad_cam_{target}_{whose}_{name}", made)["map"])
            bar.advance(len(numbers))
    return np.concatenate(found)


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

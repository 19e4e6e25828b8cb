"""What the report shows of patches and words: scores and Grad-CAM of some words, classes of some pictures' pixels.

Legend: B pictures, W words of each, L text tokens, K names, N patches, S image side, C side of the labelled square.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sycoca_ds.eval.alignment.explaining import TARGETS, chosen_words, maps
from sycoca_ds.eval.alignment.naming import WITHOUT_CLASSES, Namer, background_of
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays

WORDS_SHOWN = 2
"""Of a picture."""


@dataclass(frozen=True)
class ShownWords:
    """Scores and Grad-CAM of some words of pictures: (B, W, N) each, NaN where a picture has fewer words or there is none."""

    numbers: list[int]
    places: list[list[tuple[int, ...]]]
    """Of the tokens of each of a picture's words."""
    others: tuple[torch.Tensor, int] | None

    def __call__(self, bench: Bench, rows: list[int]) -> Arrays:
        numbers, size = [self.numbers[row] for row in rows], bench.config.model.text.context_length
        image_B3SS = torch.stack([bench.collection.image(number) for number in numbers])
        text_BL = bench.ids([bench.collection.captions_of_image[number][0] for number in numbers])
        words_BWL = torch.zeros(len(rows), WORDS_SHOWN, size, dtype=torch.bool)
        there_BW = torch.zeros(len(rows), WORDS_SHOWN, dtype=torch.bool)
        for place, row in enumerate(rows):
            for word, where in enumerate(self.places[row]):
                words_BWL[place, word, list(where)] = there_BW[place, word] = True
        words_BWL[..., 1] |= ~there_BW  # [SOT]'s neighbour in the place of a word that is not there
        shape = (len(rows), WORDS_SHOWN, bench.config.model.image.patches)
        found = {name: torch.full(shape, torch.nan) for name in ("score", *TARGETS)}
        if bench.config.model.masking.similarity not in WITHOUT_WORDS:
            others = self.others and (self.others[0].to(bench.device), self.others[1])
            given = {"image_BCHW": bench.pixels(image_B3SS), "text_CBL": text_BL[None].to(bench.device), "others": others}
            token_BLN = bench.call("token_scores", exact=True, **given)["token_BCLN"][:, 0].float().cpu()
            found["score"] = token_BLN[:, None].masked_fill(~words_BWL[..., None], -torch.inf).amax(2)
        images, texts = image_B3SS.repeat_interleave(WORDS_SHOWN, 0), text_BL.repeat_interleave(WORDS_SHOWN, 0)
        for target in TARGETS:
            if target == "similarity" or bench.config.model.captions:
                found[target] = maps(bench, bench.model, images, texts, words_BWL.flatten(0, 1), target).view(shape)
        return {name: value.masked_fill(~there_BW[..., None], torch.nan).numpy() for name, value in found.items()}


def shown(bench: Bench) -> dict[str, np.ndarray]:
    """What the report shows: of some pictures some words, each with its scores, Grad-CAM and region; labels and guesses."""
    regions, segments = bench.inputs.regions, bench.inputs.segments
    words = {number: chosen_words(bench, number, WORDS_SHOWN) for number in bench.shown}
    numbers, others = [number for number in words if words[number]], bench.others()
    places = [[where for _, where in words[number]] for number in numbers]
    rows: dict[str, list[Any]] = {name: [] for name in ("number", "word", "region", "score", *TARGETS)}
    if numbers:
        key = {"what": "words to show", "numbers": numbers, "places": places, "precision": "fp32"}
        work = ShownWords(numbers, places, others and (others[0].cpu(), others[1]))
        found = bench.map_of_images(work, len(numbers), "look at words to show", "images", key)
    for row, number in enumerate(numbers):
        picture = regions.pictures[number] if regions is not None else None
        for place, (word, where) in enumerate(words[number]):
            known = [p.region_N for p in (picture.phrases if picture is not None else ()) if p.places == tuple(where)]
            rows["region"].append(known[0] if known else np.zeros(bench.config.model.image.patches, bool))
            rows["number"].append(number)
            rows["word"].append(word)
            for name in ("score", *TARGETS):
                rows[name].append(found[name][row, place])
    shown_words = {name: np.array(values) for name, values in rows.items()}
    return shown_words | (_shown_classes(bench) if segments is not None and segments.classes else {})


@dataclass(frozen=True)
class ShownClasses:
    """Guesses of labels of the shown pictures, (B, S, S), by every label's nearest pixel."""

    namer: Namer
    numbers: list[int]

    def __call__(self, bench: Bench, rows: list[int]) -> Arrays:
        numbers, size = [self.numbers[row] for row in rows], bench.config.model.image.image_size
        guesses = [self.namer.labels(score_KN, size)[0] for score_KN in self.namer.scores(bench, numbers)]
        return {"guess": torch.stack(guesses).cpu().numpy().astype(np.int16)}


def _shown_classes(bench: Bench) -> dict[str, np.ndarray]:
    """Labels and guesses of the shown pictures that have labels, (B, S, S), by every label's nearest pixel."""
    segments, own = bench.inputs.segments, bench.config.model.masking.similarity
    numbers = sorted(set(bench.shown) & set(segments.there))
    found: dict[str, np.ndarray] = {"label": np.array([]), "guess": np.array([])}
    if numbers:
        named_by, background = own if own not in WITHOUT_CLASSES else "global", background_of(bench.options.background)
        work = ShownClasses(Namer.of(bench, bench.model, segments.classes, background, named_by), numbers)
        key = {"what": "classes to show", "numbers": numbers, "similarity": named_by, "background": background.told}
        key |= {"segments": segments.digest, "precision": "fp32"}
        found = bench.map_of_images(work, len(numbers), "name pixels to show", "images", key)
        size = bench.config.model.image.image_size
        labels = []
        for number in numbers:
            label_CC = segments.labels(number)
            at = (np.arange(size) * 2 + 1) * len(label_CC) // (2 * size)
            labels.append(label_CC[np.ix_(at, at)])
        found = {"label": np.array(labels), **found}
    return {"labelled": np.array(numbers), "class_name": np.array(segments.classes)} | found

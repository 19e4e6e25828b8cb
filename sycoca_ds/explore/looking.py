"""What is shown of one picture and two captions, part by part: numbers and pictures as JSON has them.

Every number is the evaluation's: of a sample with its own captions those that its tasks give for it.
Legend: I compared pictures, T their captions, E embedding width, g patches a side.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError, one_line
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS
from sycoca_ds.eval.pictures import hide, mask_overlay
from sycoca_ds.eval.report.galleries import data_uri
from sycoca_ds.eval.stats.cosines import exact_unit_vectors, top_candidates
from sycoca_ds.explore.keeper import Compared, Held
from sycoca_ds.inference.index import best
from sycoca_ds.inference.model import Model
from sycoca_ds.inference.pictures import read_picture, thumbnail

NEAREST = 6
"""Neighbours and captions that are listed."""
MOST_GONE = 100
"""Pictures of a folder that cannot be read any more: so many are passed over."""
DIGITS = 5
"""Of scores of patches; other numbers are whole."""


class Lacking(Exception):
    """A sentence that stands in a part's place: what the model or the data lacks."""

    def __init__(self, sentence: str, wait: bool = False):
        super().__init__(sentence)
        self.wait = wait
        """Whether it is there later."""


@dataclass(frozen=True)
class Question:
    """One picture and what is said of it."""

    picture: np.ndarray
    """uint8 (S, S, 3): as the model is shown it."""
    number: int | None
    """Of the sample that it is."""
    caption: str
    other: str
    """A wrong caption; "" compares with none."""


@dataclass(frozen=True)
class Decoding:
    beams: int = 4
    max_tokens: int = 30


class Looking:
    """One question to one model."""

    def __init__(self, held: Held, compared: Compared, question: Question, decoding: Decoding):
        self.held, self.compared, self.question, self.decoding = held, compared, question, decoding

    @property
    def _model(self) -> Model:
        return self.held.model

    @cached_property
    def _texts(self) -> list[str]:
        """The caption, and the wrong one where there is one."""
        _ = self._model.loaded.tokenizer  # or an error that says so
        return [text for text in (self.question.caption, self.question.other) if text]

    @cached_property
    def _pictures(self) -> list[np.ndarray]:
        return [self.question.picture] * len(self._texts)

    @cached_property
    def _image_E(self) -> torch.Tensor:
        vectors, number = self.held.vectors, self.question.number
        if vectors is not None and number is not None and number < len(vectors.image_IE):
            return vectors.image_IE[number]  # to the last bit what it is compared with as one of the set
        return torch.from_numpy(self._model.encode_image(self.question.picture)[0])

    @cached_property
    def _text_CE(self) -> torch.Tensor:
        return torch.from_numpy(self._model.encode_text(self._texts))

    # ---- the parts ----

    def similarity(self) -> dict[str, Any]:
        """Cosine of the picture with each caption."""
        cosine_C = (exact_unit_vectors(self._image_E[None]) @ exact_unit_vectors(self._text_CE).T)[0]
        return {"cosines": cosine_C.tolist()}

    def ranks(self) -> dict[str, Any]:
        """Where the captions stand among those of the compared pictures, and the picture among these, counted from 1."""
        samples, vectors = self.compared.samples, self._vectors()
        if vectors.text_TE is None:
            raise Lacking("Without a tokenizer the captions of the pictures cannot be compared.")
        found = []
        for text, text_E in zip(self._texts, self._text_CE, strict=True):
            places = samples.places(text, self.question.number)
            caption = _rank(self._image_E, vectors.text_TE, places, text_E)
            number = self.question.number
            own = [number] if number is not None and number < len(vectors.image_IE) else []
            asked_E = vectors.text_TE[places[0]] if places else text_E
            found.append({"caption": caption, "picture": _rank(asked_E, vectors.image_IE, own, self._image_E)})
        nearest = top_candidates(self._image_E[None], vectors.text_TE, NEAREST)[0].tolist()
        cosine_T = _cosines(self._image_E, vectors.text_TE[nearest])
        listed = [
            {
                "text": samples.captions[place],
                "cosine": cosine,
                "own": int(samples.image_of_text_T[place]) == self.question.number,
            }
            for place, cosine in zip(nearest, cosine_T, strict=True)
        ]
        return {"ranks": found, "captions": len(samples.captions), "pictures": samples.compared, "nearest": listed}

    def words(self) -> dict[str, Any]:
        """Each word's score of each patch, row by row."""
        own = self._model.config.masking.similarity
        similarity = "token_max" if own in WITHOUT_WORDS else own
        asked = self._among().attention(self._pictures, self._texts, similarity)
        captions = [
            {
                "words": one.words,
                "scores": [np.round(scores.ravel().astype(np.float64), DIGITS).tolist() for scores in one.word_scores],
            }
            for one in asked
        ]
        shown = {"captions": captions, "side": asked[0].scores.shape[0], "similarity": similarity}
        return shown | ({"note": f"This model's masks go by '{own}', which knows no words."} if own != similarity else {})

    def masks(self) -> dict[str, Any]:
        """What each caption hides from TG-MIM and from captioning."""
        config = self._model.config
        if config.family != "sycoca" or not (config.reconstructs or config.masking.low_ratio > 0):
            raise Lacking(f"This is a {_called(self._model)}: it was trained without masks and hides nothing.")
        found = self._among().masks(self._pictures, self._texts)
        shown: dict[str, Any] = {"patches": int(found[0].scores.size)}
        if config.masking.mask_by == "random":
            shown["note"] = "This run hides patches by chance; shown is what its captions would choose."
        for name in ("mim", "captioning"):
            hidden = [getattr(one, name) for one in found]
            if hidden[0] is None:
                shown[name] = None
                continue
            both = float((hidden[0] & hidden[-1]).sum() / max(1, hidden[0].sum())) if len(hidden) > 1 else None
            shown[name] = {
                "pictures": [data_uri(mask_overlay(self.question.picture, one.ravel())) for one in hidden],
                "hidden": int(hidden[0].sum()),
                "same": both,
            }
        return shown

    def reconstruction(self) -> dict[str, Any]:
        """The patches that fit the caption best, rebuilt by it and by the wrong one; L1 is the evaluation's."""
        config = self._model.config
        if not config.reconstructs:
            raise Lacking(f"This is a {_called(self._model)}: it has no image decoder and rebuilds nothing.")
        first = [self._texts[0]] * len(self._texts)
        found = self._among().reconstruct(self._pictures, first, self._texts)
        seen = hide(self.question.picture, found[0].hidden.ravel())
        shown = {"seen": data_uri(seen), "hidden": int(found[0].hidden.sum()), "patches": int(found[0].hidden.size)}
        shown["rebuilt"] = [{"picture": data_uri(one.rebuilt), "error": one.error} for one in found]
        if config.masking.mim == "plain":
            shown["note"] = "This model rebuilds without reading a caption: both pictures are the same."
        return shown

    def captions(self) -> dict[str, Any]:
        """What the model writes."""
        if not self._model.config.captions:
            raise Lacking(f"This is a {_called(self._model)}: it has no text decoder and writes no captions.")
        most = min(self.decoding.max_tokens, self._model.context_length - 1)
        beams = [1, self.decoding.beams] if self.decoding.beams > 1 else [1]
        written = [self._model.caption(self.question.picture, count, most)[0] for count in beams]
        return {"written": [{"beams": count, "text": text} for count, text in zip(beams, written, strict=True)], "most": most}

    def neighbours(self) -> dict[str, Any]:
        """The nearest pictures among the samples, itself left out, and in the folder; one may be lacking."""
        if self.compared.folder is None:
            return {"samples": self._near_samples()}
        shown: dict[str, Any] = {"folder_name": str(self.compared.folder), "wait": False}
        for row, found in (("samples", self._near_samples), ("folder", self._near_in_folder)):
            try:
                shown |= {row: found()}
            except (Lacking, UserError) as error:
                shown[f"{row}_lack"], wait = _sentence(error)
                shown["wait"] |= wait
        return shown

    def _near_samples(self) -> list[dict[str, Any]]:
        samples, image_IE = self.compared.samples, self._vectors().image_IE
        nearest = top_candidates(self._image_E[None], image_IE, NEAREST + 1)[0].tolist()
        nearest = [number for number in nearest if number != self.question.number][:NEAREST]
        return [
            _neighbour(samples.collection.pixels(number), samples.caption(number), cosine)
            for number, cosine in zip(nearest, _cosines(self._image_E, image_IE[nearest]), strict=True)
        ]

    def _near_in_folder(self) -> dict[str, Any]:
        index = self.held.index
        if index is None:
            raise self._folder_lacks()
        found, gone = [], []
        for name, cosine in best(index, self._image_E.numpy(), NEAREST + MOST_GONE):
            try:
                picture = read_picture(index.folder / name, self._model.image_size)
            except ValueError as error:
                gone.append(f"{name} ({error})")
                continue
            found.append(_neighbour(picture, name, cosine))
            if len(found) == NEAREST:
                break
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        note = f"Not shown, since it cannot be read any more: {gone[0]}{more}." if gone else ""
        return {"pictures": found, "note": note}

    # ---- what they share ----

    def _among(self) -> Model:
        """The model, comparing this picture's patches with those of the compared pictures, where its scores do such."""
        if self._model.config.masking.similarity != "centred_over_pictures":
            return self._model
        vectors = self._vectors()
        total_E, pictures = vectors.patch_sum_E, len(vectors.image_IE)
        if self.question.number is None or self.question.number >= pictures:
            total_E, pictures = total_E + torch.from_numpy(self._model.patch_sums(self.question.picture)[0]), pictures + 1
        return self._model.among(total_E, pictures)

    def _vectors(self):
        if self.compared.samples is None:
            raise Lacking(self.compared.why)
        if self.held.vectors is None:
            raise self._not_yet()
        return self.held.vectors

    def _not_yet(self) -> Lacking:
        held = self.held
        if "samples" in held.problems:
            return Lacking(f"The pictures to compare with cannot be read: {held.problems['samples']}")
        return Lacking(f"The pictures to compare with are still being looked at ({held.done} of {held.total}).", wait=True)

    def _folder_lacks(self) -> Lacking:
        held = self.held
        if "index" in held.problems:
            return Lacking(f"No neighbours from --index: {held.problems['index']}")
        so_far = f" ({held.done} so far)" if held.stage == "index" else ""
        return Lacking(f"The pictures in {self.compared.folder} are still being looked at{so_far}.", wait=True)


PARTS = ("similarity", "words", "masks", "reconstruction", "captions", "ranks", "neighbours")
"""In the order in which they are computed, methods of `Looking`."""


def answers(looking: Looking, parts: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Part by part; one that fails says why in a sentence, and the others go on."""
    for part in parts:
        yield {"part": part, **_answered(getattr(looking, part))}


def _answered(look: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        found = look()
        _check_finite(found)
        return found
    except (Lacking, UserError) as error:
        lacks, wait = _sentence(error)
        return {"lacks": lacks, "wait": wait}
    except Exception as error:  # out of memory, a decoder that fails on these pixels: the page and the other parts go on
        traceback.print_exc(file=sys.stderr)
        return {"lacks": f"This could not be computed: {type(error).__name__}: {one_line(error)}", "failed": True}


def _sentence(error: Lacking | UserError) -> tuple[str, bool]:
    """(what stands in the place of what is lacking, whether it is there later)."""
    if isinstance(error, Lacking):
        return str(error), error.wait
    return f"{str(error)[:1].upper()}{str(error)[1:]}.", False


def _check_finite(value: Any) -> None:
    """Raises `Lacking`: numbers that no JSON has."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            _check_finite(one)
    elif isinstance(value, float) and not np.isfinite(value):
        raise Lacking("The model's answers are not finite: the checkpoint is damaged or diverged.")


def _rank(query_E: torch.Tensor, candidate_CE: torch.Tensor, own: list[int], own_E: torch.Tensor) -> int:
    """Rank from 1 of the best of the candidates at `own`, or, where there are none, of `own_E` put behind them."""
    if not own:
        candidate_CE, own = torch.cat([candidate_CE, own_E[None]]), [len(candidate_CE)]
    order = top_candidates(query_E[None], candidate_CE, len(candidate_CE))[0].tolist()
    return 1 + min(order.index(place) for place in own)


def _cosines(query_E: torch.Tensor, candidate_CE: torch.Tensor) -> list[float]:
    return (exact_unit_vectors(query_E[None]) @ exact_unit_vectors(candidate_CE).T)[0].tolist()


def _neighbour(picture: np.ndarray, text: str, cosine: float) -> dict[str, Any]:
    return {"picture": data_uri(thumbnail(picture)), "text": text, "cosine": cosine}


def _called(model: Model) -> str:
    mim = model.config.masking.mim
    return f"{model.family} model" + (f" with masking.mim = {mim}" if model.family == "sycoca" else "")

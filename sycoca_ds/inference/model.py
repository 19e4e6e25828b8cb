"""A trained model and what can be asked of it. Every answer is the evaluation's: the same preparation of pictures and captions, the
same forward (`eval/runner/bench.py`). A batch's size changes speed and memory; numbers by float rounding only.

Legend: I pictures, T texts, E embedding width, W words.
"""

from __future__ import annotations

import copy
import dataclasses
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import check_model
from sycoca_ds.engine.checkpoint.weights import Loaded, load_for_inference
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.pictures import paste, patches_to_picture
from sycoca_ds.eval.runner.bench import Bench, ImageFeatures, Inputs, PatchSums, Resources, TextFeatures
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.tasks.captioning import Captions, decoding_of
from sycoca_ds.evaluation.options import choose_device, choose_precision
from sycoca_ds.inference.answers import (
    Attention,
    CaptionsAndFeatures,
    Masks,
    MaskScores,
    Rebuilt,
    Reconstruction,
    TokenScores,
)
from sycoca_ds.inference.pictures import GivenPictures, as_list
from sycoca_ds.model.masking.patches import split_patches
from sycoca_ds.model.text_encoder import PAD_ID

if TYPE_CHECKING:
    from sycoca_ds.eval.collection import PictureSet
    from sycoca_ds.inference.pictures import Given

WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
BATCH_SIZE = 64


class Model:
    """A trained model. Made by `sycoca_ds.load`.

    Pictures are paths, bytes, Pillow images or uint8 arrays (RGB, RGBA or grey), one or a list; texts a string or a list. One
    picture that cannot be read is an error that names it.
    """

    def __init__(self, loaded: Loaded, device: torch.device, precision: str):
        self.loaded, self.device, self.precision = loaded, device, precision
        self.told = False
        """Whether progress is reported on stderr."""
        self._others: tuple[torch.Tensor, int] | None = None

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.loaded.model.parameters())
        step = "" if self.step is None else f", step {self.step}"
        return (
            f"<{self.family}, {parameters / 1e6:.1f} M parameters{step}, {self.precision} on {self.device}, {self.loaded.folder}>"
        )

    @property
    def config(self):
        """The model's configuration (`sycoca_ds.config.ModelConfig`)."""
        return self.loaded.config.model

    @property
    def family(self) -> str:
        """clip, coca or sycoca."""
        return self.config.family

    @property
    def step(self) -> int | None:
        """Of the run, where it is known."""
        return self.loaded.state.get("step")

    @property
    def digest(self) -> str:
        """sha256 that names the weights."""
        return f"{self.loaded.digest}{'' if self.loaded.ema_decay is None else '-ema'}"

    @property
    def image_size(self) -> int:
        """S: side of the square that is cut from each picture, in pixels."""
        return self.config.image.image_size

    @property
    def context_length(self) -> int:
        """Most tokens of a text, its marks of start and end among them."""
        return self.config.text.context_length

    # ---- vectors ----

    def encode_image(self, images: Given | Sequence[Given], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """(I, E) float32, of length 1.

        Raises:
            UserError: a picture that cannot be read, by name.
        """
        bench = self._bench(images, batch_size)
        return bench.map_images(ImageFeatures(), "look at pictures", {})["feature"] if len(bench.collection) else self._no_vectors

    def encode_text(self, texts: str | Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """(T, E) float32, of length 1. A text longer than the context length is cut, with a warning.

        Raises:
            UserError: no tokenizer came with the model; something that is no string.
        """
        captions = self._texts(texts)
        bench = self._bench([], batch_size)
        return bench.map(TextFeatures(captions), len(captions), "read texts", "texts")["feature"] if captions else self._no_vectors

    @property
    def _no_vectors(self) -> np.ndarray:
        return np.zeros((0, self.config.embed_dim), np.float32)

    def similarity(self, images: Given | Sequence[Given], texts: str | Sequence[str], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """(I, T) float32: cosines of every picture and every text.

        Raises:
            UserError: as `encode_image` and `encode_text`.
        """
        return self.encode_image(images, batch_size) @ self.encode_text(texts, batch_size).T

    # ---- captions ----

    def caption(
        self, images: Given | Sequence[Given], beams: int = 1, max_tokens: int = 30, batch_size: int = BATCH_SIZE
    ) -> list[str]:
        """A caption of each picture, I strings.

        Args:
            beams: of the beam search, ranked by the mean log-probability of a token; 1 is greedy.
            max_tokens: of the caption, at most one less than the context length.

        Raises:
            UserError: the model has no text decoder, or no tokenizer; beams or tokens that are no whole number of at least 1; a
                picture that cannot be read.
        """
        return self._captioned(Captions, images, beams, max_tokens, batch_size).get("caption", np.zeros(0)).tolist()

    def caption_and_embed(
        self, images: Given | Sequence[Given], beams: int = 1, max_tokens: int = 30, batch_size: int = BATCH_SIZE
    ) -> tuple[list[str], np.ndarray]:
        """(I captions, (I, E) float32 of length 1): what `caption` and `encode_image` give, from one pass over each picture.

        Args:
            beams, max_tokens: as of `caption`.

        Raises:
            UserError: as `caption`.
        """
        found = self._captioned(CaptionsAndFeatures, images, beams, max_tokens, batch_size)
        return (found["caption"].tolist(), found["feature"]) if found else ([], self._no_vectors)

    def _captioned(self, work: type[Captions], images: Any, beams: int, max_tokens: int, batch_size: int) -> Arrays:
        self._needs(self.config.captions, "captions", "text")
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
            raise UserError(f"max_tokens = {max_tokens!r}: expected a whole number of at least 1")
        _ = self.loaded.tokenizer
        bench = self._bench(images, batch_size, beams=beams, caption_tokens=max_tokens)
        how = decoding_of(bench)
        return bench.map_images(work(**how), "write captions", {}) if len(bench.collection) else {}

    # ---- what a text has to do with the patches ----

    def reconstruct(
        self,
        images: Given | Sequence[Given],
        texts: str | Sequence[str],
        guides: str | Sequence[str] | None = None,
        mask_by: str = "attention",
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
    ) -> list[Reconstruction]:
        """Hides the patches that fit the text best and rebuilds them, a picture with each text.

        Args:
            texts: one a picture, or one for all.
            guides: the texts that the image decoder reads; default those that chose the hidden patches.
            mask_by: attention, or random.
            seed: of random masks; they depend on a picture's place and name in this call as well, so that one given twice has two.

        Raises:
            UserError: the model has no image decoder, or no tokenizer; another `mask_by`; texts that are not as many as pictures; a
                picture that cannot be read.
        """
        self._needs(self.config.reconstructs, "rebuilt pictures", "image")
        if mask_by not in ("attention", "random"):
            raise UserError(f"mask_by = {mask_by!r}: expected attention or random")
        bench = self._bench(images, batch_size, seed=seed)
        texts = self._one_each(texts, len(bench.collection))
        guides = texts if guides is None else self._one_each(guides, len(bench.collection))
        if not len(bench.collection):
            return []
        found, side = bench.map_images(Rebuilt(texts, guides, mask_by), "rebuild patches", {}), self._grid
        return [
            Reconstruction(
                picture,
                hidden.reshape(side),
                paste(picture, patches_to_picture(torch.from_numpy(pixels)), hidden),
                scores.reshape(side),
                float(error),
            )
            for picture, pixels, hidden, scores, error in zip(
                map(bench.collection.picture, range(len(bench.collection))),
                *(found[name] for name in ("pixels", "hidden", "scores", "error")),
                strict=True,
            )
        ]

    def _can_score(self, similarity: str) -> bool:
        masking = dataclasses.replace(self.config.masking, similarity=similarity)
        try:
            check_model(dataclasses.replace(self.config, masking=masking))
        except UserError:
            return False
        return True

    def attention(
        self,
        images: Given | Sequence[Given],
        texts: str | Sequence[str],
        similarity: str | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[Attention]:
        """How well the patches fit the words, a picture with each text. Always in full precision.

        Args:
            texts: one a picture, or one for all.
            similarity: a value of model.masking.similarity that knows words; default the model's own. `centred_over_pictures`
                compares the pictures of this call with each other.

        Raises:
            UserError: a similarity without words, or that this model lacks; no tokenizer; texts that are not as many as pictures; a
                picture that cannot be read.
        """
        from sycoca_ds.eval.suite import SIMILARITIES

        similarity = similarity or self.config.masking.similarity
        known = [name for name in SIMILARITIES if name not in WITHOUT_WORDS]
        known = [name for name in known if self._can_score(name)]
        if similarity not in known:
            raise UserError(f"similarity = {similarity!r}: no scores of words with this model; expected one of {', '.join(known)}")
        bench = self._bench(images, batch_size)
        texts = self._one_each(texts, len(bench.collection))
        if not len(bench.collection):
            return []
        found = bench.map_images(TokenScores(texts, similarity), "compare patches with words", {})
        joined, attentions = np.mean if similarity == "cross_attention" else np.max, []
        for number, (text, patch_N, token_LN) in enumerate(zip(texts, found["patch"], found["token"], strict=True)):
            spans = [match.span() for match in WORD.finditer(text)]
            places = self.loaded.tokenizer.places(text, spans, self.context_length)
            told = [(text[slice(*span)], joined(token_LN[at], axis=0)) for span, at in zip(spans, places, strict=True) if at]
            scores_WN = np.array([scores for _, scores in told], np.float32).reshape(len(told), *self._grid)
            words = [word for word, _ in told]
            attentions.append(Attention(words, scores_WN, patch_N.reshape(self._grid), bench.collection.picture(number)))
        return attentions

    def masks(self, images: Given | Sequence[Given], texts: str | Sequence[str], batch_size: int = BATCH_SIZE) -> list[Masks]:
        """What training hides for a text where masks are attentive, a picture with each text. Always in full precision.

        Args:
            texts: one a picture, or one for all.

        Raises:
            UserError: the model hides nothing, or has no tokenizer; texts that are not as many as pictures; a picture that cannot
                be read.
        """
        masking = self.config.masking
        hides = self.config.family == "sycoca" and masking.low_ratio > 0
        if not (hides or self.config.reconstructs):
            raise UserError(f"masks: the model in {self.loaded.folder} ({self.family}) was trained without: it hides no patches")
        bench = self._bench(images, batch_size)
        texts = self._one_each(texts, len(bench.collection))
        if not len(bench.collection):
            return []
        score_IN = bench.map_images(MaskScores(texts), "score patches", {})["score"]

        def hidden(ratio: float, which: str) -> np.ndarray:
            return split_patches(torch.from_numpy(score_IN), ratio, which)[1].numpy().reshape(-1, *self._grid)

        nothing = [None] * len(score_IN)
        mim_I = hidden(masking.high_ratio, "highest") if self.config.reconstructs else nothing
        captioning_I = hidden(masking.low_ratio, "lowest") if hides else nothing
        pictures = map(bench.collection.picture, range(len(score_IN)))
        return [Masks(*each) for each in zip(pictures, score_IN.reshape(-1, *self._grid), mim_I, captioning_I, strict=True)]

    def patch_sums(self, images: Given | Sequence[Given], batch_size: int = BATCH_SIZE) -> np.ndarray:
        """(I, E) float32: of each picture the sum over its patches in the shared space, from which `among` is made.

        Raises:
            UserError: a picture that cannot be read, by name.
        """
        bench = self._bench(images, batch_size)
        return bench.map_images(PatchSums(False), "look at patches", {})["sum"] if len(bench.collection) else self._no_vectors

    def among(self, sum_E: torch.Tensor, pictures: int) -> Model:
        """This model, where the similarity `centred_over_pictures` compares with other pictures than those of a call.

        Args:
            sum_E: the `patch_sums` of all of them added up; what a call is given has to be among them. pictures: how many.
        """
        other = copy.copy(self)
        other._others = (sum_E.to(self.device), pictures)
        return other

    # ---- what all of them share ----

    @property
    def _grid(self) -> tuple[int, int]:
        side = self.config.image.image_size // self.config.image.patch_size
        return side, side

    def _needs(self, there: bool, what: str, decoder: str) -> None:
        if not there:
            raise UserError(f"{what}: the model in {self.loaded.folder} ({self.family}) has no {decoder} decoder")

    def bench(self, pictures: PictureSet, batch_size: int = BATCH_SIZE, **options: Any) -> Bench:
        """The evaluation's way to the model, on these pictures."""
        suite = SuiteOptions(batch_size=batch_size, precision=self.precision, **options)
        tools = {"inputs": Inputs(suite), "resources": Resources(told=self.told)}
        loaded = self.loaded
        bench = Bench(loaded.model, loaded.config, loaded.known_tokenizer, pictures, self.device, **tools)
        if self._others is not None:
            bench._others[bench.model] = self._others
        return bench

    def _bench(self, images: Any, batch_size: int, **options: Any) -> Bench:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size = {batch_size!r}: expected a whole number of at least 1")
        return self.bench(GivenPictures(as_list(images), self.image_size), batch_size, **options)

    def _one_each(self, texts: str | Sequence[str], pictures: int) -> list[str]:
        """Checked texts, as many as pictures."""
        given = self._texts(texts)
        if len(given) == 1:
            return given * pictures
        if len(given) != pictures:
            raise UserError(f"{len(given)} texts for {pictures} pictures: expected one each, or one for all")
        return given

    def _texts(self, texts: str | Sequence[str]) -> list[str]:
        """As a list; says which are cut. Raises `UserError`: no text, or no tokenizer."""
        whole = isinstance(texts, str | bytes) or not isinstance(texts, Iterable)
        given = [texts] if whole else list(texts)
        for text in given:
            if not isinstance(text, str):
                raise UserError(f"a text of type {type(text).__name__}: expected a string, or a list of them")
        if given:
            long = self.loaded.tokenizer.encode(given, self.context_length + 1)[:, -1] != PAD_ID
            if long.any():
                first = given[int(long.argmax())]
                warnings.warn(
                    f"{int(long.sum())} of {len(given)} texts are longer than this model's {self.context_length} tokens and are "
                    f"cut, for example {first[:60]!r}",
                    stacklevel=3,
                )
        return given


def open_model(path: str | Path, device: str = "auto", precision: str = "auto", *, ema: bool = False) -> Model:
    """`sycoca_ds.load`. Raises `UserError`: nothing there, damaged, no such device or precision."""
    where = choose_device(device)
    return Model(load_for_inference(path, where, ema=ema), where, choose_precision(precision, where))

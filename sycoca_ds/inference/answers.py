"""What a model answers, and how the evaluation's way to it (`eval/runner/bench.py`) is asked for that.

Legend: W words, g patches a side, S image side in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.tasks.captioning import Captions
from sycoca_ds.eval.tasks.reconstruction import mask_keys


@dataclass(frozen=True)
class Reconstruction:
    """A picture whose patches were hidden and rebuilt with the help of a text (TG-MIM)."""

    picture: np.ndarray
    """uint8 (S, S, 3): what the model is shown, whole."""
    hidden: np.ndarray
    """bool (g, g): the patches it did not see."""
    rebuilt: np.ndarray
    """uint8 (S, S, 3): `picture` with the hidden patches as the model fills them."""
    scores: np.ndarray
    """float32 (g, g): how well each patch fits the text, by which the hidden ones were chosen."""
    error: float
    """Mean absolute error over the hidden patches, in normalised pixels."""


@dataclass(frozen=True)
class Attention:
    """How well the patches of a picture fit the words of a text (paper, equation 7)."""

    words: list[str]
    """The text's words that are within the context length."""
    word_scores: np.ndarray
    """float32 (W, g, g): of each word the best of its tokens; with `cross_attention` their mean."""
    scores: np.ndarray
    """float32 (g, g): the score of each patch, by which training chooses what is hidden."""
    picture: np.ndarray
    """uint8 (S, S, 3): what the model is shown."""


@dataclass(frozen=True)
class Masks:
    """Which patches a text hides when masks are attentive (paper, section 3.3)."""

    picture: np.ndarray
    """uint8 (S, S, 3): what the model is shown."""
    scores: np.ndarray
    """float32 (g, g): by which the patches are chosen."""
    mim: np.ndarray | None
    """bool (g, g): those hidden from TG-MIM, which rebuilds them; the best. None: the model has no image decoder."""
    captioning: np.ndarray | None
    """bool (g, g): those hidden from captioning; the worst. None: none are."""


@dataclass(frozen=True)
class CaptionsAndFeatures(Captions):
    """`Captions`, and the image vectors of the same pass."""

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        return dict(zip(("caption", "feature"), self.written(bench, numbers), strict=True))


@dataclass(frozen=True)
class Rebuilt:
    texts: list[str]
    guides: list[str]
    mask_by: str

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        images = bench.images(numbers)
        found = bench.call(
            "reconstruct",
            image_BCHW=images,
            text_BL=bench.tokens([self.texts[n] for n in numbers]),
            guide_BL=bench.tokens([self.guides[n] for n in numbers]),
            mask_by=self.mask_by,
            key_B=mask_keys(bench)[numbers].to(bench.device),
            others=bench.others(),
        )
        shown = {"pixels": "pixels_BNP", "hidden": "hidden_BN", "scores": "scores_BN", "error": "l1_B"}
        return {name: found[key].cpu().numpy() for name, key in shown.items()}


@dataclass(frozen=True)
class TokenScores:
    texts: list[str]
    similarity: str

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        given = {"text_CBL": bench.tokens([self.texts[n] for n in numbers])[None], "similarity": self.similarity}
        others = bench.others(self.similarity)
        found = bench.call("token_scores", exact=True, image_BCHW=bench.images(numbers), others=others, **given)
        return {"patch": found["score_BCN"][:, 0].cpu().numpy(), "token": found["token_BCLN"][:, 0].cpu().numpy()}


@dataclass(frozen=True)
class MaskScores:
    texts: list[str]

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        text_CBL = bench.tokens([self.texts[n] for n in numbers])[None]
        score_BCN = bench.call(
            "masking_scores", exact=True, image_BCHW=bench.images(numbers), text_CBL=text_CBL, others=bench.others()
        )
        return {"score": score_BCN[:, 0].cpu().numpy()}

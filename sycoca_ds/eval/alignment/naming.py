"""Zero-shot segmentation: a patch gets the class whose name fits it best (as MaskCLIP, Zhou et al. 2022).

Every score here is a product of the patch with one vector a class, so names are read once: with `global` the mean of its prompts'
global vectors, as in zero-shot classification; with scores by token the mean over the tokens of its name. (The maximum of eq. 7
over them would give "red star" and "red heart" the same score wherever "red" fits best.)

Legend: B pictures, N patches, K classes, X names of what is no class, M templates, L text tokens, E embedding width, C side of the
labelled square.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.errors import UserError
from data_pipeline.progress import Progress
from sycoca_ds.eval.bench import Bench
from sycoca_ds.eval.pictures import grid_side
from sycoca_ds.eval.tasks.classification import class_weights
from sycoca_ds.model.scores import centred_over_patches, mean_of_others

TEMPLATES = ("a {c}", "a picture of a {c}", "a photo of a {c}")
SPOKEN = {"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}
"""PASCAL VOC's classes of two words, as people write them."""
WITHOUT_CLASSES = {
    "saliency": "it compares patches with no text",
    "cross_attention": "where a decoder looks is a share of the picture: it says which patch fits a word, not which word a patch",
}
"""Scores that cannot choose between names, and why."""


@dataclass(frozen=True)
class Background:
    """How a pixel becomes background: by words that compete with the classes, or where no class is sure."""

    words: tuple[str, ...]
    """The best of them counts."""
    threshold: float | None
    """Of the most likely class's probability, softmax at the model's own temperature (GroupViT, Xu et al. 2022)."""

    @property
    def told(self) -> str:
        if self.threshold is not None:
            return f"a class less likely than {self.threshold:g}"
        return f"what {' or '.join(map(repr, self.words))} fits best"


def background_of(option: str) -> Background:
    """Of `--background`. UserError: neither words nor a number between 0 and 1."""
    try:
        threshold = float(option)
    except ValueError:
        words = tuple(word.strip() for word in option.split(",") if word.strip())
        if words:
            return Background(words, None)
        threshold = -1.0
    if not 0 < threshold < 1:
        raise UserError(f"--background {option}: expected words with commas between, or a probability between 0 and 1")
    return Background((), threshold)


def name_vectors(bench: Bench, model: torch.nn.Module, names: list[str], similarity: str) -> Tensor:
    """(len(names), E) float32 on the host: a patch's score of a name is its product with that."""
    if similarity == "global":
        encode = partial(_encode, bench, model, "text_features", similarity)
        return class_weights(lambda prompts: encode(prompts)[0], names, TEMPLATES)
    prompts = [template.replace("{c}", name) for name in names for template in TEMPLATES]
    token_XLE, ids_XL = _encode(bench, model, "token_features", similarity, prompts)
    word_XL1 = torch.zeros(*ids_XL.shape, 1)
    spans = [(template.index("{c}"), template.index("{c}") + len(name)) for name in names for template in TEMPLATES]
    for row, (prompt, span) in enumerate(zip(prompts, spans, strict=True)):
        (places,) = bench.tokenizer.places(prompt, [span], ids_XL.shape[1])
        if not places:
            raise UserError(f"alignment: the tokenizer leaves nothing of the class name in {prompt!r}")
        word_XL1[row, places] = 1 / len(places)
    return (token_XLE * word_XL1).sum(dim=1).unflatten(0, (len(names), -1)).mean(dim=1)


def _encode(bench: Bench, model: torch.nn.Module, task: str, similarity: str, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """(features, ids) on the host."""
    ids_XL, found = bench.ids(prompts), []
    inputs = {} if task == "text_features" else {"similarity": similarity}
    with Progress("read class names", total=len(prompts), unit="texts") as bar:
        for ids_BL in ids_XL.split(bench.options.batch_size):
            found.append(bench.call(task, model=model, exact=True, text_BL=ids_BL.to(bench.device), **inputs).float().cpu())
            bar.advance(len(ids_BL))
    return torch.cat(found), ids_XL


class Namer:
    """Scores of patches for the background's words and for every class, of one model by one similarity."""

    def __init__(self, bench: Bench, model: torch.nn.Module, classes: tuple[str, ...], background: Background, similarity: str):
        self.bench, self.model, self.similarity, self.background = bench, model, similarity, background
        names = [*background.words, *(SPOKEN.get(name, name) for name in classes)]
        self.vector_KE = name_vectors(bench, model, names, similarity).to(bench.device)
        self.others = bench.others(similarity, model)
        self.scale = float(model.logit_scale.detach().float().exp().clamp(max=bench.config.model.max_logit_scale))

    def scores(self, image_B3SS: Tensor) -> Tensor:
        """(B, X + K, N) float32."""
        image_BCHW = self.bench.pixels(image_B3SS)
        patch_BNE = self.bench.call(
            "patch_features", model=self.model, exact=True, image_BCHW=image_BCHW, similarity=self.similarity
        ).float()
        score_BKN = self.vector_KE @ patch_BNE.transpose(1, 2)
        if self.similarity == "centred_token_max":
            return centred_over_patches(score_BKN)
        if self.others is not None:
            other_BE = mean_of_others(patch_BNE.sum(dim=1), *self.others, patch_BNE.shape[1])
            return score_BKN - (other_BE @ self.vector_KE.T)[:, :, None]
        return score_BKN

    def labels(self, score_KN: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Of one picture's scores: the label of each pixel, 0 the background and k the k-th class, and the same without a
        background, 1 to K; (C, C) int64 each. Scores are interpolated to pixels (bilinear) and compared there, as MaskCLIP does."""
        size, words = grid_side(score_KN.shape[1]), len(self.background.words)
        grid_1Kgg = score_KN.unflatten(1, (size, size))[None]
        pixel_KCC = F.interpolate(grid_1Kgg, (side, side), mode="bilinear", align_corners=False)[0]
        best_CC, object_CC = pixel_KCC[words:].max(dim=0)
        if words:
            nothing_CC = pixel_KCC[:words].amax(dim=0) >= best_CC
        else:
            nothing_CC = (self.scale * pixel_KCC).softmax(dim=0).amax(dim=0) < self.background.threshold
        return torch.where(nothing_CC, 0, object_CC + 1), object_CC + 1

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

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.eval.alignment.segmenting import areas, confusion, packed, unpacked
from sycoca_ds.eval.pictures import grid_side
from sycoca_ds.eval.runner.bench import Bench, digest_of_texts
from sycoca_ds.eval.runner.cache import Arrays
from sycoca_ds.eval.stats.classes import class_weights
from sycoca_ds.model.masking.scores import centred_over_patches, mean_of_others

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


@dataclass(frozen=True)
class NameFeatures:
    """Of prompts, by a task of the model."""

    prompts: list[str]
    task: str
    similarity: str
    untrained: bool

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        model = bench.untrained if self.untrained else bench.model
        inputs = {} if self.task == "text_features" else {"similarity": self.similarity}
        text_BL = bench.tokens([self.prompts[number] for number in numbers])
        return {"feature": bench.call(self.task, model=model, exact=True, text_BL=text_BL, **inputs).float().cpu().numpy()}


def _encode(bench: Bench, model: torch.nn.Module, task: str, similarity: str, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """(features, ids) on the host."""
    work = NameFeatures(prompts, task, similarity, model is not bench.model)
    key = {"what": "features of names", "task": task, "similarity": similarity, "untrained": work.untrained, "precision": "fp32"}
    found = bench.map(work, len(prompts), "read class names", "texts", key | {"texts": digest_of_texts(prompts)})["feature"]
    return torch.from_numpy(found), bench.ids(prompts)


@dataclass(frozen=True)
class Namer:
    """Scores of patches for the background's words and for every class, of one model by one similarity; and the confusions of
    pixels, for `Bench.map`."""

    similarity: str
    untrained: bool
    background: Background
    vector_KE: Tensor
    """On the host; the background's words, then the classes."""
    others: tuple[Tensor, int] | None
    """As the model takes them."""
    scale: float
    """Inverse temperature of the threshold's softmax."""

    @classmethod
    def of(cls, bench: Bench, model: torch.nn.Module, classes: tuple[str, ...], background: Background, similarity: str) -> Namer:
        names = [*background.words, *(SPOKEN.get(name, name) for name in classes)]
        others = bench.others(similarity, model)
        logit_scale = torch.as_tensor(getattr(model, "whole_logit_scale", model.logit_scale)).detach().float()
        scale = float(logit_scale.exp().clamp(max=bench.config.model.max_logit_scale))
        vector_KE = name_vectors(bench, model, names, similarity)
        return cls(similarity, model is not bench.model, background, vector_KE, others and (others[0].cpu(), others[1]), scale)

    def scores(self, bench: Bench, numbers: list[int]) -> Tensor:
        """(B, X + K, N) float32 on the device."""
        model, vector_KE = bench.untrained if self.untrained else bench.model, self.vector_KE.to(bench.device)
        given = {"image_BCHW": bench.images(numbers), "similarity": self.similarity}
        patch_BNE = bench.call("patch_features", model=model, exact=True, **given).float()
        score_BKN = vector_KE @ patch_BNE.transpose(1, 2)
        if self.similarity == "centred_token_max":
            return centred_over_patches(score_BKN)
        if self.others is not None:
            total_E, pictures = self.others[0].to(bench.device), self.others[1]
            other_BE = mean_of_others(patch_BNE.sum(dim=1), total_E, pictures, patch_BNE.shape[1])
            return score_BKN - (other_BE @ vector_KE.T)[:, :, None]
        return score_BKN

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        """{kind of pixels ("all", "objects"): packed confusions (B,)}; empty of pictures that have no labels."""
        segments, found = bench.inputs.segments, {"all": [], "objects": []}
        for number, score_KN in zip(numbers, self.scores(bench, numbers), strict=True):
            if segments.packed[number] is None:
                for rows in found.values():
                    rows.append(b"")
                continue
            label_CC, classes = segments.labels(number), len(segments.classes)
            guess_CC, object_CC = (x.cpu().numpy() for x in self.labels(score_KN, len(label_CC)))
            found["all"].append(packed(confusion(label_CC, guess_CC, classes + 1)))
            objects_CC = label_CC - (label_CC >= 0)  # from 0: the background is unsaid, too
            found["objects"].append(packed(confusion(objects_CC, object_CC - 1, classes)))
        return {kind: np.array(rows, dtype=np.bytes_) for kind, rows in found.items()}

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


def segmented(bench: Bench, namer: Namer) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{"all" or "objects": (confusion int64 (K, K) over all pictures, areas int64 (I', 3, K) of each that has labels)}; K labels,
    with "all" the background is one."""
    segments = bench.inputs.segments
    key = {"what": "confusions of pixels", "similarity": namer.similarity, "untrained": namer.untrained, "precision": "fp32"}
    key |= {"segments": segments.digest, "background": namer.background.told, "templates": list(TEMPLATES)}
    what = f"name pixels: {namer.similarity}{', untrained' if namer.untrained else ''}"
    rows, found = bench.map_images(namer, what, key), {}
    for kind, labels in (("all", len(segments.classes) + 1), ("objects", len(segments.classes))):
        total_KK, each = np.zeros((labels, labels), np.int64), []
        for number in segments.there:
            one = unpacked(rows[kind][number], labels)
            total_KK += one
            each.append(areas(one))
        found[kind] = total_KK, np.stack(each)
    return found

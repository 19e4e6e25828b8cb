"""The four tasks on a live model: the thin shells around the pure cores.

Legend: I distinct images, T captions, B batch, N patches, P numbers of a patch, E embedding width, L text tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.files import sha256_text
from data_pipeline.progress import Progress
from sycoca_ds.eval.captioning import score_captions
from sycoca_ds.eval.classification import LabelSet, class_weights, classification_metrics
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.intervals import HOW
from sycoca_ds.eval.reconstruction import gap_metrics, wrong_captions
from sycoca_ds.eval.retrieval import chance_recalls, retrieve, top_candidates
from sycoca_ds.model.generation import Decoding

METRICS: dict[str, tuple[str, ...]] = {
    "retrieval": (
        "i2t_r1",
        "i2t_r1_low",
        "i2t_r1_high",
        "i2t_r5",
        "i2t_r5_low",
        "i2t_r5_high",
        "i2t_r10",
        "i2t_r10_low",
        "i2t_r10_high",
        "mTR",
        "i2t_median_rank",
        "t2i_r1",
        "t2i_r1_low",
        "t2i_r1_high",
        "t2i_r5",
        "t2i_r5_low",
        "t2i_r5_high",
        "t2i_r10",
        "t2i_r10_low",
        "t2i_r10_high",
        "mIR",
        "t2i_median_rank",
    ),
    "classification": ("top1", "top5", "mean_per_class"),
    "captioning": (
        "bleu4",
        "cider",
        "meteor",
        "rouge_l",
        "spice",
        "cider_shuffled",
        "bleu1",
        "bleu2",
        "bleu3",
        "mean_words",
        "distinct",
    ),
    "reconstruction": (
        "own_l1",
        "other_l1",
        "gap",
        "gap_low",
        "gap_high",
        "better_share",
        "random_own_l1",
        "random_other_l1",
        "random_gap",
        "random_gap_low",
        "random_gap_high",
        "random_better_share",
    ),
}


class NotApplicable(Exception):
    """The task cannot be run on this model or data; the message says why and becomes the reason beside the nulls."""


@dataclass
class Outcome:
    """What a task leaves."""

    numbers: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)
    """{number that is null: why}."""
    chance: dict[str, float] = field(default_factory=dict)
    """{number: what a model that knows nothing would get}."""
    details: dict[str, Any] = field(default_factory=dict)
    """Counts and choices behind the numbers, and examples for the report."""
    files: dict[str, Any] = field(default_factory=dict)
    """{file name: JSON value or dict of arrays (.npz)} to be written beside the results."""


@dataclass
class Bench:
    """One model on one collection. Features are computed once, when first asked for."""

    model: torch.nn.Module
    config: Any
    tokenizer: Any
    collection: Collection
    device: torch.device
    precision: str = "fp32"
    batch_size: int = 64
    caption_tokens: int = 30
    seed: int = 0
    gallery: int = 6
    beams: int = 1

    def call(self, task: str, **inputs: Any) -> Any:
        """One forward without gradient, under bf16 autocast if asked for."""
        cast = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        with torch.inference_mode(), cast:
            return self.model(task, **inputs)

    def pixels(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        from sycoca_ds.model.pixels import normalise

        return normalise(image_B3SS.to(self.device))

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """(B, L) int64, always the full context length: a batch's longest caption must not change anybody's
        rounding."""
        return torch.as_tensor(self.tokenizer.encode(captions, self.config.model.text.context_length)).to(self.device)

    def encode_texts(self, captions: list[str], what: str = "read captions") -> torch.Tensor:
        """(T, E) float32 on the CPU."""
        features = []
        with Progress(what, total=len(captions), unit="texts") as bar:
            for start in range(0, len(captions), self.batch_size):
                batch = captions[start : start + self.batch_size]
                features.append(self.call("text_features", text_BL=self.tokens(batch)).float().cpu())
                bar.advance(len(batch))
        return torch.cat(features)

    @cached_property
    def image_IE(self) -> torch.Tensor:
        features = []
        with Progress("look at images", total=len(self.collection), unit="images") as bar:
            for numbers, image in self.collection.batches(self.batch_size):
                features.append(self.call("image_features", image_BCHW=self.pixels(image)).float().cpu())
                bar.advance(len(numbers))
        return torch.cat(features)

    @cached_property
    def text_TE(self) -> torch.Tensor:
        return self.encode_texts(self.collection.captions)


def run_retrieval(bench: Bench, labels: LabelSet | None = None) -> Outcome:
    """R@1/5/10 both ways over all captions of all images; examples: captions spread over the set with their five best
    images."""
    data = bench.collection
    image_of_text = torch.from_numpy(data.image_of_text_T)
    result = retrieve(bench.image_IE, bench.text_TE, image_of_text)
    images, texts = len(data), len(data.captions)
    chance = chance_recalls([len(captions) for captions in data.captions_of_image])
    queries = np.unique(np.linspace(0, texts - 1, num=min(bench.gallery, texts)).round().astype(int))
    best = top_candidates(bench.text_TE[queries], bench.image_IE, 5)
    examples = [
        {
            "caption": data.captions[query],
            "own": int(data.image_of_text_T[query]),
            "rank": int(result.t2i_rank_T[query]) + 1,
            "images": [int(image) for image in row],
        }
        for query, row in zip(queries, best, strict=True)
    ]
    numbers = result.metrics() | result.intervals(data.image_of_text_T, bench.seed)
    return Outcome(numbers, chance=chance, details={"images": images, "captions": texts, "interval": HOW, "examples": examples})


def run_classification(bench: Bench, labels: LabelSet | None) -> Outcome:
    """Zero-shot accuracy over the images that have a label."""
    if labels is None:
        raise NotApplicable("no --labels FILE was given")
    label_I = labels.of([picture.url for picture in bench.collection.pictures])
    labelled = label_I >= 0
    weight_KE = class_weights(lambda prompts: bench.encode_texts(prompts, "read class names"), labels.classes, labels.templates)
    logit_NK = 100.0 * bench.image_IE[torch.from_numpy(labelled)] @ weight_KE.T
    numbers = classification_metrics(logit_NK, label_I[labelled])
    reasons = {"top5": f"only {len(labels.classes)} classes"} if numbers["top5"] is None else {}
    count = np.bincount(label_I[labelled], minlength=len(labels.classes))
    chance = {
        "top1": 100.0 / len(labels.classes),
        "top5": min(100.0, 500.0 / len(labels.classes)),
        "mean_per_class": 100.0 / len(labels.classes),
    }
    guess = logit_NK.argmax(dim=1).numpy()
    details = {
        "set": labels.name,
        "classes": len(labels.classes),
        "templates": len(labels.templates),
        "labels_digest": labels.digest,
        "images": int(labelled.sum()),
        "images_without_label": int((~labelled).sum()),
        "classes_without_image": int((count == 0).sum()),
        "largest_class_percent": 100.0 * float(count.max()) / float(labelled.sum()),
        "primary": "top1",
        "confusions": _confusions(label_I[labelled], guess, labels.classes),
    }
    return Outcome(numbers, reasons, chance, details)


def _confusions(label_N: np.ndarray, guess_N: np.ndarray, classes: tuple[str, ...], most: int = 5) -> list[dict[str, Any]]:
    pairs, counts = np.unique(np.stack([label_N, guess_N])[:, label_N != guess_N], axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return [{"class": classes[pairs[0, o]], "taken_for": classes[pairs[1, o]], "images": int(counts[o])} for o in order]


def run_captioning(bench: Bench, labels: LabelSet | None = None) -> Outcome:
    """Greedy or beam search captions of all images, scored against all their captions."""
    if not bench.config.model.captions:
        raise NotApplicable(f"a '{bench.config.model.family}' model has no text decoder")
    data = bench.collection
    # a generated text has to fit the text encoder's positions, [SOT] included
    steps = min(bench.caption_tokens, bench.config.model.text.context_length - 1)
    # ranked by the mean over tokens, as open_clip's beam search does: by the sum, more beams would mean shorter captions
    decoding = Decoding(beams=bench.beams, length_penalty=1.0)
    captions: list[str] = []
    with Progress("write captions", total=len(data), unit="images") as bar:
        for numbers, image in data.batches(bench.batch_size):
            ids = bench.call("generate", image_BCHW=bench.pixels(image), steps=steps, decoding=decoding).cpu()
            captions.extend(bench.tokenizer.decode(row.tolist()).strip() for row in ids)
            bar.advance(len(numbers))
    keys = [picture.image_id for picture in data.pictures]
    with Progress("score captions", total=len(data), unit="images") as bar:
        numbers, reasons, kind = score_captions(
            dict(zip(keys, captions, strict=True)), dict(zip(keys, data.captions_of_image, strict=True))
        )
        bar.set(len(data))
    details = {
        "images": len(data),
        "references": len(data.captions),
        "tokenizer": kind,
        "decoding": "greedy" if bench.beams == 1 else f"beam search, {bench.beams} beams",
        "steps": steps,
        "empty": sum(not caption for caption in captions),
    }
    return Outcome(
        numbers,
        reasons,
        {},
        details,
        {"captions.json": [{"image_id": key, "caption": caption} for key, caption in zip(keys, captions, strict=True)]},
    )


def run_reconstruction(bench: Bench, labels: LabelSet | None = None) -> Outcome:
    """L1 over hidden patches, guided by the own caption and by a wrong one; masks by attention and by chance."""
    if not bench.config.model.reconstructs:
        raise NotApplicable(
            f"a '{bench.config.model.family}' model with masked image modelling '{bench.config.model.masking.mim}' "
            "has no image decoder"
        )
    data = bench.collection
    other_I = wrong_captions(data.captions_of_image)
    first = [captions[0] for captions in data.captions_of_image]
    shown = set(np.unique(np.linspace(0, len(data) - 1, num=min(bench.gallery, len(data))).round().astype(int)).tolist())
    error: dict[str, list[torch.Tensor]] = {name: [] for name in ("own", "other", "random_own", "random_other")}
    kept: dict[str, list[np.ndarray]] = {
        name: [] for name in ("number", "other", "hidden", "score", "own_pixels", "other_pixels", "own_l1", "other_l1")
    }
    key_I = torch.tensor([int(sha256_text(f"{bench.seed} {picture.image_id}")[:15], 16) for picture in data.pictures])
    with Progress("rebuild hidden patches", total=2 * len(data), unit="images") as bar:
        for numbers, image in data.batches(bench.batch_size):
            pixels, own = bench.pixels(image), bench.tokens([first[n] for n in numbers])
            wrong = bench.tokens([first[other_I[n]] for n in numbers])

            shared = {"image_BCHW": pixels, "text_BL": own, "key_B": key_I[numbers].to(bench.device)}
            for prefix, mask_by in (("", "attention"), ("random_", "random")):
                right = bench.call("reconstruct", **shared, guide_BL=own, mask_by=mask_by)
                misled = bench.call("reconstruct", **shared, guide_BL=wrong, mask_by=mask_by)
                if not torch.equal(right["hidden_BN"], misled["hidden_BN"]):
                    raise RuntimeError("the hidden patches changed with the guide: the two errors would not be comparable")
                error[f"{prefix}own"].append(right["l1_B"].float().cpu())
                error[f"{prefix}other"].append(misled["l1_B"].float().cpu())
                bar.advance(len(numbers))
                if mask_by == "attention":
                    for row, number in enumerate(numbers):
                        if number in shown:
                            kept["number"].append(np.int64(number))
                            kept["other"].append(other_I[number])
                            for name, value in (
                                ("hidden", right["hidden_BN"]),
                                ("score", right["scores_BN"]),
                                ("own_pixels", right["pixels_BNP"]),
                                ("other_pixels", misled["pixels_BNP"]),
                                ("own_l1", right["l1_B"]),
                                ("other_l1", misled["l1_B"]),
                            ):
                                value = value[row].cpu()
                                kept[name].append((value if value.dtype == torch.bool else value.float()).numpy())
    errors = {name: torch.cat(values).numpy() for name, values in error.items()}
    if not all(np.isfinite(values).all() for values in errors.values()):
        raise UserError("reconstruction: the model's errors are not finite; the checkpoint is damaged or diverged")
    numbers = {
        **gap_metrics(errors["own"], errors["other"], seed=bench.seed),
        **{
            f"random_{name}": value
            for name, value in gap_metrics(errors["random_own"], errors["random_other"], seed=bench.seed).items()
        },
    }
    chance = {"gap": 0.0, "random_gap": 0.0, "better_share": 50.0, "random_better_share": 50.0}
    details = {
        "images": len(data),
        "hidden_patches": int(kept["hidden"][0].sum()),
        "patches": len(kept["hidden"][0]),
        "unit": "normalised pixels",
        "interval": HOW,
    }
    return Outcome(numbers, {}, chance, details, {"reconstruction.npz": {name: np.stack(values) for name, values in kept.items()}})


TASKS: dict[str, Callable[[Bench, LabelSet | None], Outcome]] = {
    "retrieval": run_retrieval,
    "classification": run_classification,
    "captioning": run_captioning,
    "reconstruction": run_reconstruction,
}


def result_files(out: Path, task: str) -> dict[str, Path]:
    """The extra files a task leaves under `out`."""
    return {
        name: out / "samples" / name
        for name in {"captioning": ["captions.json"], "reconstruction": ["reconstruction.npz"]}.get(task, [])
    }

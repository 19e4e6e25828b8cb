"""One model on one collection: what every task asks the model, and what it may ask for.

Legend: I distinct images, T captions, B batch, E embedding width, L text tokens, S image side.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from data_pipeline.progress import Progress
from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.compositions.items import CompositionSet
from sycoca_ds.eval.kept import Kept
from sycoca_ds.eval.labels import LabelSet
from sycoca_ds.eval.probe.data import ProbeData
from sycoca_ds.eval.regions.patches import Regions
from sycoca_ds.eval.vqa.items import Asked


@dataclass(frozen=True)
class SuiteOptions:
    """What the numbers depend on besides weights and data (batch size only through float rounding). Fields as in
    `EvaluateConfig`."""

    tasks: tuple[str, ...] = (
        "retrieval",
        "classification",
        "captioning",
        "reconstruction",
        "masking",
        "compositionality",
        "linear_probe",
        "vqa",
    )
    batch_size: int = 64
    precision: str = "fp32"
    caption_tokens: int = 30
    seed: int = 0
    gallery: int = 6
    beams: int = 1
    similarity: tuple[str, ...] = ()
    probe_features: str = "output"


@dataclass(frozen=True)
class Inputs:
    """What is given to the tasks beside the model and its pictures."""

    options: SuiteOptions = field(default_factory=SuiteOptions)
    labels: LabelSet | None = None
    regions: Regions | None = None
    compositions: tuple[CompositionSet, ...] = ()
    probe: ProbeData | None = None
    questions: Asked | None = None


@dataclass
class Bench:
    """One model on one collection. Features are computed once, when first asked for."""

    model: torch.nn.Module
    config: Any
    tokenizer: Any
    collection: PictureSet
    device: torch.device
    inputs: Inputs = field(default_factory=Inputs)
    kept: Kept = field(default_factory=lambda: Kept(None, ""))
    """Where the task that runs leaves what it has done so far."""
    _others: dict[torch.nn.Module, tuple[torch.Tensor, int]] = field(default_factory=dict)

    @property
    def options(self) -> SuiteOptions:
        return self.inputs.options

    def call(self, task: str, model: torch.nn.Module | None = None, exact: bool = False, **inputs: Any) -> Any:
        """One forward without gradient, under bf16 autocast if asked for.

        Args:
            model: another one in place of this bench's.
            exact: in full precision whatever was asked for: in bf16 the scores of many patches are equal.
        """
        bf16 = self.options.precision == "bf16" and not exact
        cast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        with torch.inference_mode(), cast:
            return (model or self.model)(task, **inputs)

    def others(self, similarity: str | None = None, model: torch.nn.Module | None = None) -> tuple[torch.Tensor, int] | None:
        """What `centred_over_pictures` takes off, as the model's `others`: the sum over the patches of all pictures of the data
        set, and how many these are; a batch's own pictures would be others with every batch size. None for other scores.

        Args:
            similarity: default the configuration's. model: default this bench's.
        """
        model = model or self.model
        if (similarity or self.config.model.masking.similarity) != "centred_over_pictures":
            return None
        if model not in self._others:
            total_E = 0.0
            with Progress("look at other images", total=len(self.collection), unit="images") as bar:
                for numbers, image in self.batches():
                    sum_BE = self.call("patch_sums", model=model, exact=True, image_BCHW=self.pixels(image))
                    total_E = total_E + sum_BE.double().sum(dim=0)
                    bar.advance(len(numbers))
            self._others[model] = (total_E.float(), len(self.collection))
        return self._others[model]

    def pixels(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        from sycoca_ds.model.pixels import normalise

        return normalise(image_B3SS.to(self.device))

    def ids(self, captions: list[str]) -> torch.Tensor:
        """(B, L) int64 on the host, always the full context length: a batch's longest caption must not change anybody's
        rounding."""
        return torch.as_tensor(self.tokenizer.encode(captions, self.config.model.text.context_length))

    def tokens(self, captions: list[str]) -> torch.Tensor:
        """The same on the device."""
        return self.ids(captions).to(self.device)

    def batches(self):
        """(numbers, (B, 3, S, S) uint8) over all images in order."""
        return self.collection.batches(self.options.batch_size)

    def encode_texts(self, captions: list[str], what: str = "read captions") -> torch.Tensor:
        """(T, E) float32 on the CPU."""
        features = []
        with Progress(what, total=len(captions), unit="texts") as bar:
            for start in range(0, len(captions), self.options.batch_size):
                batch = captions[start : start + self.options.batch_size]
                features.append(self.call("text_features", text_BL=self.tokens(batch)).float().cpu())
                bar.advance(len(batch))
        return torch.cat(features)

    @cached_property
    def image_IE(self) -> torch.Tensor:
        features = []
        with Progress("look at images", total=len(self.collection), unit="images") as bar:
            for numbers, image in self.batches():
                features.append(self.call("image_features", image_BCHW=self.pixels(image)).float().cpu())
                bar.advance(len(numbers))
        return torch.cat(features)

    @cached_property
    def text_TE(self) -> torch.Tensor:
        return self.encode_texts(self.collection.captions)

    @property
    def shown(self) -> list[int]:
        """Numbers of the report's pictures: at even distances, not picked."""
        import numpy as np

        count = len(self.collection)
        return np.unique(np.linspace(0, count - 1, num=min(self.options.gallery, count)).round().astype(int)).tolist()

"""One model on one collection: what every task asks the model, and what it may ask for.

Legend: I distinct images, T captions, B batch, E embedding width, L text tokens, S image side.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from data_pipeline.files import sha256_text
from data_pipeline.progress import Progress
from sycoca_ds.config import ModelConfig
from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.compositions.items import CompositionSet
from sycoca_ds.eval.labels import LabelSet
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.probe.data import ProbeData
from sycoca_ds.eval.regions.patches import Regions
from sycoca_ds.eval.regions.segments import Segments
from sycoca_ds.eval.runner.cache import Arrays, Cache, Entry, joined
from sycoca_ds.eval.runner.finite import check_finite
from sycoca_ds.eval.runner.team import Team, Work
from sycoca_ds.eval.vqa.items import Asked

PROBLEM = "problem"
"""Array of texts that say why a sample has no answer; "" where it has. Such samples are asked again by the next start."""
UNTRAINED_SEED = 0
"""Of the fresh weights that everything is measured on as well."""
TRANSFORM = "short side bicubic, centre crop, RGB, CLIP's mean and deviation"
"""What `Bench.images` does to pictures; another text wherever it does something else."""


@dataclass(frozen=True)
class Inputs:
    """What is given to the tasks beside the model and its pictures."""

    options: SuiteOptions = field(default_factory=SuiteOptions)
    labels: LabelSet | None = None
    regions: Regions | None = None
    compositions: tuple[CompositionSet, ...] = ()
    probe: ProbeData | None = None
    segments: Segments | None = None
    questions: Asked | None = None


def fresh_model(config: ModelConfig, seed: int) -> torch.nn.Module:
    """Holds all its weights."""
    from sycoca_ds.model.sycoca import SyCoCa

    return SyCoCa(config, seed=seed).eval()


@dataclass(frozen=True)
class Resources:
    """What the numbers do not depend on."""

    team: Team = field(default_factory=Team)
    cache: Cache = field(default_factory=Cache)
    told: bool = True
    """Whether progress is reported."""
    fresh: Callable[[ModelConfig, int], torch.nn.Module] = fresh_model
    """(configuration, seed) -> a model with untrained weights, on every rank at once where they share them."""


@dataclass(frozen=True)
class ImageFeatures:
    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        return {"feature": bench.call("image_features", image_BCHW=bench.images(numbers)).float().cpu().numpy()}


@dataclass(frozen=True)
class TextFeatures:
    captions: list[str]

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        text_BL = bench.tokens([self.captions[number] for number in numbers])
        return {"feature": bench.call("text_features", text_BL=text_BL).float().cpu().numpy()}


@dataclass(frozen=True)
class PatchSums:
    untrained: bool

    def __call__(self, bench: Bench, numbers: list[int]) -> Arrays:
        model = bench.untrained if self.untrained else bench.model
        sum_BE = bench.call("patch_sums", model=model, exact=True, image_BCHW=bench.images(numbers))
        return {"sum": sum_BE.float().cpu().numpy()}


@dataclass
class Bench:
    """One model on one collection. Features are computed once, when first asked for.

    What a task asks of many samples goes through `map`: it is shared among ranks, kept on disk, and goes on there after a kill.
    """

    model: torch.nn.Module
    config: Any
    tokenizer: Any
    collection: PictureSet
    device: torch.device
    inputs: Inputs = field(default_factory=Inputs)
    resources: Resources = field(default_factory=Resources)
    weights: str | None = None
    """Digest of the model's weights and tokenizer; None: unknown, nothing is kept."""
    _others: dict[torch.nn.Module, tuple[torch.Tensor, int]] = field(default_factory=dict)
    _once: dict[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> SuiteOptions:
        return self.inputs.options

    def call(
        self, task: str, model: torch.nn.Module | None = None, exact: bool = False, gradient: bool = False, **inputs: Any
    ) -> Any:
        """One forward without gradient, under bf16 autocast if asked for.

        Args:
            model: another one in place of this bench's.
            exact: in full precision whatever was asked for: in bf16 the scores of many patches are equal.
            gradient: the task takes gradients itself, which inference mode forbids.

        Raises:
            UserError: answers that are not finite.
        """
        self.resources.team.before_call()
        bf16 = self.options.precision == "bf16" and not exact
        cast = torch.autocast(self.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
        # inference tensors must not stay behind in weights that the ranks share: gradients want them later
        without = torch.no_grad() if self.resources.team.lockstep else torch.inference_mode(not gradient)
        with torch.enable_grad() if gradient else without, cast:
            answer = (model or self.model)(task, **inputs)
        check_finite(answer, f"the model's answers ({task})")
        return answer

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
            untrained = model is not self.model
            key = {"what": "patch sums", "untrained": untrained, "precision": "fp32"}
            sum_IE = self.map_images(PatchSums(untrained), "look at other images", key)["sum"]
            total_E = torch.from_numpy(sum_IE).double().sum(dim=0)
            self._others[model] = (total_E.float().to(self.device), len(self.collection))
        return self._others[model]

    def once(self, name: str, ask: Callable[[], Any]) -> Any:
        """What `ask` gives, kept in memory under this name for other tasks."""
        if name not in self._once:
            self._once[name] = ask()
        return self._once[name]

    @cached_property
    def untrained(self) -> torch.nn.Module:
        """Fresh weights of the same shape, for controls."""
        return self.resources.fresh(self.config.model, UNTRAINED_SEED).to(self.device)

    def entry(self, key: dict[str, Any] | None) -> Entry:
        """Where the cache keeps what has this key, of these weights. None keeps nothing."""
        base = {"weights": self.weights, "precision": self.options.precision, "torch": torch.__version__}
        cache = Cache() if self.weights is None or key is None else self.resources.cache
        return cache.entry({**base, **(key or {})})

    def map(self, work: Work, total: int, what: str, unit: str, key: dict[str, Any] | None = None) -> Arrays:
        """What `work` gives of samples 0 to `total` - 1, batch by batch, in their order.

        Args:
            work: (bench, numbers) -> {name: array with a row for each}; a module's function, or an object of a module's class,
                since it goes to other ranks by pickle, where `bench` is that rank's. What it calls must be the same for any batch.
            what, unit: for the progress report.
            key: JSON values that name what the answer depends on beside weights and precision; None keeps nothing of it.
        """
        entry = self.entry(key)
        parts, done_N = [], np.zeros(total, bool)
        for rows, arrays in entry.load():
            fresh = ~done_N[rows]
            if PROBLEM in arrays:
                fresh &= arrays[PROBLEM] == ""  # it may be mended by now
            done_N[rows[fresh]] = True
            parts.append((rows[fresh], {name: array[fresh] for name, array in arrays.items()}))
        left = np.flatnonzero(~done_N)
        try:
            with Progress(what, total=total, unit=unit, enabled=self.resources.told) as bar:
                bar.set(total - len(left))
                for rows, arrays in self.resources.team.rounds(self, work, left):
                    parts.append((rows, arrays))
                    entry.add(rows, arrays)
                    bar.advance(len(rows))
        finally:
            entry.flush()
        rows_N, arrays = joined(parts)
        order = np.argsort(rows_N)
        return {name: array[order] for name, array in arrays.items()}

    def map_images(self, work: Work, what: str, key: dict[str, Any]) -> Arrays:
        """`map` over the collection's images."""
        return self.map_of_images(work, len(self.collection), what, "images", key)

    def map_of_images(
        self, work: Work, total: int, what: str, unit: str, key: dict[str, Any], data: PictureSet | None = None
    ) -> Arrays:
        """`map` over what hangs on the collection's images, or on those of other `data`."""
        data = data or self.collection
        of = {"data": data.digest, "image_size": data.image_size, "transform": TRANSFORM}
        return self.map(work, total, what, unit, {**of, **key})

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

    def images(self, numbers: Sequence[int]) -> torch.Tensor:
        """(B, 3, S, S) of the collection, as the model takes them, on the device."""
        return self.pixels(torch.stack([self.collection.image(number) for number in numbers]))

    def encode_texts(self, captions: list[str], what: str = "read captions") -> torch.Tensor:
        """(T, E) float32 on the CPU. Texts of the same tokens are read once: in two places of the batches they could differ in the
        last bit, and would not tie."""
        _, first, row_T = distinct_rows(self.ids(captions))
        distinct = [captions[place] for place in first]
        key = {"what": "text features", "texts": digest_of_texts(distinct)}
        return torch.from_numpy(self.map(TextFeatures(distinct), len(distinct), what, "texts", key)["feature"])[row_T]

    @cached_property
    def image_IE(self) -> torch.Tensor:
        key = {"what": "image features"}
        return torch.from_numpy(self.map_images(ImageFeatures(), "look at images", key)["feature"])

    @cached_property
    def text_TE(self) -> torch.Tensor:
        return self.encode_texts(self.collection.captions)

    @property
    def shown(self) -> list[int]:
        """Numbers of the report's pictures: at even distances, not picked."""
        count = len(self.collection)
        return np.unique(np.linspace(0, count - 1, num=min(self.options.gallery, count)).round().astype(int)).tolist()


def digest_of_texts(texts: Sequence[str]) -> str:
    return sha256_text(json.dumps(list(texts)))


def distinct_rows(ids_XL: torch.Tensor) -> tuple[torch.Tensor, list[int], list[int]]:
    """(distinct rows (T, L) in order of appearance, where each appears first, which of them each row is)."""
    seen: dict[bytes, int] = {}
    first, number = [], []
    for place, row in enumerate(ids_XL.numpy()):
        if (found := seen.setdefault(row.tobytes(), len(seen))) == len(first):
            first.append(place)
        number.append(found)
    return ids_XL[first], first, number

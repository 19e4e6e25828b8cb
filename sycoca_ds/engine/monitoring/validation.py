"""What a running model is asked from time to time, on fixed held-out pictures: losses, zero-shot retrieval, whether its masks
follow the caption, and what it hides, rebuilds and says. All ranks take part in every forward, on equally many samples.

Legend: I pictures, T captions, B batch, L tokens, E embedding width, N patches, S image side.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer, trim
from sycoca_ds.engine.monitoring.curves import GAPS, RECALLS
from sycoca_ds.engine.monitoring.pictures import card, in_a_cell
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.masking.gaps import gap_numbers, kind_errors
from sycoca_ds.eval.masking.phrases import PHRASE_MEASURES
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS, Scorer
from sycoca_ds.eval.masking.verdict import NO_UNNAMED
from sycoca_ds.eval.masking.yardstick import numbers as yardstick
from sycoca_ds.eval.masking.yardstick import unasked
from sycoca_ds.eval.pictures import heat_map, mask_overlay, paste, patches_to_picture
from sycoca_ds.eval.regions.patches import Regions, read_regions
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.eval.stats.recalls import chance_recalls, retrieve
from sycoca_ds.model.pixels import normalise

CAPTION_STEPS = 40
"""Longest generated caption, tokens (less where the context is shorter)."""


class Validation:
    """The first `run.validation_samples` pictures of the validation folder, and what to do with them.

    Args:
        batch_size: pictures a rank puts through the model at once.

    Attributes:
        attends: whether the masks of this training follow the scores that are measured.

    Raises:
        UserError: too few pictures for one batch on each rank.
    """

    ASKS_MASKS = True
    """Whether captions are there to ask what masks know of them."""

    def __init__(self, config: TrainConfig, collection: Collection, tokenizer: Tokenizer, runtime: Runtime, batch_size: int):
        self.config, self.collection, self.tokenizer, self.runtime = config, collection, tokenizer, runtime
        self.count = min(config.run.validation_samples, len(collection))
        self.batch_size = min(batch_size, self.count // runtime.world_size)
        if self.batch_size < 1:
            raise UserError(
                f"data.validation holds {len(collection)} pictures, run.validation-samples = {config.run.validation_samples}: "
                f"expected at least one a rank ({runtime.world_size})"
            )
        self.batches = self.count // (self.batch_size * runtime.world_size)
        self.shown = list(range(min(config.run.pictures, self.count)))
        masking = config.model.masking
        masked = config.model.reconstructs or (config.model.family == "sycoca" and masking.low_ratio > 0)
        self.attends = masked and masking.mask_by == "attention"
        asked = self.ASKS_MASKS and (masked or config.data.regions is not None)
        self.other_I = self._other_captions() if asked else None
        self.regions = self._regions() if self.other_I is not None else None
        if masking.warmup_until is not None and self.attends:
            self._check_warmup()

    def _check_warmup(self) -> None:
        """Raises `UserError` for a warm-up of masks that these pictures can never end."""
        masking = self.config.model.masking
        if self.other_I is None:
            raise UserError(
                f"model.masking.warmup-until = {masking.warmup_until}: no validation could end it, since nearly all captions of "
                f"data.validation = {self.config.data.validation} are equal; give pictures with more varied ones"
            )
        if masking.warmup_metric == "named_over_unnamed" and "named_over_unnamed" in unasked(self.regions):
            raise UserError(
                f"model.masking.warmup-metric = named_over_unnamed: {NO_UNNAMED} (data.regions = {self.config.data.regions}); give "
                "pictures whose captions do, or take own_caption_higher"
            )

    @classmethod
    def of(cls, config: TrainConfig, tokenizer: Tokenizer, runtime: Runtime, batch_size: int) -> Validation | None:
        """None where the run has no validation folder. Raises `UserError`."""
        if config.data.validation is None:
            if config.data.regions is not None:
                raise UserError(f"data.regions = {config.data.regions} without data.validation: they are regions of its pictures")
            return None
        return cls(config, Collection(config.data.validation, config.model.image.image_size), tokenizer, runtime, batch_size)

    def _other_captions(self) -> np.ndarray | None:
        """For each picture the one whose caption it is given as another one."""
        try:
            return wrong_captions(self.collection.captions_of_image[: self.count])
        except UserError as error:
            self.runtime.say(f"whether masks follow the caption is not measured: {error}")
            return None

    def _regions(self) -> Regions | None:
        """Where in the pictures the objects are, if the run is told. Raises `UserError`."""
        path, model = self.config.data.regions, self.config.model
        if path is None:
            return None
        patch, length, leads = model.image.patch_size, model.text.context_length, self.runtime.leads
        found = read_regions(path, self.collection, self.tokenizer, patch, length, self.count, shown=leads)
        self.runtime.say(found.told())
        return found

    def without(self) -> tuple[str, ...]:
        """The numbers of regions that these pictures, or this model, give no occasion for."""
        model = self.config.model
        names = unasked(self.regions) if self.regions is not None else ()
        names += PHRASE_MEASURES if model.masking.similarity in WITHOUT_WORDS else ()
        return names + (() if model.reads_to_rebuild else GAPS)

    def caption(self, number: int) -> str:
        return self.collection.captions_of_image[number][0]

    def _images(self, numbers: list[int]) -> Tensor:
        """(B, 3, S, S) normalised, on the device."""
        return normalise(torch.stack([self.collection.image(number) for number in numbers]).to(self.runtime.device))

    def _ids(self, captions: list[str]) -> Tensor:
        """(B, L) ids on the host."""
        return torch.from_numpy(trim(self.tokenizer.encode(captions, self.config.model.text.context_length)))

    def _texts(self, captions: list[str]) -> Tensor:
        """(B, L) ids on the device."""
        return self._ids(captions).to(self.runtime.device)

    def _keys(self, numbers: list[int]) -> Tensor:
        """(B,) of random masks."""
        return torch.tensor(numbers, device=self.runtime.device)

    def _inputs(self, numbers: list[int]) -> dict[str, Tensor]:
        return {
            "image_BCHW": self._images(numbers),
            "text_BL": self._texts([self.caption(number) for number in numbers]),
            "key_B": self._keys(numbers),
        }

    def numbers(self, engine) -> dict[str, float]:
        """Everything that is measured, keys of `curves.TAGS`; complete on rank 0 only."""
        return self.losses(engine) | self.retrieval(engine) | self.masking(engine)

    @torch.no_grad()
    def losses(self, engine) -> dict[str, float]:
        """Validation losses and in-batch accuracies, a mean over the validation samples; names start with `validation/`."""
        totals: dict[str, Tensor] = {}
        for number in range(self.batches):
            first = (number * self.runtime.world_size + self.runtime.rank) * self.batch_size
            inputs = self._inputs(list(range(first, first + self.batch_size)))
            for name, value in engine("train", **inputs).items():
                totals[name] = totals.get(name, 0) + value.float() / self.batches
        names = [name for name in totals if name != "logit_scale"]
        means = self.runtime.mean(torch.stack([totals[name] for name in names])).tolist()
        return {f"validation/{name}": value for name, value in zip(names, means, strict=True)}

    def _everywhere(self, count: int, compute: Callable[[list[int]], Tensor]) -> Tensor:
        """`compute` of the numbers 0 to count - 1, a row each, shared among the ranks; (count, ..) on every rank.

        Ranks have equal shares, the last ones filled up with the last number, so that all run the same modules.
        """
        share = -(-count // self.runtime.world_size)
        own = [min(number, count - 1) for number in range(self.runtime.rank * share, (self.runtime.rank + 1) * share)]
        rows = torch.cat([compute(own[at : at + self.batch_size]) for at in range(0, share, self.batch_size)])
        return self.runtime.rows(rows)[:count]

    def _others(self, engine) -> tuple[Tensor, int] | None:
        """What `centred_over_pictures` takes off: all validation pictures, however ranks and batches share them. None for other
        scores."""
        if self.config.model.masking.similarity != "centred_over_pictures":
            return None
        sum_IE = self._everywhere(self.count, lambda numbers: engine("patch_sums", image_BCHW=self._images(numbers)))
        return sum_IE.double().sum(dim=0).float(), self.count

    @torch.no_grad()
    def retrieval(self, engine) -> dict[str, float]:
        """Zero-shot recalls in percent between the pictures and all their captions, as eval/stats/recalls.py has them, and
        chance; on rank 0, the others give their share of the features."""
        captions_of_image = self.collection.captions_of_image[: self.count]
        captions = [caption for own in captions_of_image for caption in own]
        image_of_text_T = torch.tensor([image for image, own in enumerate(captions_of_image) for _ in own])
        image_IE = self._everywhere(self.count, lambda numbers: engine("image_features", image_BCHW=self._images(numbers)))
        text_TE = self._everywhere(
            len(captions), lambda numbers: engine("text_features", text_BL=self._texts([captions[n] for n in numbers]))
        )
        if not self.runtime.leads:
            return {}
        found = retrieve(image_IE.cpu(), text_TE.cpu(), image_of_text_T).metrics()
        chance = chance_recalls([len(own) for own in captions_of_image])
        recalls = {f"validation/{name}": found[name] for name in RECALLS}
        return recalls | {f"validation/chance_{name}": chance[name] for name in RECALLS}

    @torch.no_grad()
    def masking(self, engine) -> dict[str, float]:
        """Whether the masks follow the caption, and with regions whether they find what it names (eval/masking/yardstick.py), and
        where it helps to rebuild. Of scores that choose nothing, too: in a run whose masks are noise, and with regions in one that
        has no masks."""
        if self.other_I is None:
            return {}
        masking, captions = self.config.model.masking, [self.caption(number) for number in range(self.count)]
        scorer = Scorer(captions, self.other_I, self.regions, self._ids, self.config.model.text.eot_id)
        by_token, others = masking.similarity not in WITHOUT_WORDS and self.regions is not None, self._others(engine)

        def scores(numbers: list[int]) -> Tensor:
            return scorer(engine, numbers, self._images(numbers), by_token, others=others)

        score_ICRN = self._everywhere(self.count, scores)
        found = yardstick(score_ICRN, self.regions, masking)
        if self.regions is not None and self.config.model.reads_to_rebuild:

            def errors(numbers: list[int]) -> Tensor:
                other = [captions[self.other_I[number]] for number in numbers]
                text_BL = self._texts([*(captions[number] for number in numbers), *other])
                inputs = {"image_BCHW": self._images(numbers), "key_B": self._keys(numbers), "others": others}
                return kind_errors(engine, masking, self.regions, numbers, *text_BL.chunk(2), **inputs)

            found |= gap_numbers(self._everywhere(self.count, errors).cpu().numpy(), intervals=False)
        return {f"masking/{name}": value for name, value in found.items()}

    @torch.no_grad()
    def pictures(self, engine) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(pictures by TensorBoard tag, texts by tag). Every rank computes them, since every rank holds a shard of the model."""
        if not self.shown:
            return {}, {}
        inputs = self._inputs(self.shown)
        said: list[str] = []
        if self.config.model.captions:
            steps = min(CAPTION_STEPS, self.config.model.text.context_length - 1)
            ids_BL = engine("generate", image_BCHW=inputs["image_BCHW"], steps=steps).tolist()
            said = [self.tokenizer.decode(ids) for ids in ids_BL]
        out = engine("reconstruct", **inputs, others=self._others(engine)) if self.config.model.reconstructs else None
        if not self.runtime.leads:
            return {}, {}
        images = {}
        for row, number in enumerate(self.shown):
            panels = [("picture", self.collection.picture(number))]
            if out is not None:
                hidden_N, pixels = out["hidden_BN"][row].cpu().numpy(), patches_to_picture(out["target_BNP"][row])
                scores = heat_map(out["scores_BN"][row].float().cpu().numpy(), pixels.shape[0], pixels)
                rebuilt = paste(pixels, patches_to_picture(out["pixels_BNP"][row]), hidden_N)
                panels = [
                    ("picture", pixels),
                    ("scores, light = high", scores),
                    ("hidden patches", mask_overlay(pixels, hidden_N)),
                    ("hidden ones rebuilt", rebuilt),
                ]
            words = [f"caption: {self.caption(number)}", *([f"model: {said[row]}"] if said else [])]
            images[f"pictures/{number:02d}"] = card(panels, words)
        texts = {}
        if said:
            rows = [
                f"| {number} | {in_a_cell(self.caption(number))} | {in_a_cell(words)} |"
                for number, words in zip(self.shown, said, strict=True)
            ]
            texts["captions"] = "\n".join(["| picture | caption | generated |", "|---|---|---|", *rows])
        return images, texts

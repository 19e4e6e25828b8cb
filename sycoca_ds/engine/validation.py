"""What a running model is shown from time to time: validation losses, masks, reconstructions and captions of fixed images.
All ranks take part in every forward, on equally many samples."""

from __future__ import annotations

import numpy as np
import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import TrainConfig
from sycoca_ds.data.tokenizer import Tokenizer, trim
from sycoca_ds.engine.runtime import Runtime
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.pictures import enlarge, grid, mask_overlay, paste, patches_to_picture
from sycoca_ds.model.pixels import normalise

CAPTION_STEPS = 40
"""Longest generated caption, tokens (less where the context is shorter)."""


class Validation:
    """Fixed pictures of the validation folder, each with its first caption, and what to do with them.

    Args:
        batch_size: pictures a rank puts through the model at once.

    Raises:
        UserError: too few pictures for one batch on each rank.
    """

    def __init__(self, config: TrainConfig, collection: Collection, tokenizer: Tokenizer, runtime: Runtime, batch_size: int):
        self.config, self.collection, self.tokenizer, self.runtime = config, collection, tokenizer, runtime
        wanted = min(config.run.validation_samples, len(collection))
        self.batch_size = min(batch_size, wanted // runtime.world_size)
        if self.batch_size < 1:
            raise UserError(
                f"data.validation holds {len(collection)} pictures, run.validation-samples = {config.run.validation_samples}: "
                f"expected at least one a rank ({runtime.world_size})"
            )
        self.batches = wanted // (self.batch_size * runtime.world_size)
        self.shown = list(range(min(config.run.pictures, len(collection))))

    def caption(self, number: int) -> str:
        return self.collection.captions_of_image[number][0]

    def _inputs(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        captions = [self.caption(number) for number in numbers]
        text_BL = trim(self.tokenizer.encode(captions, self.config.model.text.context_length))
        device = self.runtime.device
        return {
            "image_BCHW": normalise(torch.stack([self.collection.image(number) for number in numbers]).to(device)),
            "text_BL": torch.from_numpy(text_BL).to(device),
            "key_B": torch.tensor(numbers, device=device),
        }

    @torch.no_grad()
    def losses(self, engine) -> dict[str, float]:
        """Validation losses and in-batch accuracies, a mean over the validation samples; tags start with `validation/`."""
        totals: dict[str, torch.Tensor] = {}
        for number in range(self.batches):
            first = (number * self.runtime.world_size + self.runtime.rank) * self.batch_size
            inputs = self._inputs(list(range(first, first + self.batch_size)))
            for name, value in engine("train", **inputs).items():
                totals[name] = totals.get(name, 0) + value.float() / self.batches
        names = [name for name in totals if name != "logit_scale"]
        means = self.runtime.mean(torch.stack([totals[name] for name in names])).tolist()
        return {f"validation/{name}": value for name, value in zip(names, means, strict=True)}

    @torch.no_grad()
    def pictures(self, engine) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """(pictures by TensorBoard tag, texts by tag). Every rank computes them, since every rank holds a shard of the model."""
        inputs, images, texts = self._inputs(self.shown), {}, {}
        if self.config.model.captions:
            steps = min(CAPTION_STEPS, self.config.model.text.context_length - 1)
            ids_BL = engine("generate", image_BCHW=inputs["image_BCHW"], steps=steps).tolist()
            rows = [
                f"| {number} | {self.caption(number).replace('|', ' ')} | {self.tokenizer.decode(ids).replace('|', ' ')} |"
                for number, ids in zip(self.shown, ids_BL, strict=True)
            ]
            texts["captions"] = "\n".join(["| image | caption | generated |", "|---|---|---|", *rows])
        if self.config.model.reconstructs:
            out = engine("reconstruct", **inputs)
            rows = []
            for target, pixels, hidden in zip(out["target_BNP"], out["pixels_BNP"], out["hidden_BN"].cpu().numpy(), strict=True):
                original, rebuilt = patches_to_picture(target), patches_to_picture(pixels)
                rows += [original, mask_overlay(original, hidden), paste(original, rebuilt, hidden)]
            labels = ["original", "hidden patches", "rebuilt"] * len(self.shown)
            images["masks_and_reconstruction"] = grid([enlarge(row, 96) for row in rows], columns=6, labels=labels)
        return images, texts

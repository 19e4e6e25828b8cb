"""SyCoCa: two encoders, two decoders, three losses. One `forward` is the only way in, for training and evaluation alike:
ZeRO-3 gathers parameters by the hooks of the module that is called, and records which modules a step runs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import LossConfig, ModelConfig, check_model
from sycoca_ds.model.blocks import initialise
from sycoca_ds.model.decoders import ImageDecoder, TextDecoder
from sycoca_ds.model.generation import greedy
from sycoca_ds.model.image_encoder import ImageEncoder, patchify
from sycoca_ds.model.masking import attention_scores, random_scores, split_patches, take_patches
from sycoca_ds.model.objectives import captioning_loss, contrastive_loss, masked_l1
from sycoca_ds.model.text_encoder import PAD_ID, TextEncoder

LOGIT_SCALE_START = math.log(1 / 0.07)


class SyCoCa(nn.Module):
    """The whole model of one family (`clip`, `coca` or `sycoca`).

    Build it on the "meta" device to count parameters without memory. `seed` None leaves the weights as allocated, for a
    caller that loads them all.
    """

    def __init__(self, config: ModelConfig, loss: LossConfig | None = None, seed: int | None = 0):
        super().__init__()
        check_model(config)
        self.config, self.loss = config, loss or LossConfig()
        image, text = config.image, config.text
        self.image_encoder = ImageEncoder(image, config.embed_dim)
        self.text_encoder = TextEncoder(text, config.embed_dim)
        # shape [1]: DeepSpeed's stages crash on a 0-dim parameter when it is broadcast
        self.logit_scale = nn.Parameter(torch.full((1,), LOGIT_SCALE_START))
        self.text_decoder = self.image_decoder = None
        if config.captions:
            self.text_decoder = TextDecoder(config.text_decoder, image.width, text.vocab_size)
        if config.reconstructs:
            guide_width = text.width if config.masking.mim == "text_guided" else None
            self.image_decoder = ImageDecoder(config.image_decoder, image.width, guide_width, image.patches, image.patch_values)
        if seed is not None and self.logit_scale.device.type != "meta":
            initialise(self, config.init_std, seed)

    def set_activation_checkpointing(self, enabled: bool) -> None:
        """Recompute every block in the backward pass instead of keeping its activations."""
        for part in (self.image_encoder, self.text_encoder, self.text_decoder, self.image_decoder):
            if part is not None:
                part.recompute = enabled

    def forward(self, task: str, **inputs) -> dict[str, Tensor] | Tensor:
        """Runs one task: `train`, `image_features`, `text_features`, `generate`, `reconstruct` (the methods below)."""
        if task not in ("train", "image_features", "text_features", "generate", "reconstruct"):
            raise ValueError(f"unknown task {task!r}")
        return getattr(self, f"_{task}")(**inputs)

    def _patches(self, image_BCHW: Tensor) -> Tensor:
        """Patches of a normalised image in the weights' dtype: (B, N, P)."""
        return patchify(image_BCHW, self.config.image.patch_size).to(self.image_encoder.patch_embed.weight.dtype)

    def _project_image(self, x: Tensor) -> Tensor:
        """Projection to the shared space, float32 and L2-normalised: (.., D) -> (.., E)."""
        return F.normalize(self.image_encoder.proj(x).float(), dim=-1)

    def _image_features(self, image_BCHW: Tensor) -> Tensor:
        """Global image vectors (B, E), float32, L2-normalised."""
        return self._project_image(self.image_encoder(self._patches(image_BCHW))[0])

    def _text_features(self, text_BL: Tensor) -> Tensor:
        """Global text vectors (B, E), float32, L2-normalised."""
        return self.text_encoder.project(self.text_encoder(text_BL)[0])

    def _scores(self, patch_BND: Tensor, text_cls_BD: Tensor, token_BLD: Tensor, text_BL: Tensor) -> Tensor:
        """Attentive scores (B, N), no gradient (paper eq. 7)."""
        by_token = self.config.masking.similarity != "global"
        centred = self.config.masking.similarity == "centred_token_max"
        with torch.no_grad():
            text_BLE = self.text_encoder.project(token_BLD if by_token else text_cls_BD[:, None])
            valid_BL = text_BL != PAD_ID if by_token else torch.ones_like(text_BL[:, :1], dtype=torch.bool)
            return attention_scores(self._project_image(patch_BND), text_BLE, valid_BL, centred)

    def _encode_kept(self, patch_BNP: Tensor, all_BND: Tensor, keeps: list[Tensor]) -> list[Tensor]:
        """Encoder outputs of the kept patches, for each set of kept patches.

        Sets of one size go through the encoder as one batch. With `mask_at = embedding` the outputs of the full pass serve.
        """
        if self.config.masking.mask_at == "embedding":
            return [take_patches(all_BND, keep) for keep in keeps]
        if len({keep.shape for keep in keeps}) == 1:
            together = self.image_encoder(patch_BNP.repeat(len(keeps), 1, 1), torch.cat(keeps))[1]
            return list(together.chunk(len(keeps)))
        return [self.image_encoder(patch_BNP, keep)[1] for keep in keeps]

    def _train(self, image_BCHW: Tensor, text_BL: Tensor, key_B: Tensor | None = None) -> dict[str, Tensor]:
        """The losses of one micro-batch. Every rank runs the same modules whatever its data.

        Args:
            image_BCHW: float, normalised; text_BL: int64 ids.
            key_B: int64 a sample, the key of random masks; needed for `mask_by = random` only.

        Returns:
            0-dim float32 tensors: loss, itc, (ic), (mim), logit_scale, i2t_accuracy, t2i_accuracy. Only loss carries gradient.
        """
        config, masking = self.config, self.config.masking
        patch_BNP = self._patches(image_BCHW)
        valid_BL = text_BL != PAD_ID
        cls_BD, all_BND = self.image_encoder(patch_BNP)
        text_cls_BD, token_BLD = self.text_encoder(text_BL)

        scale = self.logit_scale.float().clamp(max=math.log(config.max_logit_scale)).exp()
        itc, report = contrastive_loss(self._project_image(cls_BD), self.text_encoder.project(text_cls_BD), scale)
        loss = self.loss.itc * itc
        report.update(itc=itc, logit_scale=scale.squeeze())

        keep_caption = keep_mim = None
        if config.reconstructs or (config.captions and masking.low_ratio > 0 and config.family == "sycoca"):
            if masking.mask_by == "attention":
                for_caption = for_mim = self._scores(all_BND, text_cls_BD, token_BLD, text_BL)
            else:
                for_caption = random_scores(key_B, patch_BNP.shape[1], salt=1)
                for_mim = random_scores(key_B, patch_BNP.shape[1], salt=2)
            if config.reconstructs:
                keep_mim, hidden_BN = split_patches(for_mim, masking.high_ratio, "highest")
            if masking.low_ratio > 0:
                keep_caption = split_patches(for_caption, masking.low_ratio, "lowest")[0]
        keeps = [keep for keep in (keep_caption, keep_mim) if keep is not None]
        kept = self._encode_kept(patch_BNP, all_BND, keeps) if keeps else []

        if self.text_decoder is not None:
            seen_BSD = kept[0] if keep_caption is not None else all_BND
            # the label of position t is token t + 1: the last position has none, and neither have pads
            has_label_BL = valid_BL[:, 1:]
            logits_MV = self.text_decoder(token_BLD[:, :-1], seen_BSD, has_label_BL)
            ic = captioning_loss(logits_MV, text_BL[:, 1:][has_label_BL])
            loss = loss + self.loss.ic * ic
            report["ic"] = ic
        if self.image_decoder is not None:
            guided = masking.mim == "text_guided"
            pixels_BNP = self.image_decoder(kept[-1], keep_mim, token_BLD if guided else None, valid_BL if guided else None)
            mim = masked_l1(pixels_BNP, patch_BNP, hidden_BN).mean()
            loss = loss + self.loss.mim * mim
            report["mim"] = mim
        return {"loss": loss, **{name: value.detach() for name, value in report.items()}}

    def _generate(self, image_BCHW: Tensor, steps: int) -> Tensor:
        """Captions by greedy search from all patches: int64 (B, steps), [SOT] left out, pads after [EOT].

        Exactly `steps` tokens are computed whatever the captions, so that all ranks run the same modules.
        """
        image_BSD = self.image_encoder(self._patches(image_BCHW))[1]

        def next_logits(text_BL: Tensor) -> Tensor:
            return self.text_decoder(self.text_encoder(text_BL)[1], image_BSD)[:, -1]

        return greedy(next_logits, len(image_BCHW), steps, image_BCHW.device)

    def _reconstruct(
        self,
        image_BCHW: Tensor,
        text_BL: Tensor,
        guide_BL: Tensor | None = None,
        mask_by: str | None = None,
        key_B: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Rebuilds the hidden patches.

        Args:
            text_BL: the caption that chooses the hidden patches.
            guide_BL: the caption that guides the rebuilding; default text_BL.
            mask_by: "attention" or "random"; default the configuration's.
            key_B: int64 a sample, for random masks.

        Returns:
            pixels_BNP (prediction), target_BNP (both normalised pixels, float32), hidden_BN (bool), scores_BN (float32),
            l1_B (float32, mean over the hidden patches).
        """
        patch_BNP = self._patches(image_BCHW)
        all_BND = self.image_encoder(patch_BNP)[1]
        score_BN = self._scores(all_BND, *self.text_encoder(text_BL), text_BL)
        by_noise = (mask_by or self.config.masking.mask_by) == "random"
        ranks_BN = random_scores(key_B, patch_BNP.shape[1], salt=2) if by_noise else score_BN
        keep_BK, hidden_BN = split_patches(ranks_BN, self.config.masking.high_ratio, "highest")
        (kept_BKD,) = self._encode_kept(patch_BNP, all_BND, [keep_BK])
        guide_BL = text_BL if guide_BL is None else guide_BL
        guided = self.config.masking.mim == "text_guided"
        guide_BLD = self.text_encoder(guide_BL)[1] if guided else None
        pixels_BNP = self.image_decoder(kept_BKD, keep_BK, guide_BLD, guide_BL != PAD_ID if guided else None)
        return {
            "pixels_BNP": pixels_BNP.float(),
            "target_BNP": patch_BNP.float(),
            "hidden_BN": hidden_BN,
            "scores_BN": score_BN,
            "l1_B": masked_l1(pixels_BNP, patch_BNP, hidden_BN),
        }

"""SyCoCa: two encoders, two decoders, three losses. One `forward` is the only way in, for training and evaluation alike:
ZeRO-3 gathers parameters by the hooks of the module that is called, and records which modules a step runs."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import LossConfig, ModelConfig, check_model
from sycoca_ds.model.answering import Answering, Fusion
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.decoders import ImageDecoder, TextDecoder
from sycoca_ds.model.generation import Captioner, Decoding, generate
from sycoca_ds.model.grad_cam import GradCam
from sycoca_ds.model.image_encoder import ImageEncoder
from sycoca_ds.model.layers.initialise import initialise
from sycoca_ds.model.masking.patches import random_scores, split_patches, take_patches
from sycoca_ds.model.masking.ranking import FullPass, repeated
from sycoca_ds.model.objectives import (
    contrastive_loss,
    label_count,
    late_interaction_loss,
    masked_l1,
    patch_moments,
)
from sycoca_ds.model.text_encoder import TextEncoder, label_places

LOGIT_SCALE_START = math.log(1 / 0.07)
TASKS = (
    "train",
    "features",
    "contrast",
    "image_features",
    "image_outputs",
    "text_features",
    "patch_sums",
    "patch_features",
    "token_features",
    "masking_scores",
    "token_scores",
    "grad_cam",
    "generate",
    "caption_likelihoods",
    "reconstruct",
    "train_answers",
    "rank_answers",
    "generate_answers",
)


class SyCoCa(GradCam, Answering):
    """The whole model of one family (`clip`, `coca` or `sycoca`).

    Build it on the "meta" device to count parameters without memory. `seed` None leaves the weights as allocated, for a
    caller that loads them all.
    """

    def __init__(self, config: ModelConfig, loss: LossConfig | None = None, seed: int | None = 0):
        super().__init__()
        check_model(config)
        self.config, self.loss = config, loss or LossConfig()
        image, text = config.image, config.text
        if text.vocab_size is None:
            raise ValueError("model.text.vocab_size is open: build the model with_vocabulary(config, entries of the tokenizer)")
        self.image_encoder = ImageEncoder(image, config.embed_dim)
        self.text_encoder = TextEncoder(text, config.embed_dim)
        # shape [1]: DeepSpeed's stages crash on a 0-dim parameter when it is broadcast
        self.logit_scale = nn.Parameter(torch.full((1,), LOGIT_SCALE_START))
        self.text_decoder = self.image_decoder = self.fusion = None
        if config.captions:
            self.text_decoder = TextDecoder(config.text_decoder, config.image_token_width, text.vocab_size)
        if config.reconstructs:
            guide_width = text.width if config.masking.mim == "text_guided" else None
            self.image_decoder = ImageDecoder(config.image_decoder, image.width, guide_width, image.patches, image.patch_values)
        if config.fusion:
            self.fusion = Fusion(config)  # behind all others: their first weights are those of a model without it
        left_out_V = torch.zeros(text.vocab_size, dtype=torch.bool)
        if config.masking.words == "content":
            if config.masking.left_out_ids is None:
                raise ValueError("model.masking.left_out_ids is open: give it with_vocabulary(model, size, left_out_ids)")
            left_out_V[list(config.masking.left_out_ids)] = True
        self.register_buffer("left_out_V", left_out_V, persistent=False)
        if seed is not None and self.logit_scale.device.type != "meta":
            initialise(self, config.init_std, seed)

    def set_activation_checkpointing(self, every: int | dict[str, int]) -> None:
        """Recompute blocks in the backward pass instead of keeping their activations: of each part every k-th, 1 all, 0 none.

        Args:
            every: k of all parts, or by the part's name (`image_encoder`, ...); a part that is not named recomputes none.
        """
        for name, part in self.named_children():
            if hasattr(part, "recompute"):
                part.recompute = every.get(name, 0) if isinstance(every, dict) else int(every)

    def forward(self, task: str, **inputs) -> dict[str, Tensor] | Tensor:
        """Runs one task, a method below: `train`; `features` and `contrast` for accumulated micro-batches; `image_features`,
        `image_outputs`, `text_features`, `patch_sums`, `patch_features`, `token_features`, `masking_scores`, `token_scores`,
        `grad_cam`, `generate`, `caption_likelihoods`, `reconstruct`; or one of `Answering`: `train_answers`, `rank_answers`,
        `generate_answers`."""
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}: expected one of {', '.join(TASKS)}")
        decoders = {"generate": self.text_decoder, "caption_likelihoods": self.text_decoder, "reconstruct": self.image_decoder}
        part = self.fusion if task.endswith("_answers") else decoders.get(task, self)
        if part is None:
            family, mim, fusion = self.config.family, self.config.masking.mim, self.config.fusion
            what = f"family {family} with masking.mim = {mim} and fusion = {fusion}"
            raise ValueError(f"task {task!r}: a model of {what} has no decoder for it")
        return getattr(self, f"_{task}")(**inputs)

    def _scale(self, logit_scale: Tensor) -> Tensor:
        """The factor of the contrastive logits, at most `max_logit_scale`. Above the bound the value is cut and the gradient
        passes as if it were not: with none, a scale that overshoots once would stay at the bound for the rest of the run.
        In bf16 the model sees the factor in steps of 1.5 to 3 %; DeepSpeed's float32 master moves smoothly."""
        x = logit_scale.float()
        above = (x - math.log(self.config.max_logit_scale)).clamp(min=0).detach()
        return (x - above).exp()

    def _image_features(self, image_BCHW: Tensor) -> Tensor:
        """Global image vectors (B, E), float32, L2-normalised."""
        encoder = self.image_encoder
        return encoder.project(encoder.read(encoder(self._patches(image_BCHW)))[0])

    def _image_outputs(self, image_BCHW: Tensor) -> Tensor:
        """What the projection is given: global outputs behind the last norm, (B, D), E wide with attention pooling. CLIP's linear
        probe stands on them (Radford et al. 2021, A.3)."""
        return self.image_encoder.read(self.image_encoder(self._patches(image_BCHW)))[0]

    def _text_features(self, text_BL: Tensor) -> Tensor:
        """Global text vectors (B, E), float32, L2-normalised."""
        return self.text_encoder.project_global(self.text_encoder(text_BL)[0])

    def _labels(self, text_BL: Tensor, label_at_M: Tensor | None) -> Tensor:
        """`label_at_M`, or what `label_places` finds."""
        return label_places(text_BL, self.config.text.eot_id) if label_at_M is None else label_at_M

    def _features(self, image_BCHW: Tensor, text_BL: Tensor, label_at_M: Tensor | None = None) -> dict[str, Tensor]:
        """What a step of several micro-batches has to know of each beforehand: image_BE and text_BE, both global vectors; for the
        late interaction patch_BNE, token_BLE and counted_BL, captions filled up to the context length; for scores that look at
        other pictures total_E, the sum over all patches. The arguments are those of `train`."""
        image = self._read_image(self._patches(image_BCHW))
        full = self._full_pass(image, text_BL, labels=len(self._labels(text_BL, label_at_M)))
        encoder = self.image_encoder
        image_BE, text_BE = encoder.project(encoder.read(full.image_BSD)[0]), self.text_encoder.project_global(full.text_BD)
        found = {"image_BE": image_BE, "text_BE": text_BE}
        if self.loss.late_interaction:
            found |= self._late_features(full)
        if self._looks_at_others:
            found["total_E"] = encoder.project_patches(full.image_BSD).sum(dim=(0, 1))
        return found

    def _late_features(self, full: FullPass) -> dict[str, Tensor]:
        """What the late interaction compares. Captions are padded by rank and micro-batch, so here to the context length."""
        fill = self.config.text.context_length - full.text_BL.shape[1]
        return {
            "patch_BNE": self.image_encoder.project_patches(full.image_BSD),
            "token_BLE": F.pad(full.padded(self.text_encoder.project(full.token_BLD)), (0, 0, 0, fill)),
            "counted_BL": F.pad(self._counted(full.text_BL), (0, fill)),
        }

    def _contrast(
        self,
        image_BE: Tensor,
        text_BE: Tensor,
        patch_BNE: Tensor | None = None,
        token_BLE: Tensor | None = None,
        counted_BL: Tensor | None = None,
        key_B: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The contrasts of given features and their gradients, for steps of several micro-batches (as GradCache, Gao et al. 2021).

        Args:
            image_BE, text_BE, and for the late interaction the rest: this rank's features of all its micro-batches.

        Returns:
            itc, (late_interaction), logit_scale, i2t_accuracy, t2i_accuracy (0-dim); image_grad_BE, text_grad_BE, (patch_grad_BNE,
            token_grad_BLE), scale_grad: d loss / d feature and d loss / d logit_scale, of the two contrasts' weighted sum. No
            gradient flows through any of them.
        """
        with torch.enable_grad():
            leaves = {"image_grad_BE": image_BE, "text_grad_BE": text_BE, "scale_grad": self.logit_scale}
            if self.loss.late_interaction:
                leaves |= {"patch_grad_BNE": patch_BNE, "token_grad_BLE": token_BLE}
            leaves = {name: x.detach().requires_grad_() for name, x in leaves.items()}
            scale = self._scale(leaves["scale_grad"])
            itc, report = contrastive_loss(leaves["image_grad_BE"], leaves["text_grad_BE"], scale)
            report, loss = {**report, "itc": itc.detach(), "logit_scale": scale.detach().squeeze()}, self.loss.itc * itc
            if self.loss.late_interaction:
                late = late_interaction_loss(
                    leaves["patch_grad_BNE"], leaves["token_grad_BLE"], counted_BL, key_B, scale, self.loss.late_interaction_group
                )
                report["late_interaction"], loss = late.detach(), loss + self.loss.late_interaction * late
            grads = torch.autograd.grad(loss, list(leaves.values()))
        return report | dict(zip(leaves, grads, strict=True))

    def _encode_kept(self, patch_BNP: Tensor, full_BSD: Tensor, keeps: list[Tensor]) -> list[Tensor]:
        """Encoder outputs of [CLS] and the kept patches, for each set of kept patches.

        Sets of one size go through the encoder as one batch. With `mask_at = embedding` the outputs of the full pass serve.
        """
        if self.config.masking.mask_at == "embedding":
            return [torch.cat([full_BSD[:, :1], take_patches(full_BSD[:, 1:], keep)], dim=1) for keep in keeps]
        taken = [take_patches(patch_BNP, keep) for keep in keeps]
        if len({keep.shape for keep in keeps}) == 1:
            return list(self.image_encoder(torch.cat(taken), torch.cat(keeps)).chunk(len(keeps)))
        return [self.image_encoder(patch_BKP, keep) for patch_BKP, keep in zip(taken, keeps, strict=True)]

    def _target(self, patch_BNP: Tensor) -> Tensor:
        """What TG-MIM rebuilds: (B, N, P) float32."""
        if self.config.masking.target == "pixels":
            return patch_BNP.float()
        mean, deviation = patch_moments(patch_BNP)
        return (patch_BNP.float() - mean) / deviation

    def _train(
        self,
        image_BCHW: Tensor,
        text_BL: Tensor,
        label_at_M: Tensor | None = None,
        key_B: Tensor | None = None,
        mask_by: str | None = None,
        contrast: dict[str, Tensor] | None = None,
        labels_a_share: Tensor | None = None,
        others: tuple[Tensor, int] | None = None,
    ) -> dict[str, Tensor]:
        """The losses of one micro-batch. Every rank runs the same modules whatever its data.

        Args:
            image_BCHW: uint8 RGB, or float and already normalised; text_BL: int64 ids.
            label_at_M: `label_places` of text_BL, all of them; by default found here, for which the host waits for the device.
                Their number says how many rows captions have without padding.
            key_B: int64 a sample, the key of random masks and of the late interaction's groups; needed where there are any.
            mask_by: "attention" or "random", the same on all ranks; default the configuration's.
            contrast: with several micro-batches a step, what `_contrast` returned for all of them, its feature gradients cut to
                this one's rows and multiplied, with the scale's, as engine/accumulation.py says.
            labels_a_share: `label_count` of the whole step; default that of this call.
            others: the sum over all patches of the whole step, (E,), and the number of its pictures, on all ranks, for scores that
                look at other pictures; default those of this call.

        Returns:
            0-dim float32 tensors: loss, itc, (late_interaction), (ic), (mim), logit_scale, i2t_accuracy, t2i_accuracy. Only loss
            carries gradient.
        """
        config, masking = self.config, self.config.masking
        attends = self._ranks and (mask_by or masking.mask_by) == "attention"
        patch_BNP = self._patches(image_BCHW)
        similarity = masking.similarity if attends else None
        label_at_M = self._labels(text_BL, label_at_M)
        full = self._full_pass(self._read_image(patch_BNP, similarity), text_BL, similarity, labels=len(label_at_M))
        global_BD, seen_BSD = self.image_encoder.read(full.image_BSD)
        rows, token_TD = full.rows, full.token_BLD

        image_BE, text_BE = self.image_encoder.project(global_BD), self.text_encoder.project_global(full.text_BD)
        late = self._late_features(full) if self.loss.late_interaction else {}
        if contrast is None:
            scale = self._scale(self.logit_scale)
            itc, report = contrastive_loss(image_BE, text_BE, scale)
            report.update(itc=itc, logit_scale=scale.squeeze())
            loss = self.loss.itc * itc
            if late:
                if key_B is None:
                    raise ValueError("the late interaction needs key_B, one int64 key a sample")
                report["late_interaction"] = late_interaction_loss(
                    **late, key_B=key_B, scale=scale, group=self.loss.late_interaction_group
                )
                loss = loss + self.loss.late_interaction * report["late_interaction"]
        else:
            # linear in the features and the scale with the given slopes; its value is made that of the whole step's contrasts
            names = ("itc", "logit_scale", "i2t_accuracy", "t2i_accuracy", *(("late_interaction",) if late else ()))
            report = {name: contrast[name] for name in names}
            linear = (image_BE * contrast["image_grad_BE"]).sum() + (text_BE * contrast["text_grad_BE"]).sum()
            linear = linear + (self.logit_scale.float() * contrast["scale_grad"]).sum()
            if late:
                linear = linear + (late["patch_BNE"] * contrast["patch_grad_BNE"]).sum()
                linear = linear + (late["token_BLE"] * contrast["token_grad_BLE"]).sum()
            value = self.loss.itc * report["itc"] + (self.loss.late_interaction * report["late_interaction"] if late else 0.0)
            loss = linear - linear.detach() + value

        valid_BL = self._real(text_BL)
        keep_caption = keep_mim = None
        if self._ranks:
            if attends:
                for_caption = for_mim = self._scores(full, others=others)
            else:
                if key_B is None:
                    raise ValueError("random masks need key_B, one int64 key a sample")
                for_caption = random_scores(key_B, patch_BNP.shape[1], salt=1)
                for_mim = random_scores(key_B, patch_BNP.shape[1], salt=2)
            if config.reconstructs:
                keep_mim, hidden_BN = split_patches(for_mim, masking.high_ratio, "highest")
            if masking.low_ratio > 0:
                keep_caption = split_patches(for_caption, masking.low_ratio, "lowest")[0]
        keeps = [keep for keep in (keep_caption, keep_mim) if keep is not None]
        kept = self._encode_kept(patch_BNP, full.image_BSD, keeps) if keeps else []

        if self.text_decoder is not None:
            if keep_caption is not None:
                seen_BSD = self.image_encoder.read(kept[0])[1]
            label_M = text_BL[:, 1:].flatten().index_select(0, label_at_M)
            summed = self.text_decoder(rows.inputs_of(token_TD), seen_BSD, target_M=label_M, packing=rows.inputs)
            ic = summed / (label_count(valid_BL[:, 1:].sum(), 1) if labels_a_share is None else labels_a_share)
            loss = loss + self.loss.ic * ic
            report["ic"] = ic
        if self.image_decoder is not None:
            guided = masking.mim == "text_guided"
            kept_BKD = self.image_encoder.read_patches(kept[-1])
            guide = (token_TD, valid_BL, rows.tokens) if guided else (None, None, None)
            pixels_BNP = self.image_decoder(kept_BKD, keep_mim, *guide)
            mim = masked_l1(pixels_BNP, self._target(patch_BNP), hidden_BN).mean()
            loss = loss + self.loss.mim * mim
            report["mim"] = mim
        return {"loss": loss, **{name: value.detach() for name, value in report.items()}}

    def _generate(
        self,
        image_BCHW: Tensor,
        steps: int,
        decoding: Decoding | None = None,
        prompt_BL: Tensor | None = None,
        choices: Choices | None = None,
        key_B: Tensor | None = None,
        embed: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Captions from all patches: int64 (B, steps), [SOT] left out, pads after [EOT]; with `embed` text_BT, these, image_BE,
        the `image_features` of the same pass, and largest_logit, 0-dim float32, which is NaN where a logit was.

        Exactly `steps` tokens are computed whatever the captions, so that all ranks run the same modules; the arguments are
        those of `generation.generate`.
        """
        decoding = decoding or Decoding()
        global_BD, image_BSD = self.image_encoder.read(self.image_encoder(self._patches(image_BCHW)))
        captioner = Captioner(self.text_encoder, self.text_decoder, image_BSD, steps=steps)
        text_BT = generate(captioner, steps, self.config.text, decoding, prompt_BL=prompt_BL, choices=choices, key_B=key_B)
        if not embed:
            return text_BT
        image_BE = self.image_encoder.project(global_BD)
        return {"text_BT": text_BT, "image_BE": image_BE, "largest_logit": captioner.largest_logit}

    def _caption_likelihoods(self, image_BCHW: Tensor, text_TL: Tensor, image_of_T: Tensor) -> Tensor:
        """How likely each text is as the caption of one of the pictures, from all patches: (T,) float32, the sum over its tokens,
        [EOT] included, of their log-probabilities, 0 or less.

        Args:
            text_TL: int64 ids, `[SOT] w.. [EOT]` and padding. image_of_T: int64, its row of `image_BCHW`.
        """
        image_BSD = self.image_encoder.read(self.image_encoder(self._patches(image_BCHW)))[1]
        label_at_M = label_places(text_TL, self.config.text.eot_id)
        label_M = text_TL[:, 1:].flatten().index_select(0, label_at_M)
        rows = self.text_encoder.rows(text_TL, len(label_at_M))
        input_MD = rows.inputs_of(self.text_encoder(text_TL, rows=rows)[1])
        seen_TSD = image_BSD.index_select(0, image_of_T)
        loss_M = self.text_decoder(input_MD, seen_TSD, target_M=label_M, each=True, packing=rows.inputs)
        loss_TL = loss_M.new_zeros(text_TL[:, 1:].numel()).index_copy(0, label_at_M, loss_M).view(len(text_TL), -1)
        return -loss_TL.sum(dim=1)

    def _reconstruct(
        self,
        image_BCHW: Tensor,
        text_BL: Tensor,
        guide_BL: Tensor | None = None,
        mask_by: str | None = None,
        key_B: Tensor | None = None,
        others: tuple[Tensor, int] | None = None,
    ) -> dict[str, Tensor]:
        """Rebuilds the hidden patches.

        Args:
            text_BL: the caption that chooses the hidden patches.
            guide_BL: the caption that guides the rebuilding; default text_BL. Of G times as many rows, G guides a picture, all
                first ones, then all second ones: what is predicted then has as many, rebuilt from the same kept patches.
            mask_by: "attention" or "random"; default the configuration's.
            key_B: int64 a sample, for random masks.
            others: as `masking_scores` takes them.

        Returns:
            pixels_BNP (prediction), target_BNP (both in pixels as the model is given them, float32; where the target is
            normalised, the prediction is put back with the true patch's mean and deviation, as MAE shows it), hidden_BN (bool),
            scores_BN (float32), l1_B (float32, mean over the hidden patches, in the units of the target).
        """
        patch_BNP = self._patches(image_BCHW)
        similarity = self.config.masking.similarity
        full = self._full_pass(self._read_image(patch_BNP, similarity), text_BL, similarity)
        score_BN = self._scores(full, others=others)
        by_noise = (mask_by or self.config.masking.mask_by) == "random"
        ranks_BN = random_scores(key_B, patch_BNP.shape[1], salt=2) if by_noise else score_BN
        keep_BK, hidden_BN = split_patches(ranks_BN, self.config.masking.high_ratio, "highest")
        kept_BKD = self.image_encoder.read_patches(self._encode_kept(patch_BNP, full.image_BSD, [keep_BK])[0])
        guide_BL = text_BL if guide_BL is None else guide_BL
        guided = self.config.masking.mim == "text_guided"
        guide_BLD = self.text_encoder(guide_BL)[1] if guided else None
        patch_GNP, hidden_GN, kept_GKD, keep_GK = (
            repeated(x, len(guide_BL) // len(text_BL)) for x in (patch_BNP, hidden_BN, kept_BKD, keep_BK)
        )
        predicted_BNP = self.image_decoder(kept_GKD, keep_GK, guide_BLD, self._real(guide_BL) if guided else None).float()
        l1_B = masked_l1(predicted_BNP, self._target(patch_GNP), hidden_GN)
        if self.config.masking.target == "normalised_pixels":
            mean, deviation = patch_moments(patch_GNP)
            predicted_BNP = predicted_BNP * deviation + mean
        return {
            "pixels_BNP": predicted_BNP,
            "target_BNP": patch_BNP.float(),
            "hidden_BN": hidden_BN,
            "scores_BN": score_BN,
            "l1_B": l1_B,
        }

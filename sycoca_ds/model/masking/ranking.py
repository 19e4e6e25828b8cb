"""Which patches fit a caption best: the scores of `scores.py` on what the encoders say of pictures and captions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import ModelConfig
from sycoca_ds.model.decoders import TextDecoder
from sycoca_ds.model.image_encoder import ImageEncoder, patchify
from sycoca_ds.model.layers.packing import CaptionRows
from sycoca_ds.model.masking.scores import (
    best_match,
    centred_over_patches,
    centred_over_pictures,
    counted_tokens,
    mean_match,
    mean_of_others,
    products,
    saliency,
)
from sycoca_ds.model.objectives import summed_over_ranks, world_size
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.text_encoder import TextEncoder, real_tokens


def repeated(x: Tensor, times: int) -> Tensor:
    """All rows, then all rows again, so many times; once they are themselves, without a copy."""
    return x if times == 1 else x.repeat(times, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class FullPass:
    """What both encoders say of whole pictures and captions; of each picture one caption, or several: all first ones, then all
    second ones, and so on, in C times as many rows."""

    text_BL: Tensor
    image_BSD: Tensor
    """Outputs of [CLS] and all patches."""
    text_BD: Tensor
    """The captions' global outputs."""
    token_BLD: Tensor
    """The captions' token outputs; with `rows` they are (T, D), without padding."""
    patch_alone_BND: Tensor | None = None
    token_alone_BLD: Tensor | None = None
    """What each [CLS] would be if its last block had shown it one patch or token alone; where scores need it."""
    rows: CaptionRows | None = None

    def padded(self, token_BLD: Tensor) -> Tensor:
        """What is known of tokens, with the padding of `text_BL`: (B, L, D). What pads have means nothing."""
        return token_BLD if self.rows is None else self.rows.tokens.unpack(token_BLD)

    def a_caption(self, x: Tensor) -> Tensor:
        """What is known of each picture, a row for each of its captions."""
        return repeated(x, len(self.text_BL) // len(self.image_BSD))


class PatchRanking(nn.Module):
    """The part of the model that ranks patches; it has no weights of its own."""

    config: ModelConfig
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    text_decoder: TextDecoder | None
    left_out_V: Tensor
    """bool, by id: tokens that do not count (`masking.words`)."""

    def _patches(self, image_BCHW: Tensor) -> Tensor:
        """Patches of normalised images in the weights' dtype: (B, N, P). uint8 pixels are normalised here, on the device."""
        if image_BCHW.dtype == torch.uint8:
            image_BCHW = normalise(image_BCHW)
        return patchify(image_BCHW, self.config.image.patch_size).to(self.image_encoder.patch_embed.weight.dtype)

    def _real(self, text_BL: Tensor) -> Tensor:
        return real_tokens(text_BL, self.config.text.eot_id)

    def _counted(self, text_BL: Tensor) -> Tensor:
        """bool (B, L): the tokens that scores compare patches with."""
        return counted_tokens(text_BL, self._real(text_BL), self.left_out_V)

    @property
    def _ranks(self) -> bool:
        """Whether training hides patches."""
        return self.config.reconstructs or (self.config.family == "sycoca" and self.config.masking.low_ratio > 0)

    @property
    def _looks_at_others(self) -> bool:
        return self._ranks and self.config.masking.similarity == "centred_over_pictures"

    def _read_image(self, patch_BNP: Tensor, similarity: str | None = None) -> tuple[Tensor, Tensor | None]:
        """`FullPass.image_BSD`, and what each patch alone would give [CLS] where that similarity needs it."""
        if similarity != "value_path" or self.image_encoder.pool is not None:  # the pool has a value path: `project_patches`
            return self.image_encoder(patch_BNP), None
        return self.image_encoder(patch_BNP, alone=True)

    def _full_pass(
        self,
        image: tuple[Tensor, Tensor | None],
        text_BL: Tensor,
        similarity: str | None = None,
        labels: int | None = None,
    ) -> FullPass:
        """What `_read_image` gave, and the captions; with what that similarity needs.

        Args:
            labels: how many `label_places` text_BL has; then captions are encoded without their padding.
        """
        rows = None if labels is None else self.text_encoder.rows(text_BL, labels)
        text_BD, token_BLD, *alone = self.text_encoder(text_BL, alone=similarity == "value_path", rows=rows)
        return FullPass(text_BL, image[0], text_BD, token_BLD, image[1], *(alone or [None]), rows)

    def _shared_patches(self, image_BSD: Tensor, alone_BND: Tensor | None) -> Tensor:
        """Patches in the shared space, (B, N, E) float32, L2-normalised; by the value path if `alone_BND` is what that gave."""
        encoder = self.image_encoder
        return encoder.project_patches(image_BSD) if alone_BND is None else encoder.project(encoder.ln_post(alone_BND))

    def _patch_features(self, image_BCHW: Tensor, similarity: str | None = None) -> Tensor:
        """Patches as that similarity compares them with texts: (B, N, E) float32, L2-normalised."""
        return self._shared_patches(*self._read_image(self._patches(image_BCHW), similarity))

    def _token_features(self, text_BL: Tensor, similarity: str | None = None) -> Tensor:
        """Tokens as that similarity compares them with patches: (B, L, E) float32, L2-normalised; what pads have means nothing."""
        alone = similarity == "value_path"
        found = self.text_encoder(text_BL, alone=alone)
        return self.text_encoder.project(found[2] if alone else found[1])

    @torch.no_grad()
    def _by_token(self, full: FullPass, similarity: str, others: tuple[Tensor, int] | None = None) -> Tensor:
        """Each token's scores of each patch, (B, L, N) float32, before any maximum.

        Args:
            others: (sum over the patches of all pictures, these included, and the number of pictures), for `centred_over_pictures`;
                default the pass's own, on all ranks.
        """
        image_BSD = full.image_BSD.detach()
        if similarity == "cross_attention":  # the decoder says token j + 1 at place j
            seen_BND = full.a_caption(self.image_encoder.read(image_BSD)[1])
            if full.rows is None:
                looks_BLN = self.text_decoder.looks(full.token_BLD[:, :-1].detach(), seen_BND)
            else:
                looks_BLN = self.text_decoder.looks(full.rows.inputs_of(full.token_BLD.detach()), seen_BND, full.rows.inputs)
            return F.pad(looks_BLN, (0, 0, 1, 0))
        alone = similarity == "value_path"
        token_BLE = full.padded(self.text_encoder.project(full.token_alone_BLD if alone else full.token_BLD.detach()))
        patch_BNE = self._shared_patches(image_BSD, full.patch_alone_BND if alone else None)
        score_BLN = products(token_BLE, full.a_caption(patch_BNE))
        if similarity == "centred_token_max":
            return centred_over_patches(score_BLN)
        if similarity == "centred_over_pictures":
            own_BE = patch_BNE.sum(dim=1)
            total_E, pictures = others or (summed_over_ranks(own_BE.sum(dim=0)), world_size() * len(own_BE))
            other_BE = mean_of_others(own_BE, total_E, pictures, patch_BNE.shape[1])
            return centred_over_pictures(score_BLN, token_BLE, full.a_caption(other_BE))
        return score_BLN

    @torch.no_grad()
    def _scores(self, full: FullPass, similarity: str | None = None, others: tuple[Tensor, int] | None = None) -> Tensor:
        """Attentive scores (B, N) float32, no gradient: `masking.similarity` says which."""
        similarity = similarity or self.config.masking.similarity
        if similarity in ("saliency", "global"):
            patch_BNE = full.a_caption(self.image_encoder.project_patches(full.image_BSD.detach()))
            if similarity == "saliency":
                return saliency(patch_BNE)
            return products(self.text_encoder.project_global(full.text_BD.detach())[:, None], patch_BNE)[:, 0]
        return self._of_tokens(self._by_token(full, similarity, others), full, similarity)

    def _of_tokens(self, score_BLN: Tensor, full: FullPass, similarity: str) -> Tensor:
        """One score a patch from those of the tokens that count: (B, N)."""
        return (mean_match if similarity == "cross_attention" else best_match)(score_BLN, self._counted(full.text_BL))

    def _captions_pass(self, image_BCHW: Tensor, text_CBL: Tensor, similarity: str) -> FullPass:
        """Every encoder once for all C captions of each picture: with ZeRO-3 each time is a gathering of its weights."""
        return self._full_pass(self._read_image(self._patches(image_BCHW), similarity), text_CBL.flatten(0, 1), similarity)

    def _patch_sums(self, image_BCHW: Tensor) -> Tensor:
        """Sum over each image's patches in the shared space, (B, E) float32: what `others` below are made of."""
        image_BSD = self.image_encoder(self._patches(image_BCHW))
        return self.image_encoder.project_patches(image_BSD).float().sum(dim=1)

    def _masking_scores(
        self,
        image_BCHW: Tensor,
        text_CBL: Tensor,
        similarity: str | None = None,
        others: tuple[Tensor, int] | None = None,
    ) -> Tensor:
        """Attentive scores of each image's patches under each of its C captions: (B, C, N) float32.

        Args:
            similarity: a value of `masking.similarity`; default the configuration's.
            others: (sum of `patch_sums` over all pictures, these included, (E,), and the number of pictures), for
                `centred_over_pictures`; default the call's own images on all ranks.
        """
        similarity = similarity or self.config.masking.similarity
        score_XN = self._scores(self._captions_pass(image_BCHW, text_CBL, similarity), similarity, others)
        return score_XN.unflatten(0, text_CBL.shape[:2]).transpose(0, 1)

    def _token_scores(
        self,
        image_BCHW: Tensor,
        text_CBL: Tensor,
        similarity: str | None = None,
        others: tuple[Tensor, int] | None = None,
    ) -> dict[str, Tensor]:
        """The scores of `masking_scores` and what they are made of: score_BCN, and token_BCLN, each token's own of each patch, of
        which a patch's is the best or the mean. float32.

        Raises:
            ValueError: the similarity knows no tokens.
        """
        similarity = similarity or self.config.masking.similarity
        if similarity in ("saliency", "global"):
            raise ValueError(f"similarity {similarity!r} has no scores of single tokens")
        full = self._captions_pass(image_BCHW, text_CBL, similarity)
        token_XLN = self._by_token(full, similarity, others)
        found = {"score_BCN": self._of_tokens(token_XLN, full, similarity), "token_BCLN": token_XLN}
        return {name: x.unflatten(0, text_CBL.shape[:2]).transpose(0, 1) for name, x in found.items()}

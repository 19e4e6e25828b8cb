"""The two decoders. A layer is open_clip's pair: self-attention + MLP block, then cross-attention + MLP block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sycoca_ds.config import DecoderConfig
from sycoca_ds.model.layers.blocks import CrossBlock, SelfBlock
from sycoca_ds.model.layers.key_values import KeyValues
from sycoca_ds.model.layers.packing import Packing
from sycoca_ds.model.layers.products import LayerNorm, Linear, linear, multiplies_in_float32
from sycoca_ds.model.layers.stacks import recomputes, run_block
from sycoca_ds.model.masking.patches import put_patches

LOGITS_AT_ONCE = 1 << 26
"""Most logits the captioning loss holds at a time: 256 MiB in float32."""
FEW_ROWS = 64
"""Rows up to which a CPU multiplies the vocabulary's matrix by them faster than them by it."""


class _SummedCrossEntropy(torch.autograd.Function):
    """The summed cross entropy of x W^T, pieces of its rows at a time, and in the same pass its gradients: three products, where
    one that computes the logits again in the backward pass has four.

    Not `F.linear_cross_entropy` of torch 2.13, which does the same: of bf16 it gives the sum in bf16, the loss to 0.4 %, and on a
    CPU its own choice of pieces takes eight times as long (docs/model.md).
    """

    @staticmethod
    def forward(ctx, x_MD: Tensor, weight_VD: Tensor, target_M: Tensor, rows: int, gradients: bool) -> Tensor:
        # on a CPU without products in bf16: one copy of the weights for all pieces
        operand_VD = weight_VD.float() if multiplies_in_float32(x_MD) else weight_VD
        summed = x_MD.new_zeros((), dtype=torch.float32)
        for_x = torch.empty_like(x_MD) if gradients else None
        for_weight = None
        start = 0
        for piece_MD, target in zip(x_MD.split(rows), target_M[:, None].split(rows), strict=True):
            piece_MD = piece_MD.to(operand_VD.dtype)
            logits_MV = (piece_MD @ operand_VD.T).float()
            total_M1 = logits_MV.logsumexp(dim=1, keepdim=True)
            own_M1 = logits_MV.gather(1, target) - total_M1
            summed -= own_M1.sum()
            if gradients:
                slope_MV = logits_MV.sub_(total_M1).exp_().scatter_(1, target, own_M1.exp() - 1).to(operand_VD.dtype)
                for_x[start : start + len(piece_MD)] = slope_MV @ operand_VD
                if for_weight is None:  # of several pieces summed in float32: bf16 would round away what each adds
                    for_weight = slope_MV.T @ piece_MD
                    for_weight = for_weight if len(x_MD) <= rows else for_weight.float()
                elif for_weight.dtype == piece_MD.dtype:
                    for_weight.addmm_(slope_MV.T, piece_MD)
                else:
                    for_weight += slope_MV.T @ piece_MD
            start += len(piece_MD)
        ctx.gradients = for_x, None if for_weight is None else for_weight.to(weight_VD.dtype)
        return summed

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the captioning loss has no second backward pass: its gradients are made once")
        (for_x, for_weight), ctx.gradients = ctx.gradients, None  # let go of: the weight's becomes its `grad` without a copy
        return for_x.mul_(slope), for_weight.mul_(slope), None, None, None


class VocabularyHead(Linear):
    """Logits of the next token, or their cross entropy without ever holding all logits."""

    def __init__(self, width: int, vocab_size: int):
        super().__init__(width, vocab_size, bias=False)

    def forward(self, x: Tensor, target_M: Tensor | None = None, each: bool = False) -> Tensor:
        """Logits (.., V) of x (.., D); with `target_M`, the summed cross entropy of the M rows of x, float32, or with `each`
        that of every row, (M,).

        Rows are taken in pieces, of which one's logits are held at a time. The pieces stand inside this one module call, so their
        number may differ from rank to rank: under ZeRO-3 the weight is gathered once, forward and backward.
        """
        if target_M is None:
            if x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 2 and len(x) <= FEW_ROWS:
                return (self.weight @ x.T).T.contiguous()  # of few rows in two thirds of the time
            return super().forward(x)
        rows = max(1, LOGITS_AT_ONCE // self.out_features)
        if not each:
            gradients = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
            return _SummedCrossEntropy.apply(x, self.weight, target_M, rows, gradients)
        if len(x) <= rows:
            return self._cross_entropies(x, target_M)
        pieces = zip(x.split(rows), target_M.split(rows), strict=True)
        again = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(self._cross_entropies, *piece, **again) for piece in pieces])

    def _cross_entropies(self, x_MD: Tensor, target_M: Tensor) -> Tensor:
        return F.cross_entropy(linear(x_MD, self.weight).float(), target_M, reduction="none")


class Decoder(nn.Module):
    """Pairs of self and cross blocks and a last norm; without a second modality only the self blocks exist."""

    def __init__(self, config: DecoderConfig, other_width: int | None, pattern: str):
        super().__init__()
        self.self_blocks = nn.ModuleList(SelfBlock(config.width, config.heads, pattern) for _ in range(config.layers))
        self.cross_blocks = None
        if other_width is not None:
            self.cross_blocks = nn.ModuleList(CrossBlock(config.width, config.heads, other_width) for _ in range(config.layers))
        self.ln_final = LayerNorm(config.width)
        self.recompute = 0

    def run(
        self,
        x: Tensor,
        other: Tensor | None,
        valid: Tensor | None,
        packing: Packing | None = None,
        packed: Packing | None = None,
    ) -> Tensor:
        """What the head takes. Either side may be captions without padding, as in `CrossBlock`."""
        for number, block in enumerate(self.self_blocks):
            again = recomputes(number, self.recompute)
            x = run_block(block, x, None, None, packing, recompute=again)
            if self.cross_blocks is not None:
                x = run_block(self.cross_blocks[number], x, other, valid, packing, packed, recompute=again)
        return self.ln_final(x)


class TextDecoder(Decoder):
    """Image-to-text: causal over the text encoder's tokens, cross-attention to image tokens, next-token logits."""

    def __init__(self, config: DecoderConfig, image_width: int, vocab_size: int):
        super().__init__(config, image_width, "causal")
        self.head = VocabularyHead(config.width, vocab_size)

    def forward(
        self,
        token_BLD: Tensor,
        image_BSD: Tensor,
        at_M: Tensor | None = None,
        target_M: Tensor | None = None,
        each: bool = False,
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """Logits of the next token at every position, or the captioning loss at some.

        Args:
            token_BLD: text-encoder outputs; image_BSD: image tokens.
            at_M: int64, the positions that matter, counted through the batch (row * L + column): the head runs on them alone,
                most of a padded caption needs no row of the vocabulary. Default all.
            target_M: int64, the next token at those positions, in order.
            each: with `target_M`, one cross entropy a position.
            valid_BS: bool, the image tokens that may be seen; default all. Questions in their place have padding.
            packing: then token_BLD are the rows (T, D) of captions without padding, of which each has a next token: `target_M` are
                those of all of them, there is no `at_M`.

        Returns:
            (B, L, V), or (M, V) with `at_M` or `packing`, or with `target_M` the summed cross entropy, 0-dim float32, or with
            `each` (M,).
        """
        x_BLD = self.run(token_BLD, image_BSD, valid_BS, packing)
        if packing is not None:
            return self.head(x_BLD[: packing.used], target_M, each)
        return self.head(x_BLD if at_M is None else x_BLD.flatten(0, 1).index_select(0, at_M), target_M, each)

    def looks(self, token_BLD: Tensor, image_BSD: Tensor, packing: Packing | None = None) -> Tensor:
        """Where the decoder looks to say the token after each one: weights over the image tokens, mean over layers and heads.

        Args:
            packing: then token_BLD are the rows (T, D) of captions without padding.

        Returns:
            (B, L, S) float32, rows add up to 1; in a caption without padding what its pads have means nothing.
        """
        x_BLD, found_BLS = token_BLD, []
        for self_block, cross_block in zip(self.self_blocks, self.cross_blocks, strict=True):
            x_BLD, keys_values = self_block(x_BLD, None, None, packing), cross_block.keys_values(image_BSD)
            found_BLS.append(cross_block.looks_at(x_BLD, keys_values, packing))
            x_BLD = cross_block.attend_to(x_BLD, keys_values, packing=packing)
        return torch.stack(found_BLS).mean(dim=0)

    def keys_values(self, image_BSD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """What the layers need of the image, for `step`."""
        return [block.keys_values(image_BSD) for block in self.cross_blocks]

    def run_many(self, x_RLD: Tensor, image: list[tuple[Tensor, Tensor]], valid_BS: Tensor | None = None) -> Tensor:
        """What the head takes, of R whole texts, R / B for each of B images in a row: (R, L, D).

        The texts of one image stand in the query axis of the cross-attention, so its keys and values are not repeated.
        """
        images = len(image[0][0])
        for self_block, cross_block, keys_values in zip(self.self_blocks, self.cross_blocks, image, strict=True):
            x_BQD = self_block(x_RLD).reshape(images, -1, x_RLD.shape[2])
            x_RLD = cross_block.attend_to(x_BQD, keys_values, valid_BS).reshape(x_RLD.shape)
        return self.ln_final(x_RLD)

    def step(
        self, x_R1D: Tensor, past: list[KeyValues], image: list[tuple[Tensor, Tensor]], valid_BS: Tensor | None = None
    ) -> Tensor:
        """Logits after one more token of each of R texts, which stand as in `run_many`: (R, V)."""
        images, width = len(image[0][0]), x_R1D.shape[2]
        texts = len(x_R1D) // max(images, 1)  # no image is left where all texts have ended
        for self_block, cross_block, cache, keys_values in zip(self.self_blocks, self.cross_blocks, past, image, strict=True):
            x_BKD = self_block(x_R1D, None, cache).reshape(images, texts, width)
            x_R1D = cross_block.attend_to(x_BKD, keys_values, valid_BS).reshape(images * texts, 1, width)
        return self.head(self.ln_final(x_R1D[:, 0]))


class ImageDecoder(Decoder):
    """Text-to-image: all N positions (kept tokens, mask tokens elsewhere), cross-attention to text, pixels of each patch."""

    def __init__(self, config: DecoderConfig, image_width: int, text_width: int | None, patches: int, patch_values: int):
        super().__init__(config, text_width, "full")
        self.embed = Linear(image_width, config.width)
        self.mask_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(patches, config.width))
        self.head = Linear(config.width, patch_values)

    def forward(
        self,
        kept_BKD: Tensor,
        keep_BK: Tensor,
        token_BLD: Tensor | None,
        valid_BL: Tensor | None,
        packed: Packing | None = None,
    ) -> Tensor:
        """Pixels of every patch.

        Args:
            kept_BKD: image-encoder outputs of the visible patches.
            keep_BK: their numbers, int64.
            token_BLD: text-encoder outputs; None for plain masked image modelling.
            valid_BL: bool, True at real tokens.
            packed: then token_BLD are the rows (T, D) of captions without padding, keys and values are made of them alone, and
                only the products with these have pads, which `valid_BL` hides.

        Returns:
            (B, N, P), in the units of what TG-MIM rebuilds (`masking.target`): the model's input, or that normalised by patch.
        """
        kept_BKD = self.embed(kept_BKD)
        x_BND = put_patches(self.mask_embedding.to(kept_BKD.dtype), kept_BKD, keep_BK, len(self.position_embedding))
        return self.head(self.run(x_BND + self.position_embedding, token_BLD, valid_BL, packed=packed))

"""The two decoders. A layer is open_clip's pair: self-attention + MLP block, then cross-attention + MLP block."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sycoca_ds.config import DecoderConfig
from sycoca_ds.model.blocks import CrossBlock, SelfBlock, run_block
from sycoca_ds.model.masking import put_patches


class Decoder(nn.Module):
    """Pairs of self and cross blocks and a last norm; without a second modality only the self blocks exist."""

    def __init__(self, config: DecoderConfig, other_width: int | None, pattern: str):
        super().__init__()
        self.self_blocks = nn.ModuleList(SelfBlock(config.width, config.heads, pattern) for _ in range(config.layers))
        self.cross_blocks = None
        if other_width is not None:
            self.cross_blocks = nn.ModuleList(CrossBlock(config.width, config.heads, other_width) for _ in range(config.layers))
        self.ln_final = nn.LayerNorm(config.width)
        self.recompute = False

    def run(self, x: Tensor, other: Tensor | None, valid: Tensor | None) -> Tensor:
        for number, block in enumerate(self.self_blocks):
            x = run_block(block, x, recompute=self.recompute)
            if self.cross_blocks is not None:
                x = run_block(self.cross_blocks[number], x, other, valid, recompute=self.recompute)
        return self.ln_final(x)


class TextDecoder(Decoder):
    """Image-to-text: causal over the text encoder's tokens, cross-attention to image tokens, next-token logits."""

    def __init__(self, config: DecoderConfig, image_width: int, vocab_size: int):
        super().__init__(config, image_width, "causal")
        self.head = nn.Linear(config.width, vocab_size, bias=False)

    def forward(self, token_BLD: Tensor, image_BSD: Tensor, at_BL: Tensor | None = None) -> Tensor:
        """Logits of the next token at every position, or at the positions `at_BL` (bool) marks: (B, L, V) or (marked, V).

        The head runs on the marked positions only: most of a padded caption needs no row of the vocabulary.
        """
        x_BLD = self.run(token_BLD, image_BSD, None)
        return self.head(x_BLD if at_BL is None else x_BLD[at_BL])


class ImageDecoder(Decoder):
    """Text-to-image: all N positions (kept tokens, mask tokens elsewhere), cross-attention to text, pixels of each patch."""

    def __init__(self, config: DecoderConfig, image_width: int, text_width: int | None, patches: int, patch_values: int):
        super().__init__(config, text_width, "full")
        self.embed = nn.Linear(image_width, config.width)
        self.mask_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(patches, config.width))
        self.head = nn.Linear(config.width, patch_values)

    def forward(self, kept_BKD: Tensor, keep_BK: Tensor, token_BLD: Tensor | None, valid_BL: Tensor | None) -> Tensor:
        """Pixels of every patch.

        Args:
            kept_BKD: image-encoder outputs of the visible patches.
            keep_BK: their numbers, int64.
            token_BLD: text-encoder outputs; None for plain masked image modelling.
            valid_BL: bool, True at real tokens.

        Returns:
            (B, N, P), in the units of the model's input (normalised pixels).
        """
        kept_BKD = self.embed(kept_BKD)
        x_BND = put_patches(self.mask_embedding.to(kept_BKD.dtype), kept_BKD, keep_BK, len(self.position_embedding))
        return self.head(self.run(x_BND + self.position_embedding, token_BLD, valid_BL))

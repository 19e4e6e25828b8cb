"""Causal text transformer with a learned [CLS] appended at the end (CoCa)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import TextEncoderConfig
from sycoca_ds.model.blocks import SelfBlock, run_blocks

PAD_ID, SOT_ID, EOT_ID = 0, 1, 2
"""Ids of <pad>, <start_of_text>, <end_of_text> in the tokenizers this project trains."""


class TextEncoder(nn.Module):
    """Tokens `[SOT] w.. [EOT] pad..`, then [CLS]; [CLS] attends to real tokens and itself, tokens never to [CLS] or pads."""

    def __init__(self, config: TextEncoderConfig, embed_dim: int):
        super().__init__()
        self.context_length = config.context_length
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.cls_embedding = nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(config.context_length + 1, config.width))
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.heads, "causal_cls") for _ in range(config.layers))
        self.ln_final = nn.LayerNorm(config.width)
        self.proj = nn.Linear(config.width, embed_dim, bias=False)
        self.recompute = False

    def forward(self, text_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Encodes captions of any padded length up to the context length; the padding changes no result.

        Args:
            text_BL: int64 ids, pads at the end.

        Returns:
            ([CLS] output (B, D) before the last norm, token outputs (B, L, D) before the last norm, as the decoders take them).

        Raises:
            ValueError: L is longer than the context length.
        """
        length = text_BL.shape[1]
        if length > self.context_length:
            raise ValueError(f"captions of {length} tokens; the model's context length is {self.context_length}")
        x_BLD = self.token_embedding(text_BL) + self.position_embedding[:length]
        # [CLS] keeps the last position whatever the padded length, as if the caption were padded to the context length.
        cls = (self.cls_embedding + self.position_embedding[-1]).expand(len(x_BLD), 1, -1)
        x = run_blocks(self.blocks, torch.cat([x_BLD, cls], dim=1), text_BL != PAD_ID, recompute=self.recompute)
        return x[:, -1], x[:, :-1]

    def project(self, x: Tensor) -> Tensor:
        """Last norm and projection to the shared space, float32 and L2-normalised: (.., D) -> (.., E)."""
        return F.normalize(self.proj(self.ln_final(x)).float(), dim=-1)

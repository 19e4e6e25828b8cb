"""Causal text transformer with a learned [CLS] appended at the end (CoCa), or without."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.config import TextEncoderConfig
from sycoca_ds.model.layers.blocks import SelfBlock
from sycoca_ds.model.layers.key_values import KeyValues
from sycoca_ds.model.layers.packing import CaptionRows, Packing
from sycoca_ds.model.layers.products import LayerNorm, Linear
from sycoca_ds.model.layers.stacks import run_blocks

PAD_ID = 0
"""Id of padding in every tokenizer. In CLIP's BPE it is also that of "!", so `real_tokens` goes by the end of the text."""


def real_tokens(text_BL: Tensor, eot_id: int) -> Tensor:
    """Bool (B, L), True up to and with the first <end_of_text>; a text without one is all real."""
    ends_BL = text_BL == eot_id
    return ends_BL.cumsum(dim=1) - ends_BL.long() == 0


def label_places(text_BL: Tensor, eot_id: int) -> Tensor:
    """int64 (M,): where text_BL[:, 1:] holds real tokens, counted through it (row * (L - 1) + column), in rising order.

    They are the labels of captioning: that of place t is token t + 1, so the last place has none, and neither have pads. How many
    they are depends on the texts: of texts on a device the host has to wait for that number.
    """
    return real_tokens(text_BL, eot_id)[:, 1:].flatten().nonzero().squeeze(1)


class TextEncoder(nn.Module):
    """Tokens `[SOT] w.. [EOT] pad..`, then [CLS]; [CLS] attends to real tokens and itself, tokens never to [CLS] or pads.

    With `pooling = mean` there is no [CLS]: the mean of the real tokens is the global output.
    """

    def __init__(self, config: TextEncoderConfig, embed_dim: int):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        averages = config.pooling == "mean"
        self.cls_embedding = None if averages else nn.Parameter(torch.empty(config.width))
        self.position_embedding = nn.Parameter(torch.empty(config.context_length + (not averages), config.width))
        pattern = "causal" if averages else "causal_cls" if config.attention_mask == "exact" else "causal_cls_shifted"
        self.blocks = nn.ModuleList(SelfBlock(config.width, config.heads, pattern) for _ in range(config.layers))
        self.ln_final = LayerNorm(config.width)
        self.proj = Linear(config.width, embed_dim, bias=False)
        self.recompute = 0

    def forward(
        self,
        text_BL: Tensor,
        past: list[KeyValues] | None = None,
        place: int = 0,
        alone: bool = False,
        fused: tuple[Iterable[nn.Module], Tensor] | None = None,
        rows: CaptionRows | None = None,
    ) -> tuple[Tensor | None, ...]:
        """Encodes captions of any padded length up to the context length; the padding changes no result.

        Args:
            text_BL: int64 ids, `[SOT] w.. [EOT]` and padding. With `past`: (B, 1), the token at `place` of each text.
            past: a cache a block, which grows by the token; there is no global output then.
            alone: also return what [CLS] would be if the last block had shown it one token alone (`SelfBlock.alone`).
            fused: a cross block behind each block, and the image tokens (B, S, D) that they attend to; not with `past`.
            rows: what `self.rows` gave of text_BL; then the blocks run on real tokens alone. Neither with `past` nor with `fused`.

        Returns:
            (global output (B, D) or None, token outputs (B, L, D) before the last norm, as the decoders take them); with `alone`
            also (B, L, D), before the last norm, without gradient. `project` takes the second and third, `project_global` the
            first. With `rows` these two are the rows (T, D) of `rows.tokens`.

        Raises:
            ValueError: the text is longer than the context length.
        """
        if rows is not None:
            return self._encode_rows(text_BL, rows, alone)
        length = given = text_BL.shape[1]
        if place + length > self.config.context_length:
            raise ValueError(f"captions of {place + length} tokens; the model's context length is {self.config.context_length}")
        if past is None and self.config.attention_mask == "open_clip":
            # what the shifted mask shows to [CLS] depends on the padding, so it has to be all there
            length = self.config.context_length
            text_BL = F.pad(text_BL, (0, length - given), value=PAD_ID)
        x_BLD = self.token_embedding(text_BL) + self.position_embedding[place : place + length]
        if past is not None:
            for block, cache in zip(self.blocks, past, strict=True):
                x_BLD = block(x_BLD, None, cache)
            return None, x_BLD
        if self.cls_embedding is None:
            x_BLD = run_blocks(self.blocks, x_BLD, None, recompute=self.recompute, between=fused)[0]
            real_BL1 = real_tokens(text_BL, self.config.eot_id)[:, :, None]
            # the mean of what `project` norms, so that the products of patches and tokens are what the contrast trains
            return (self.ln_final(x_BLD) * real_BL1).sum(dim=1) / real_BL1.sum(dim=1), x_BLD
        # [CLS] keeps the last position whatever the padded length, as if the caption were padded to the context length.
        cls = (self.cls_embedding + self.position_embedding[-1]).expand(len(x_BLD), 1, -1)
        valid_BL = real_tokens(text_BL, self.config.eot_id)
        if self.config.attention_mask == "open_clip":
            valid_BL = valid_BL & (text_BL != PAD_ID)
        x, last = run_blocks(self.blocks, torch.cat([x_BLD, cls], dim=1), valid_BL, recompute=self.recompute, between=fused)
        found = x[:, -1], x[:, :given]
        if alone:
            with torch.no_grad():
                found += (self.blocks[-1].alone(last[:, :given], last[:, -1:]),)
        return found

    def rows(self, text_BL: Tensor, labels: int) -> CaptionRows:
        """Where the tokens of captions lie that stand one after another without padding.

        Behind a caption's tokens stands its [CLS], which sees them all as the last of a causal text. With open_clip's mask it also
        sees one pad and, but for a caption that fills the context, not itself: that pad has a row between, which stays idle in a
        full caption.

        Args:
            labels: how many `label_places` the captions have. Each has one token more than labels: the host knows all sizes and
                waits for none.
        """
        if text_BL.shape[1] > self.config.context_length:
            raise ValueError(f"captions of {text_BL.shape[1]} tokens; the model's context length is {self.config.context_length}")
        captions, length = text_BL.shape
        shifted = self.cls_embedding is not None and self.config.attention_mask == "open_clip"
        behind = 0 if self.cls_embedding is None else 2 if shifted else 1
        real_BL = real_tokens(text_BL, self.config.eot_id)
        count_B = real_BL.sum(dim=1)
        tokens = Packing(count_B, labels + captions, length)
        encoded = Packing(count_B + behind, tokens.used + behind * captions, length + behind) if behind else tokens
        mask_B1SS = self._shifted_mask(text_BL, real_BL, count_B) if shifted else None
        return CaptionRows(encoded, tokens, Packing(count_B - 1, labels, length - 1), mask_B1SS)

    def _shifted_mask(self, text_BL: Tensor, real_BL: Tensor, count_B: Tensor) -> Tensor:
        """What "causal_cls_shifted" shows to the rows of captions, in their padded view: bool (B, 1, S, S)."""
        captions, length = text_BL.shape
        seen_BL = real_BL & (text_BL != PAD_ID)
        seen_BS = F.pad(seen_BL, (1, 1), value=False)
        seen_BS[:, :1] = True
        column_S = torch.arange(length + 2, device=text_BL.device)
        full_B1 = (count_B == self.config.context_length)[:, None]
        if length == self.config.context_length:  # a full caption: its [CLS] sees itself, if the last token is one; there is no pad
            own_B1 = full_B1 & seen_BL[:, -1:]
            seen_BS = torch.where(full_B1, (seen_BS & (column_S < length)) | (own_B1 & (column_S == length + 1)), seen_BS)
        return (seen_BS[:, None, :] & (column_S <= column_S[:, None]))[:, None]

    def _encode_rows(self, text_BL: Tensor, rows: CaptionRows, alone: bool) -> tuple[Tensor, ...]:
        """`forward` on real tokens alone."""
        encoded, behind = rows.encoded, rows.encoded.longest - text_BL.shape[1]
        text_T = F.pad(text_BL, (0, behind), value=PAD_ID).flatten().index_select(0, encoded.place_T)
        column_T = encoded.column_T.clamp(max=self.config.context_length - 1)
        x_TD = self.token_embedding(text_T) + F.embedding(column_T, self.position_embedding)
        if self.cls_embedding is not None:
            is_cls_T = encoded.column_T == (encoded.count_B - 1).index_select(0, encoded.caption_T)
            x_TD = torch.where(is_cls_T[:, None], self.cls_embedding + self.position_embedding[-1], x_TD)
        x_TD, last_TD = run_blocks(self.blocks, x_TD, None, None, encoded, rows.mask_B1SS, recompute=self.recompute)
        token_TD = rows.tokens_of(x_TD)
        if self.cls_embedding is None:
            normed_BLD = rows.tokens.unpack(self.ln_final(x_TD)).masked_fill(~rows.tokens.held_BS[:, :, None], 0.0)
            return normed_BLD.sum(dim=1) / rows.tokens.count_B[:, None], token_TD
        cls_at_B = encoded.start_B + encoded.count_B - 1
        found = x_TD.index_select(0, cls_at_B), token_TD
        if alone:
            with torch.no_grad():
                cls_TD = rows.tokens.of_captions(last_TD.index_select(0, cls_at_B))
                found += (self.blocks[-1].alone(rows.tokens_of(last_TD), cls_TD),)
        return found

    def project(self, x: Tensor) -> Tensor:
        """Last norm and projection to the shared space, float32 and L2-normalised: (.., D) -> (.., E)."""
        return F.normalize(self.proj(self.ln_final(x)).float(), dim=-1)

    def project_global(self, x_BD: Tensor) -> Tensor:
        """The global output in the shared space, float32 and L2-normalised: (B, D) -> (B, E). A mean has its norm behind it."""
        return self.project(x_BD) if self.cls_embedding is not None else F.normalize(self.proj(x_BD).float(), dim=-1)

"""Transformer parts shared by encoders and decoders, pre-norm, on `scaled_dot_product_attention`.

Causal attention is asked for by flag and padding is a (B, 1, 1, S) boolean, never a mask of tokens by tokens, so that the fused
kernels stay usable: flash for what has no mask, memory-efficient for the rest. One exception, for open_clip's weights alone: the
pattern "causal_cls_shifted" needs a (B, 1, L, L) mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sycoca_ds.model.layers.attention import attend, join_heads, split_heads
from sycoca_ds.model.layers.key_values import KeyValues
from sycoca_ds.model.layers.packing import Packing
from sycoca_ds.model.layers.products import LayerNorm, Linear


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    `pattern` is one of
        "full"                every token attends to every token;
        "causal"              token t attends to tokens 0..t;
        "causal_cls"          the last token is [CLS]: the tokens before it are causal and never see it; [CLS] attends to itself
                              and to the tokens that `valid_BL` marks as real;
        "causal_cls_shifted"  open_clip 3.3's CoCa: causal, and no token attends to place t > 0 unless `valid_BL` marks token
                              t - 1; so the [CLS] of a padded caption sees one pad and not itself.
    """

    def __init__(self, width: int, heads: int, pattern: str = "full"):
        super().__init__()
        if pattern not in ("full", "causal", "causal_cls", "causal_cls_shifted"):
            raise ValueError(f"unknown attention pattern {pattern!r}")
        self.heads, self.pattern = heads, pattern
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(
        self,
        x_BLD: Tensor,
        valid_BL: Tensor | None = None,
        past: KeyValues | None = None,
        packing: Packing | None = None,
        mask_B1SS: Tensor | None = None,
    ) -> Tensor:
        """Mixes tokens. With `past`, x_BLD is the one next token of a causal text (B, 1, D), and `past` grows by it. With
        `packing`, x_BLD are the rows (T, D) of captions without padding, causal or as `mask_B1SS` has it; their [CLS] stands behind
        the last real token and so sees what "causal_cls" shows to it."""
        if packing is not None:
            return self.out(packing.mix(self.qkv(x_BLD), self.heads, mask_B1SS))
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        if past is not None:
            mixed = past.attend(q, k, v)
        elif self.pattern == "causal_cls":
            # Two calls instead of one with a (L+1, L+1) mask a caption: the long one keeps the causal fused kernel. Real
            # tokens stand before the pads, so causality alone keeps them from seeing pads.
            tokens = attend(q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], causal=True)
            sees_B11S = F.pad(valid_BL, (0, 1), value=True)[:, None, None, :]
            cls = attend(q[:, :, -1:], k, v, sees_B11S)
            mixed = torch.cat([tokens, cls], dim=2)
        elif self.pattern == "causal_cls_shifted":
            sees_B11S = F.pad(valid_BL, (1, 0), value=True)[:, None, None, :]
            causal_LS = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()
            mixed = attend(q, k, v, sees_B11S & causal_LS)
        else:
            mixed = attend(q, k, v, causal=self.pattern == "causal")
        return self.out(join_heads(mixed))

    def values(self, x_BLD: Tensor) -> Tensor:
        """What a token that attended to one other alone would take from it, for each of them: (B, L, D)."""
        return self.out(self.qkv(x_BLD).chunk(3, dim=-1)[2])


class CrossAttention(nn.Module):
    """Multi-head attention from one modality's tokens to the other's; `valid_BS` marks the keys that may be seen."""

    def __init__(self, width: int, heads: int, other_width: int):
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width)
        self.kv = Linear(other_width, 2 * width)
        self.out = Linear(width, width)

    def keys_values(self, other_BSD: Tensor, packed: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, d) each; they depend on the other modality alone. With `packed`, that is given as the rows
        (T, D) of captions without padding."""
        kv = self.kv(other_BSD)
        k, v = (split_heads(part, self.heads) for part in (kv if packed is None else packed.unpack(kv)).chunk(2, dim=-1))
        return k, v

    def weights(self, x_BQD: Tensor, k_BHSd: Tensor, packing: Packing | None = None) -> Tensor:
        """How much each token attends to each of the other modality's, mean over heads: (B, Q, S) float32, rows add up to 1. With
        `packing`, x_BQD are the rows (T, D) of captions, and what pads have means nothing."""
        q = self.q(x_BQD)
        q_BHQd = split_heads(q if packing is None else packing.unpack(q), self.heads).float()
        return (q_BHQd @ k_BHSd.float().transpose(2, 3) * q_BHQd.shape[3] ** -0.5).softmax(dim=3).mean(dim=1)

    def forward(
        self,
        x_BQD: Tensor,
        keys_values: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """With `packing`, x_BQD are the rows (T, D) of captions without padding. Tokens (1, Q, D) are the same for all rows."""
        mask = None if valid_BS is None else valid_BS[:, None, None, :]
        if packing is not None:
            return self.out(packing.look(self.q(x_BQD), *keys_values, mask))
        q_BHQd = split_heads(self.q(x_BQD), self.heads).expand(len(keys_values[0]), -1, -1, -1)
        return self.out(join_heads(attend(q_BHQd, *keys_values, mask)))


class Mlp(nn.Module):
    """Linear, GELU, Linear; four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = Linear(width, 4 * width)
        self.out = Linear(4 * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out(F.gelu(self.fc(x_BLD)))


class Block(nn.Module):
    """A transformer block: whatever is asked of it goes through its `forward`, for ZeRO-3 gathers the weights of a block as one
    (engine/zero3/blocks.py), by the hooks around that."""

    def forward(self, *inputs, way: str = "_run"):
        """The block's answer to `inputs`: by `_run`, or by another of its methods, which the method that is called names."""
        return getattr(self, way)(*inputs)


class SelfBlock(Block):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, width: int, heads: int, pattern: str = "full"):
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attention = SelfAttention(width, heads, pattern)
        self.ln_2 = LayerNorm(width)
        self.mlp = Mlp(width)

    def _run(
        self,
        x_BLD: Tensor,
        valid_BL: Tensor | None = None,
        past: KeyValues | None = None,
        packing: Packing | None = None,
        mask_B1SS: Tensor | None = None,
    ) -> Tensor:
        x_BLD = x_BLD + self.attention(self.ln_1(x_BLD), valid_BL, past, packing, mask_B1SS)
        return x_BLD + self.mlp(self.ln_2(x_BLD))

    def alone(self, x_BLD: Tensor, cls: Tensor) -> Tensor:
        """What [CLS] would become here if it attended to one token alone, for each of them: (B, L, D), or of rows (T, D).

        The value path of MaskCLIP (Zhou et al., 2022), on [CLS]'s own residual: what the contrast has trained to be read.

        Args:
            cls: each token's [CLS], (B, 1, D) or (T, D).
        """
        return self(x_BLD, cls, way="_alone")

    def _alone(self, x_BLD: Tensor, cls: Tensor) -> Tensor:
        x_BLD = cls + self.attention.values(self.ln_1(x_BLD))
        return x_BLD + self.mlp(self.ln_2(x_BLD))


class CrossBlock(Block):
    """x += attention(norm(x) -> norm(other)); x += mlp(norm(x))."""

    def __init__(self, width: int, heads: int, other_width: int):
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.ln_other = LayerNorm(other_width)
        self.attention = CrossAttention(width, heads, other_width)
        self.ln_2 = LayerNorm(width)
        self.mlp = Mlp(width)

    def keys_values(self, other_BSD: Tensor, packed: Packing | None = None) -> tuple[Tensor, Tensor]:
        """What the block needs of the other modality, for `attend_to`."""
        return self(other_BSD, packed, way="_keys_values")

    def attend_to(
        self,
        x_BQD: Tensor,
        keys_values: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        return self(x_BQD, keys_values, valid_BS, packing, way="_attend_to")

    def looks_at(self, x_BQD: Tensor, keys_values: tuple[Tensor, Tensor], packing: Packing | None = None) -> Tensor:
        """`CrossAttention.weights` of what `attend_to` would do: (B, Q, S)."""
        return self(x_BQD, keys_values, packing, way="_looks_at")

    def _keys_values(self, other_BSD: Tensor, packed: Packing | None = None) -> tuple[Tensor, Tensor]:
        return self.attention.keys_values(self.ln_other(other_BSD), packed)

    def _attend_to(
        self,
        x_BQD: Tensor,
        keys_values: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        x_BQD = x_BQD + self.attention(self.ln_1(x_BQD), keys_values, valid_BS, packing)
        return x_BQD + self.mlp(self.ln_2(x_BQD))

    def _looks_at(self, x_BQD: Tensor, keys_values: tuple[Tensor, Tensor], packing: Packing | None = None) -> Tensor:
        return self.attention.weights(self.ln_1(x_BQD), keys_values[0], packing)

    def _run(
        self,
        x_BQD: Tensor,
        other_BSD: Tensor,
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
        packed: Packing | None = None,
    ) -> Tensor:
        """Either side may be captions without padding, rows (T, D): `packing` is that of x_BQD, `packed` that of other_BSD."""
        return self._attend_to(x_BQD, self._keys_values(other_BSD, packed), valid_BS, packing)


class AttentionPooling(nn.Module):
    """Learned queries that attend to all outputs of the image encoder, as open_clip's `AttentionalPooler`: no residual, no MLP."""

    def __init__(self, width: int, heads: int, queries: int, other_width: int):
        super().__init__()
        self.query_embedding = nn.Parameter(torch.empty(queries, width))
        self.ln_query = LayerNorm(width)
        self.ln_other = LayerNorm(other_width)
        self.attention = CrossAttention(width, heads, other_width)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """(B, S, D) -> (B, Q, E)."""
        query_1QE = self.ln_query(self.query_embedding)[None]
        return self.attention(query_1QE, self.attention.keys_values(self.ln_other(x_BSD)))

    def alone(self, x_BND: Tensor) -> Tensor:
        """What a query would read if it attended to one output alone, for each of them: (B, N, D) -> (B, N, E).

        The value and output projections without the mixing, the way MaskCLIP (Zhou et al., 2022) reads dense features from
        CLIP's attention pooling.
        """
        return self.attention.out(self.attention.kv(self.ln_other(x_BND)).chunk(2, dim=-1)[1])

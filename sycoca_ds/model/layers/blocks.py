"""Transformer parts shared by encoders and decoders, pre-norm, on `scaled_dot_product_attention`.

Causal attention is asked for by flag and padding is a (B, 1, 1, S) boolean, never a mask of tokens by tokens, so that the fused
kernels stay usable: flash for what has no mask, memory-efficient for the rest. One exception, for open_clip's weights alone: the
pattern "causal_cls_shifted" needs a (B, 1, L, L) mask.
"""

from __future__ import annotations

from typing import ClassVar

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

    def mix(
        self,
        qkv_BLX: Tensor,
        valid_BL: Tensor | None = None,
        past: KeyValues | None = None,
        packing: Packing | None = None,
        mask_B1SS: Tensor | None = None,
    ) -> Tensor:
        """What `out` is given, (B, L, D), of queries, keys and values (B, L, 3 D). With `past`, these are of the one next token of
        a causal text (B, 1, 3 D), and `past` grows by it. With `packing`, they are the rows (T, 3 D) of captions without padding,
        causal or as `mask_B1SS` has it; their [CLS] stands behind the last real token and so sees what "causal_cls" shows to it."""
        if packing is not None:
            return packing.mix(qkv_BLX, self.heads, mask_B1SS)
        q, k, v = (split_heads(part, self.heads) for part in qkv_BLX.chunk(3, dim=-1))
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
        return join_heads(mixed)

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

    def keys_values(self, kv: Tensor, packed: Packing | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values (B, heads, S, d) each, of what `kv` gives of the other modality, on which alone they depend: (B, S, 2 D),
        or with `packed` the rows (T, 2 D) of captions without padding."""
        k, v = (split_heads(part, self.heads) for part in (kv if packed is None else packed.unpack(kv)).chunk(2, dim=-1))
        return k, v

    def weights(self, q: Tensor, k_BHSd: Tensor, packing: Packing | None = None) -> Tensor:
        """How much each token attends to each of the other modality's, mean over heads: (B, Q, S) float32, rows add up to 1.
        Queries (B, Q, D), or with `packing` the rows (T, D) of captions, where what pads have means nothing."""
        q_BHQd = split_heads(q if packing is None else packing.unpack(q), self.heads).float()
        return (q_BHQd @ k_BHSd.float().transpose(2, 3) * q_BHQd.shape[3] ** -0.5).softmax(dim=3).mean(dim=1)

    def mix(
        self,
        q: Tensor,
        keys_values: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        """What `out` is given, of queries (B, Q, D), or with `packing` of the rows (T, D) of captions without padding. Queries
        (1, Q, D) are the same for all of the other modality."""
        mask = None if valid_BS is None else valid_BS[:, None, None, :]
        if packing is not None:
            return packing.look(q, *keys_values, mask)
        q_BHQd = split_heads(q, self.heads).expand(len(keys_values[0]), -1, -1, -1)
        return join_heads(attend(q_BHQd, *keys_values, mask))


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

    FUSED: ClassVar[tuple[str, ...]] = ()
    """Methods between two attentions, of tensors alone: what a compiler can make one of norms, sums and activations in."""

    def forward(self, *inputs, way: str = "_run"):
        """The block's answer to `inputs`: by `_run`, or by another of its methods, which the method that is called names."""
        return getattr(self, way)(*inputs)


def compile_blocks(model: nn.Module) -> int:
    """Gives what stands between the attentions of each block to torch's compiler, at its first use; how many blocks there are.

    Blocks of equal shapes share what is compiled. Attention has kernels of its own, and captions of any length, and stays as it is.
    """
    import torch._dynamo

    # of one method: each part's width, captions with and without padding, with and without gradients
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    for block in blocks:
        for name in block.FUSED:
            setattr(block, name, torch.compile(getattr(block, name)))
    return len(blocks)


class SelfBlock(Block):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    FUSED = ("_project", "_join")

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
        return self._join(x_BLD, self.attention.mix(self._project(x_BLD), valid_BL, past, packing, mask_B1SS))

    def _project(self, x_BLD: Tensor) -> Tensor:
        return self.attention.qkv(self.ln_1(x_BLD))

    def _join(self, x_BLD: Tensor, mixed_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention.out(mixed_BLD)
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

    FUSED = ("_ask", "_offer", "_join")

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
        return self.attention.keys_values(self._offer(other_BSD), packed)

    def _offer(self, other_BSD: Tensor) -> Tensor:
        return self.attention.kv(self.ln_other(other_BSD))

    def _ask(self, x_BQD: Tensor) -> Tensor:
        return self.attention.q(self.ln_1(x_BQD))

    def _join(self, x_BQD: Tensor, mixed_BQD: Tensor) -> Tensor:
        x_BQD = x_BQD + self.attention.out(mixed_BQD)
        return x_BQD + self.mlp(self.ln_2(x_BQD))

    def _attend_to(
        self,
        x_BQD: Tensor,
        keys_values: tuple[Tensor, Tensor],
        valid_BS: Tensor | None = None,
        packing: Packing | None = None,
    ) -> Tensor:
        return self._join(x_BQD, self.attention.mix(self._ask(x_BQD), keys_values, valid_BS, packing))

    def _looks_at(self, x_BQD: Tensor, keys_values: tuple[Tensor, Tensor], packing: Packing | None = None) -> Tensor:
        return self.attention.weights(self._ask(x_BQD), keys_values[0], packing)

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
        attention = self.attention
        keys_values = attention.keys_values(attention.kv(self.ln_other(x_BSD)))
        return attention.out(attention.mix(attention.q(query_1QE), keys_values))

    def alone(self, x_BND: Tensor) -> Tensor:
        """What a query would read if it attended to one output alone, for each of them: (B, N, D) -> (B, N, E).

        The value and output projections without the mixing, the way MaskCLIP (Zhou et al., 2022) reads dense features from
        CLIP's attention pooling.
        """
        return self.attention.out(self.attention.kv(self.ln_other(x_BND)).chunk(2, dim=-1)[1])

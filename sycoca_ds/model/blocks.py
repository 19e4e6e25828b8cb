"""Transformer parts shared by encoders and decoders, pre-norm, on `scaled_dot_product_attention`.

Causal attention is asked for by flag and padding is a (B, 1, 1, S) boolean, never a mask of tokens by tokens, so that the fused
kernels stay usable: flash for what has no mask, memory-efficient for the rest. One exception, for open_clip's weights alone: the
pattern "causal_cls_shifted" needs a (B, 1, L, L) mask.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sycoca_ds.model.attention import attend, join_heads, split_heads
from sycoca_ds.model.packing import Packing


@functools.cache
def has_bf16_products() -> bool:
    """Whether this CPU multiplies bf16 matrices (AVX-512 and later); without, torch does it in a plain loop."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class Float32Products(torch.autograd.Function):
    """`F.linear` of bf16 tensors by products of their float32 copies, which nothing keeps."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        slope_RO = slope.flatten(0, -2).float()
        for_x = (slope_RO @ weight.float()).to(x.dtype).view_as(x) if ctx.needs_input_grad[0] else None
        for_weight = (slope_RO.T @ x.flatten(0, -2).float()).to(x.dtype) if ctx.needs_input_grad[1] else None
        return for_x, for_weight, slope_RO.sum(dim=0).to(x.dtype) if ctx.needs_input_grad[2] else None


def multiplies_in_float32(x: Tensor) -> bool:
    """Whether products of x are those of its float32 copy."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not has_bf16_products()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`; in bf16 on a CPU that has no such products they are those of float32, 100 times as fast as torch's
    (benchmarks/results/2026-11-26_bf16_without_avx512.md)."""
    if multiplies_in_float32(x):
        return Float32Products.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` with weight and bias; in bf16 on a CPU these two are applied after it.

    torch 2.13's CPU kernel adds up their gradients over all tokens in bf16 and loses a part of them. Sums over an axis add up in
    float32, as CUDA's kernel does (benchmarks/results/2026-11-25_cpu_kernels.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return torch.addcmul(self.bias, F.layer_norm(x, self.normalized_shape, eps=self.eps), self.weight)
        return super().forward(x)


class Places:
    """Which tokens each of R texts sees while they grow by one token a step: K = R / B texts for each of B images in a row.

    The texts of an image share one row of slots, K for each step. A token stays in its slot; a text that goes on as a copy of
    another one sees that one's slots, so that beams change places without a move of keys and values.
    """

    def __init__(self, images: int, texts: int, steps: int, device: torch.device) -> None:
        self.images, self.texts, self.steps, self.step = images, texts, steps, 0
        self.seen_BKS: Tensor | None = None
        """Bool (B, K, T * K); None: one text an image, which sees all before it."""
        if texts > 1:
            self.seen_BKS = torch.eye(texts, dtype=torch.bool, device=device).repeat(images, 1, steps)
            self.seen_BKS[:, :, texts:] = False
            self._own_KK = torch.eye(texts, dtype=torch.bool, device=device)

    def begin(self) -> None:
        """The next token's slots: a text sees its own."""
        if self.seen_BKS is not None:
            self.seen_BKS[:, :, self.step * self.texts : (self.step + 1) * self.texts] = self._own_KK

    def mask(self) -> Tensor | None:
        """Bool (B, 1, K, slots so far) for attention; None: all are seen."""
        return None if self.seen_BKS is None else self.seen_BKS[:, None, :, : (self.step + 1) * self.texts]

    def reorder(self, index_R: Tensor) -> None:
        """Text r goes on as text `index_R[r]` of the same image was."""
        if self.seen_BKS is not None:
            self.seen_BKS = self.seen_BKS.flatten(0, 1).index_select(0, index_R).view_as(self.seen_BKS)

    def keep(self, index_B: Tensor) -> None:
        """Only these images' texts go on."""
        self.images = len(index_B)
        if self.seen_BKS is not None:
            self.seen_BKS = self.seen_BKS.index_select(0, index_B)


class KeyValues:
    """Keys and values (B, heads, T * K, d) of a block, for generation one token at a time; room for all of them is taken once.

    On a CPU they are float32 whatever the model: `attend` would turn them into that at every token.
    """

    def __init__(self, places: Places) -> None:
        self.places = places
        self.k: Tensor | None = None
        self.v: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keeps the next token's keys and values and mixes what each text sees: (R, heads, 1, d) each and out."""
        places, (rows, heads, _, width) = self.places, q.shape
        slots = places.steps * places.texts
        if self.k is None:
            dtype = torch.float32 if q.device.type == "cpu" else q.dtype
            self.k, self.v = (q.new_empty(places.images, heads, slots, width, dtype=dtype) for _ in range(2))
        now = slice(places.step * places.texts, (places.step + 1) * places.texts)
        by_image = (places.images, places.texts, heads, width)
        for room, new in ((self.k, k), (self.v, v)):
            room[:, :, now] = new.reshape(by_image).transpose(1, 2)
        q_BHKd = q.reshape(by_image).transpose(1, 2)
        mixed = attend(q_BHKd, self.k[:, :, : now.stop], self.v[:, :, : now.stop], places.mask())
        return mixed.transpose(1, 2).reshape(rows, heads, 1, width)

    def keep(self, index_B: Tensor) -> None:
        """Only these images' texts go on."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k.index_select(0, index_B), self.v.index_select(0, index_B)


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


def run_block(block: nn.Module, *inputs: Tensor | None, recompute: bool) -> Tensor:
    """Runs a block, keeping only its input for the backward pass when `recompute` is set.

    Only the non-reentrant form is right under ZeRO-3 with an encoder that runs twice a step: the reentrant one fails with
    "gradient computed twice", and DeepSpeed's own drops the gradient of a block whose input needs none. There is no dropout,
    so no random state has to be kept.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)


def recomputes(number: int, every: int) -> bool:
    """Whether a part recomputes its block of this number: 0 none, 1 every block, k every k-th."""
    return every > 0 and number % every == 0


def run_blocks(
    blocks: Sequence[nn.Module],
    x_BLD: Tensor,
    *others: Tensor | None,
    recompute: int,
    between: tuple[Iterable[nn.Module], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs blocks one after another; `others` go to each of them, `recompute` as in `recomputes`.

    Args:
        between: a cross block behind each block, and what all of these attend to.

    Returns:
        (the last block's output, its input).
    """
    last_BLD = x_BLD
    crosses, other = between or (itertools.repeat(None, len(blocks)), None)
    for number, (block, cross) in enumerate(zip(blocks, crosses, strict=True)):
        again = recomputes(number, recompute)
        last_BLD, x_BLD = x_BLD, run_block(block, x_BLD, *others, recompute=again)
        if cross is not None:
            x_BLD = run_block(cross, x_BLD, other, recompute=again)
    return x_BLD, last_BLD


def initialise(
    model: nn.Module, std: float, seed: int, whole: Callable[[nn.Parameter], AbstractContextManager] = nullcontext
) -> None:
    """N(0, std) for every weight matrix and embedding, 1 for norms, 0 for biases; `SyCoCa` sets its logit scale itself.

    The values depend on `seed` and the parameters' names' order alone, so every rank builds the same model.

    Args:
        whole: in it a parameter has all its numbers, where ranks have shared them among each other.

    Raises:
        RuntimeError: a parameter of a kind this function does not know, which would keep raw memory.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    rules: list[tuple[Callable[[str, Tensor], bool], Callable[[Tensor], object]]] = [
        (lambda name, p: id(p) in norms and name.endswith("weight"), lambda p: p.fill_(1.0)),
        (lambda name, p: name.endswith("bias"), lambda p: p.zero_()),
        (lambda name, p: p.ndim >= 2 or name.endswith("_embedding"), lambda p: p.normal_(0.0, std, generator=generator)),
    ]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "logit_scale":
                continue
            with whole(parameter):
                for applies, fill in rules:
                    if applies(name, parameter):
                        fill(parameter)
                        break
                else:
                    raise RuntimeError(f"no initialisation rule for parameter {name} of shape {tuple(parameter.shape)}")

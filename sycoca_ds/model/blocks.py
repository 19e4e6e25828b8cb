"""Transformer parts shared by encoders and decoders, pre-norm, on `scaled_dot_product_attention`.

No attention mask of shape (B, heads, L, L) is ever built: causal attention is asked for by flag and padding is a (B, 1, 1, S)
boolean, so that the fused kernels stay usable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, heads, L, D / heads)."""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHLd: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads * d)."""
    return x_BHLd.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """`scaled_dot_product_attention` on (B, heads, L, d); on a CPU always computed in float32.

    torch 2.13's CPU kernel is six times slower backward in bf16 than in float32 (1.24 s against 0.20 s of a 2.4 s step of the
    tiny model), which eats all that bf16 matrix products win.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


class SelfAttention(nn.Module):
    """Multi-head self-attention.

    `pattern` is one of
        "full"        every token attends to every token;
        "causal"      token t attends to tokens 0..t;
        "causal_cls"  the last token is [CLS]: the tokens before it are causal and never see it; [CLS] attends to itself and to
                      the tokens that `valid_BL` marks as real.
    """

    def __init__(self, width: int, heads: int, pattern: str = "full"):
        super().__init__()
        if pattern not in ("full", "causal", "causal_cls"):
            raise ValueError(f"unknown attention pattern {pattern!r}")
        self.heads, self.pattern = heads, pattern
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        if self.pattern == "causal_cls":
            # Two calls instead of one with a (L+1, L+1) mask a caption: the long one keeps the causal fused kernel. Real
            # tokens stand before the pads, so causality alone keeps them from seeing pads.
            tokens = attend(q[:, :, :-1], k[:, :, :-1], v[:, :, :-1], causal=True)
            sees_B11S = F.pad(valid_BL, (0, 1), value=True)[:, None, None, :]
            cls = attend(q[:, :, -1:], k, v, sees_B11S)
            mixed = torch.cat([tokens, cls], dim=2)
        else:
            mixed = attend(q, k, v, causal=self.pattern == "causal")
        return self.out(join_heads(mixed))


class CrossAttention(nn.Module):
    """Multi-head attention from one modality's tokens to the other's; `valid_BS` marks the keys that may be seen."""

    def __init__(self, width: int, heads: int, other_width: int):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(other_width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BQD: Tensor, other_BSD: Tensor, valid_BS: Tensor | None = None) -> Tensor:
        q = split_heads(self.q(x_BQD), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.kv(other_BSD).chunk(2, dim=-1))
        mask = None if valid_BS is None else valid_BS[:, None, None, :]
        return self.out(join_heads(attend(q, k, v, mask)))


class Mlp(nn.Module):
    """Linear, GELU, Linear; four times as wide inside."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Linear(width, 4 * width)
        self.out = nn.Linear(4 * width, width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out(F.gelu(self.fc(x_BLD)))


class SelfBlock(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, width: int, heads: int, pattern: str = "full"):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, pattern)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x_BLD: Tensor, valid_BL: Tensor | None = None) -> Tensor:
        x_BLD = x_BLD + self.attention(self.ln_1(x_BLD), valid_BL)
        return x_BLD + self.mlp(self.ln_2(x_BLD))


class CrossBlock(nn.Module):
    """x += attention(norm(x) -> norm(other)); x += mlp(norm(x))."""

    def __init__(self, width: int, heads: int, other_width: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.ln_other = nn.LayerNorm(other_width)
        self.attention = CrossAttention(width, heads, other_width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x_BQD: Tensor, other_BSD: Tensor, valid_BS: Tensor | None = None) -> Tensor:
        x_BQD = x_BQD + self.attention(self.ln_1(x_BQD), self.ln_other(other_BSD), valid_BS)
        return x_BQD + self.mlp(self.ln_2(x_BQD))


def run_block(block: nn.Module, *inputs: Tensor | None, recompute: bool) -> Tensor:
    """Runs a block, keeping only its input for the backward pass when `recompute` is set.

    Only the non-reentrant form is right under ZeRO-3 with an encoder that runs twice a step: the reentrant one fails with
    "gradient computed twice", and DeepSpeed's own drops the gradient of a block whose input needs none. There is no dropout,
    so no random state has to be kept.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return block(*inputs)


def run_blocks(blocks: Iterable[nn.Module], x_BLD: Tensor, *others: Tensor | None, recompute: bool) -> Tensor:
    """Runs blocks one after another; `others` go to each of them."""
    for block in blocks:
        x_BLD = run_block(block, x_BLD, *others, recompute=recompute)
    return x_BLD


def initialise(model: nn.Module, std: float, seed: int) -> None:
    """N(0, std) for every weight matrix and embedding, 1 for norms, 0 for biases; `SyCoCa` sets its logit scale itself.

    The values depend on `seed` and the parameters' names' order alone, so every rank builds the same model.

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
            for applies, fill in rules:
                if applies(name, parameter):
                    fill(parameter)
                    break
            else:
                raise RuntimeError(f"no initialisation rule for parameter {name} of shape {tuple(parameter.shape)}")

"""Attention's products, by the kernel that fits: `scaled_dot_product_attention`, or flash for sequences of unequal length."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """`scaled_dot_product_attention` on (B, heads, L, d); on a CPU always computed in float32.

    torch 2.13's CPU kernel takes several times as long in bf16 as in float32, which eats all that bf16 matrix products win
    (benchmarks/results/2026-11-25_cpu_kernels.md).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, is_causal=causal).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)


def split_heads(x_BLD: Tensor, heads: int) -> Tensor:
    """(B, L, D) -> (B, heads, L, D / heads)."""
    return x_BLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHLd: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads * d)."""
    return x_BHLd.transpose(1, 2).flatten(2)


@functools.cache
def _varlen() -> Callable[..., Tensor] | None:
    """torch's attention for sequences of unequal length, where it has it as 2.13 does."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


@functools.cache
def _has_flash(device: torch.device) -> bool:
    """Whether this GPU runs the flash kernel: Ampere and later."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def varlen_attention(x: Tensor, heads: int, parts: int) -> Callable[..., Tensor] | None:
    """`varlen_attn` if it takes rows like x, of so many heads in so many parts: on a GPU, in 16 bits; else None."""
    if x.device.type != "cuda" or x.dtype not in (torch.bfloat16, torch.float16):
        return None
    width = x.shape[1] // (parts * heads)
    return _varlen() if width % 8 == 0 and width <= 256 and _has_flash(x.device) else None

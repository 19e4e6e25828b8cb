"""Linear layers and norms, by products and sums that a CPU does well in bf16, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BF16_PRODUCTS: bool = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_bf16_products() -> bool:
    """Whether this CPU multiplies bf16 matrices (AVX-512 and later); without, torch does it in a plain loop."""
    return BF16_PRODUCTS


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

"""Why two kernels are not torch's own in bf16 on a CPU (sycoca_ds/model/layers/products.py)

    python benchmarks/investigations/cpu_kernels.py

Attention: forward and backward at the shapes of the preset `tiny`, torch's kernel in bf16 and in float32. Layer norm: how far the
gradients of weight and bias are off float32's, with torch's kernel and with both applied after the norm, and the time of each.
Ways take turns in one process; medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sycoca_ds.model.layers.products import LayerNorm

TURNS = 15
TOKENS, WIDTH = 64 * 256, 128


def seconds(ways: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each way."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if turn:  # the first call chooses kernels
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def attention(dtype: torch.dtype) -> Callable[[], None]:
    q, k, v = (torch.randn(64, 4, 37, 32, dtype=dtype, requires_grad=True) for _ in range(3))
    return lambda: F.scaled_dot_product_attention(q, k, v).sum().backward()


def main() -> None:
    torch.set_num_threads(1)  # as each of two ranks on two cores has it
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread")
    found = seconds({"bf16": attention(torch.bfloat16), "float32": attention(torch.float32)})
    print(f"attention (64, 4, 37, 32): bf16 {1e3 * found['bf16']:.2f} ms, float32 {1e3 * found['float32']:.2f} ms, ratio ", end="")
    print(f"{found['bf16'] / found['float32']:.2f}")

    x, slope = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH) + 0.1
    gradients, ways = {}, {}
    for name, norm, dtype in (
        ("float32", torch.nn.LayerNorm(WIDTH), torch.float32),
        ("torch's", torch.nn.LayerNorm(WIDTH).bfloat16(), torch.bfloat16),
        ("ours", LayerNorm(WIDTH).bfloat16(), torch.bfloat16),
    ):
        given, pull = x.to(dtype).requires_grad_(), slope.to(dtype)
        norm(given).backward(pull)
        gradients[name] = norm.weight.grad.float().clone(), norm.bias.grad.float().clone()
        ways[name] = lambda norm=norm, given=given, pull=pull: norm(given).backward(pull)
    taken = seconds(ways)
    for name in ("torch's", "ours"):
        errors = [(a - b).norm() / b.norm() for a, b in zip(gradients[name], gradients["float32"], strict=True)]
        print(
            f"layer norm of {TOKENS} x {WIDTH} in bf16, {name}: gradient of weight {100 * errors[0]:.1f} % off, of bias "
            f"{100 * errors[1]:.1f} %; {1e3 * taken[name]:.2f} ms"
        )


if __name__ == "__main__":
    main()

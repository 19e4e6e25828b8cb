"""Layers that are not torch's own on a CPU."""

from __future__ import annotations

import pytest
import torch

from sycoca_ds.model.layers import products
from sycoca_ds.model.layers.products import Linear


@pytest.mark.parametrize("bias", [True, False])
def test_products_in_float32_are_those_of_the_rounded_numbers(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output and every gradient against float64, rounded to bf16 once; kept for the backward pass is nothing wider than bf16."""
    monkeypatch.setattr(products, "has_bf16_products", lambda: False)
    torch.manual_seed(0)
    layer, x = Linear(24, 17, bias=bias).bfloat16(), torch.randn(3, 5, 24).bfloat16().requires_grad_()
    slope, kept = torch.randn(3, 5, 17).bfloat16(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.dtype) or tensor, lambda tensor: tensor):
        out = layer(x)
    out.backward(slope)
    assert set(kept) == {torch.bfloat16}
    exact = {name: p.detach().double().requires_grad_() for name, p in (("x", x), *layer.named_parameters())}
    expected = torch.nn.functional.linear(exact["x"], exact["weight"], exact.get("bias"))
    expected.backward(slope.double())
    pairs = [(out, expected), *((p.grad, exact[name].grad) for name, p in (("x", x), *layer.named_parameters()))]
    for mine, reference in pairs:
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.double(), reference, rtol=2**-8, atol=1e-6)  # half a step of bf16 is 2^-9 of a number


def test_which_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    monkeypatch.setattr(products.Float32Products, "apply", lambda x, weight, bias: taken.append("float32 products") or x)
    layer = Linear(4, 4)
    for has, dtype in ((False, torch.bfloat16), (True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(products, "has_bf16_products", lambda has=has: has)
        layer.to(dtype)(torch.zeros(2, 4, dtype=dtype))
    assert taken == ["float32 products"], "in bf16 alone, and where there are no such products"
    monkeypatch.undo()
    assert (
        products.has_bf16_products() == ("avx512" in open("/proc/cpuinfo").read())
        or torch.backends.cpu.get_cpu_capability() == "DEFAULT"
    )

"""Blocks as torch's compiler makes them."""

from __future__ import annotations

import pytest
import torch

from sycoca_ds.model.layers.blocks import CrossBlock, SelfBlock, compile_blocks


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_compiled_blocks_of_one_shape_share_what_is_compiled_and_do_the_same() -> None:
    """The whole model, with captions of all kinds, is the night's (test_parameters.py)."""
    from torch._dynamo.utils import counters

    def block() -> SelfBlock:
        torch.manual_seed(0)
        return SelfBlock(16, 2, "causal")

    torch._dynamo.reset()
    counters.clear()
    plain, compiled = (torch.nn.ModuleList([block(), block()]) for _ in range(2))
    assert compile_blocks(compiled) == 2 and list(compiled.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 5, 16)
    for blocks in (plain, compiled):
        y = x.clone().requires_grad_()
        out = y
        for one in blocks:
            out = one(out)
        out.square().sum().backward()
        blocks.found = out.detach(), y.grad, *(p.grad for p in blocks.parameters())
    for expected, found in zip(plain.found, compiled.found, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] == len(SelfBlock.FUSED)


@pytest.mark.parametrize("kind", [SelfBlock, CrossBlock])
def test_what_is_compiled_is_called(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda method: lambda *inputs: (called.append(method.__name__), method(*inputs))[1])
    called: list[str] = []
    block = kind(16, 2, *([16] if kind is CrossBlock else []))
    compile_blocks(block)
    block(torch.randn(2, 3, 16), *([torch.randn(2, 4, 16)] if kind is CrossBlock else []))
    assert sorted(called) == sorted(kind.FUSED)

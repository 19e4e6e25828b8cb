"""The FLOPs formula against torch's own counter."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sycoca_ds.config import LossConfig
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.model.flops import forward_flops, passes, step_flops
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs


@pytest.mark.parametrize("family", ["clip", "coca", "sycoca"])
@pytest.mark.parametrize("mask_at", ["input", "embedding"])
@pytest.mark.parametrize("pooling", ["cls", "attention", "mean"])
@pytest.mark.parametrize("mim", ["text_guided", "plain", "none"])
def test_flops_formula_against_torchs_counter(family: str, mask_at: str, pooling: str, mim: str) -> None:
    """Every matrix product of a training step, forward and backward, as torch counts them while it runs. Attention goes through
    its plain products, which torch counts whole: under a causal mask the formula counts half."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    masking = dataclasses.replace(SMALL_MODEL.masking, mask_at=mask_at, mim=mim, high_ratio=0.75, low_ratio=0.25)
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    text = dataclasses.replace(SMALL_MODEL.text, pooling="mean" if pooling == "mean" else "cls")
    config = dataclasses.replace(SMALL_MODEL, family=family, image=image, text=text, masking=masking)
    model, inputs = SyCoCa(config, seed=0), random_inputs(lengths=(12, 12, 12, 12))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss = model("train", **inputs)["loss"]
        forward = counter.get_total_flops()
        loss.backward()
    total = counter.get_total_flops()
    with_cls = 12 + (pooling != "mean")
    causal = {with_cls: config.text.layers, 11: config.text_decoder.layers if config.captions else 0}
    halves = 4 * sum(layers * 2 * length * length * config.text.width for length, layers in causal.items())
    contrast = 2 * 2 * 4 * 4 * config.embed_dim  # the B x B logits, both ways, forward: of the batch, not of a sample
    # so is the projection of the pooling's queries, once a reading
    readings = 1 + (family == "sycoca") if pooling == "attention" else 0
    queries = readings * 2 * 9 * config.embed_dim**2
    early = 2 * 4 * sum(p.forward for p in passes(config) if p.what == "vocabulary head")  # its gradients come with the loss
    assert forward == pytest.approx(4 * forward_flops(config) + halves + contrast + queries + early, rel=1e-3)
    # pixels need no gradient: the patch embedding has no such product, in any pass
    seen = [int(p.tokens.split()[2]) for p in passes(config) if p.part == "image encoder" and "patches" in p.what]
    spared = 4 * 2 * sum(seen) * config.image.patch_values * config.image.width
    assert total == pytest.approx(4 * step_flops(config) + 3 * (halves + contrast + queries) - spared, rel=5e-3)


@pytest.mark.parametrize(
    "similarity", ["token_max", "centred_over_pictures", "cross_attention", "value_path", "global", "centred_token_max", "saliency"]
)
def test_flops_of_every_kind_of_score_against_torchs_counter(similarity: str) -> None:
    """What a forward pass with attentive masks has more than one with random ones."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = dataclasses.replace(SMALL_MODEL, masking=dataclasses.replace(SMALL_MODEL.masking, similarity=similarity))
    model, inputs, counts = SyCoCa(config, seed=0), random_inputs(lengths=(12, 12, 12, 12)), {}
    for mask_by in ("attention", "random"):
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            model("train", **inputs, mask_by=mask_by)
        counts[mask_by] = counter.get_total_flops()
    own = next(part for part in passes(config) if part.part == "masking")  # torch counts causal attention whole
    halves = config.text_decoder.layers * 2 * 11 * 11 * 32 if similarity == "cross_attention" else 0
    assert counts["attention"] - counts["random"] == pytest.approx(4 * (own.forward + halves), rel=1e-6)


@pytest.mark.parametrize("words", [3, 16])
def test_flops_of_the_late_interaction_against_torchs_counter(words: int) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    inputs, counts, flops = random_inputs(lengths=(12, 12, 12, 12)), [], []
    for weight in (0.0, 0.1):
        loss = LossConfig(late_interaction=weight, late_interaction_group=words)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            SyCoCa(SMALL_MODEL, loss, seed=0)("train", **inputs)["loss"].backward()
        counts.append(counter.get_total_flops())
        flops.append(step_flops(SMALL_MODEL, recompute={"late interaction": 1.0}, loss=loss))
    assert counts[1] - counts[0] == pytest.approx(4 * (flops[1] - flops[0]), rel=0.02)


@pytest.mark.parametrize("family, pooling", [("clip", "cls"), ("coca", "attention"), ("sycoca", "cls"), ("sycoca", "attention")])
def test_flops_of_recomputation_and_of_micro_batches_against_torchs_counter(family: str, pooling: str) -> None:
    """What activation checkpointing and a second micro-batch add to a step, as torch counts it."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    config = dataclasses.replace(SMALL_MODEL, family=family, image=image)
    model, inputs = SyCoCa(config, seed=0), random_inputs(lengths=(12, 12, 12, 12))

    def counted(micro_batches: int, checkpointing: bool) -> int:
        model.set_activation_checkpointing(checkpointing)
        pieces = [{name: value.chunk(micro_batches)[n] for name, value in inputs.items()} for n in range(micro_batches)]
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            for micro, more in zip(pieces, shared_inputs(model, pieces, 2), strict=True):
                model("train", **micro, **more)["loss"].backward()
        return counter.get_total_flops()

    plain = counted(1, False)
    recomputed = step_flops(config, recompute=True) - step_flops(config)
    # torch counts causal attention whole: forward in every block's text, once more where it is computed again
    causal = {13: config.text.layers, 11: config.text_decoder.layers if config.captions else 0}
    halves = sum(layers * 2 * length * length * config.text.width for length, layers in causal.items())
    assert counted(1, True) - plain == pytest.approx(4 * (recomputed + halves), rel=0.01)
    again = step_flops(config, accumulation_steps=2) - step_flops(config)
    # the pooling's queries are projected once a call: in a second training call of so many readings, and in two without gradient
    readings = 3 * (1 + (family == "sycoca")) + 2 if pooling == "attention" else 0
    queries = readings * 2 * 9 * config.embed_dim**2
    expected = 4 * (again + 2 * config.text.layers * 13 * 13 * 32) + queries
    assert counted(2, False) - plain == pytest.approx(expected, rel=0.01)

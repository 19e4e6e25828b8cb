"""What the forward pass keeps, by formula, against the tensors that autograd saves; and a step's highest moment against all tensors
alive while it runs, of one process without DeepSpeed."""

from __future__ import annotations

import dataclasses
import gc
import itertools

import pytest
import torch

from sycoca_ds.capacity import pieces
from sycoca_ds.capacity.memory import LINES, moments
from sycoca_ds.capacity.pieces import Checkpointing, Kernels, Work, forward_pieces, kept_bytes
from sycoca_ds.capacity.search import PARTS
from sycoca_ds.capacity.states import Sharding
from sycoca_ds.capacity.step import Step
from sycoca_ds.config import LossConfig, ModelConfig, with_vocabulary
from sycoca_ds.engine.batches import BatchPlan
from sycoca_ds.model import decoders
from sycoca_ds.model.layers import products
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.presets import PRESETS
from tests.worlds.models.live_bytes import LiveBytes, storages

pytestmark = pytest.mark.slow

TINY = with_vocabulary(PRESETS["tiny"].model, 512)
ALL: Checkpointing = dict.fromkeys(PARTS, 1)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shallow(preset: str) -> ModelConfig:
    """A preset's widths and lengths with two blocks a part."""
    model = with_vocabulary(PRESETS[preset].model, 512)
    two = {name: dataclasses.replace(getattr(model, name), layers=2) for name in ("image", "text", "text_decoder", "image_decoder")}
    return dataclasses.replace(model, **two)


@pytest.fixture(autouse=True)
def with_bf16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the planner plans for; a CPU without them has float32 copies of a layer on top."""
    monkeypatch.setattr(products, "has_bf16_products", lambda: True)


def build(model: ModelConfig, dtype: torch.dtype, checkpointing: Checkpointing) -> SyCoCa:
    built = SyCoCa(model, seed=0).to(dtype).train()
    built.set_activation_checkpointing(bool(checkpointing))
    return built


def inputs(model: ModelConfig, batch: int) -> dict[str, torch.Tensor]:
    """Captions of full length."""
    generator = torch.Generator().manual_seed(0)
    text_BL = torch.randint(3, model.text.vocab_size, (batch, model.text.context_length), generator=generator)
    text_BL[:, 0], text_BL[:, -1] = model.text.sot_id, model.text.eot_id
    side = model.image.image_size
    pixels = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator)
    return {"image_BCHW": pixels, "text_BL": text_BL, "key_B": torch.arange(batch)}


def saved(model: ModelConfig, batch: int, precision: str, checkpointing: Checkpointing, loss: LossConfig | None = None) -> int:
    """Bytes of all storages that the forward pass of a real model saves, weights and inputs left out."""
    built, batch_of = build(model, DTYPES[precision], checkpointing), inputs(model, batch)
    built.loss = loss or built.loss
    own, found = set(storages([*built.parameters(), *batch_of.values()])), {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        found.update(storages([x]))
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = built("train", **batch_of)["loss"]
    assert loss.requires_grad
    made = 0
    if built.text_decoder is not None:  # the captioning loss's own gradients, which no hook sees
        rows = int((batch_of["text_BL"] != 0).sum()) - batch
        made = (rows + model.text.vocab_size) * model.text_decoder.width * DTYPES[precision].itemsize
    return made + sum(size for place, size in found.items() if place not in own)


def counted(model: ModelConfig, batch: int, precision: str, checkpointing: Checkpointing) -> int:
    kernels = Kernels(bytes=2 if precision == "bf16" else 4, casts=precision == "bf16")
    return kept_bytes(forward_pieces(Work(model, batch, batch, kernels, checkpointing)))


FULL = pytest.mark.full


@pytest.mark.parametrize("family", ["clip", "coca", "sycoca"])
@pytest.mark.parametrize(
    "pooling, precision",
    [
        ("mean", "fp32"),
        ("cls", "fp32"),
        ("attention", "bf16"),
        *(pytest.param(*cell, marks=FULL) for cell in (("mean", "bf16"), ("cls", "bf16"), ("attention", "fp32"))),
    ],
)
@pytest.mark.parametrize("checkpointing", [{}, ALL], ids=["none", "full"])
def test_kept_bytes_of_every_family(family: str, pooling: str, precision: str, checkpointing: Checkpointing) -> None:
    image = dataclasses.replace(TINY.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    text = dataclasses.replace(TINY.text, pooling="mean" if pooling == "mean" else "cls")
    model = dataclasses.replace(TINY, family=family, image=image, text=text)
    assert counted(model, 4, precision, checkpointing) == pytest.approx(saved(model, 4, precision, checkpointing), rel=0.01)


@pytest.mark.parametrize(
    "masking", [{"mask_at": "embedding"}, {"mim": "plain"}, {"mim": "none"}, {"low_ratio": 0.0}, {"high_ratio": 0.75}], ids=str
)
@pytest.mark.parametrize("checkpointing", [{}, ALL], ids=["none", "full"])
def test_kept_bytes_of_every_masking(masking: dict, checkpointing: Checkpointing) -> None:
    model = dataclasses.replace(TINY, masking=dataclasses.replace(TINY.masking, **masking))
    assert counted(model, 4, "fp32", checkpointing) == pytest.approx(saved(model, 4, "fp32", checkpointing), rel=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_bytes_of_the_late_interaction(precision: str) -> None:
    kernels = Kernels(bytes=2 if precision == "bf16" else 4, casts=precision == "bf16")
    counts = [kept_bytes(forward_pieces(Work(TINY, 8, 8, kernels, ALL, late_interaction=late))) for late in (False, True)]
    loss = LossConfig(late_interaction=0.1, late_interaction_group=4)
    held = 4 * 8 * (TINY.image.patches + TINY.text.context_length) * TINY.embed_dim  # by what is computed again; no hook sees it
    expected = saved(TINY, 8, precision, ALL, loss) - saved(TINY, 8, precision, ALL) + held
    assert counts[1] - counts[0] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "preset",
    ["930m", "coca_ViT-B-32", *(pytest.param(name, marks=FULL) for name in ("small", "base", "coca_base", "coca_ViT-L-14"))],
)
@pytest.mark.parametrize("checkpointing", [{}, ALL], ids=["none", "full"])
def test_kept_bytes_of_presets_at_two_blocks_a_part(preset: str, checkpointing: Checkpointing) -> None:
    """Their own widths, patches and captions; what more blocks keep is a multiple."""
    model = shallow(preset)
    assert counted(model, 1, "fp32", checkpointing) == pytest.approx(saved(model, 1, "fp32", checkpointing), rel=0.01)


def test_no_logits_are_kept_however_many_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss keeps its gradients, which no hook sees: of the head's weights, and of what the head is given."""
    assert pieces.LOGITS_AT_ONCE == decoders.LOGITS_AT_ONCE
    model = dataclasses.replace(TINY, family="coca")
    whole = counted(model, 4, "fp32", ALL)
    for module in (pieces, decoders):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 512 * 10)
    assert whole == counted(model, 4, "fp32", ALL) == pytest.approx(saved(model, 4, "fp32", ALL), rel=0.01)


def test_every_second_block_keeps_half_of_what_recomputing_all_saves() -> None:
    none, half, full = (counted(TINY, 4, "fp32", dict.fromkeys(PARTS, k)) for k in (0, 2, 1))
    assert none - half == pytest.approx((none - full) / 2, rel=0.1)
    assert none - counted(TINY, 4, "fp32", {"image encoder": 1}) < none - full


HIGHEST = itertools.product(("clip", "coca", "sycoca", "sycoca, masked late"), DTYPES, ("none", "full"))
ALWAYS = [("clip", "bf16", "full"), ("coca", "fp32", "none"), ("sycoca", "bf16", "full"), ("sycoca, masked late", "bf16", "none")]


@pytest.mark.parametrize(
    "kind, precision, recomputed", [pytest.param(*cell, marks=() if cell in ALWAYS else FULL) for cell in HIGHEST]
)
def test_the_highest_moment_of_forward_and_backward(kind: str, precision: str, recomputed: str) -> None:
    """All tensors that are alive, gradients among them, at any moment; on the safe side by up to 8 %."""
    family, mask_at = kind.split(",")[0], "embedding" if "late" in kind else "input"
    model = dataclasses.replace(TINY, family=family, masking=dataclasses.replace(TINY.masking, mask_at=mask_at))
    real, planned = highest_moments(model, precision, ALL if recomputed == "full" else {})
    assert 0.99 * real < planned < 1.08 * real


@pytest.mark.parametrize("precision", DTYPES)
def test_the_highest_moment_where_the_vocabularys_gradient_is_summed_in_pieces(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary that outweighs all else, ten rows at a time: in bf16 its gradient is summed in float32."""
    model = dataclasses.replace(TINY, family="coca", text=dataclasses.replace(TINY.text, vocab_size=60_000))
    for module in (pieces, decoders):
        monkeypatch.setattr(module, "LOGITS_AT_ONCE", 10 * model.text.vocab_size)
    real, planned = highest_moments(model, precision, ALL)
    assert 0.99 * real < planned < 1.08 * real


def highest_moments(model: ModelConfig, precision: str, checkpointing: Checkpointing) -> tuple[float, float]:
    """Bytes of a forward and a backward pass on 8 samples: (all that was alive at once, what the planner says)."""
    built, batch = build(model, DTYPES[precision], checkpointing), inputs(model, 8)
    built("train", **batch)["loss"].backward()
    built.zero_grad()
    gc.collect()
    with LiveBytes() as live:
        built("train", **batch)["loss"].backward()
    step = Step(model, Sharding(0, precision, reduce_bucket=1), BatchPlan(8, 8, 1, 1), checkpointing, cpu=True)
    lines = [LINES.index(line) for line in ("gradients", "activations", "logits", "contrast")]
    return live.most, max(sum(numbers[line] for line in lines) for what, numbers in moments(step) if what != "update")

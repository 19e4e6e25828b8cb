"""Parameters: how many, how they start, which objective moves them, and the logit scale's bound."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from sycoca_ds.config import LossConfig, MaskingConfig, ModelConfig, with_vocabulary
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.model.layers import stacks
from sycoca_ds.model.layers.blocks import CrossBlock, SelfBlock, compile_blocks
from sycoca_ds.model.layers.initialise import initialise
from sycoca_ds.model.sycoca import LOGIT_SCALE_START, SyCoCa
from sycoca_ds.presets import PRESETS
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs, small_model


def parameters(config: ModelConfig) -> dict[str, int]:
    with torch.device("meta"):
        model = SyCoCa(config, seed=None)
    return {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}


def test_parameter_counts_are_open_clips() -> None:
    """open_clip's docs/model_profile.csv gives coca_base 440.34 M; its parts by hand: ViT 86.395, text 134.661, decoder 219.281."""
    base = with_vocabulary(PRESETS["paper-base"].model, 64000)
    image = dataclasses.replace(base.image, image_size=288, patch_size=18)
    parts = parameters(dataclasses.replace(base, family="coca", image=image))
    assert {name: round(count / 1e6, 3) for name, count in parts.items()} == {
        "image_encoder": 86.395,
        "text_encoder": 134.661,
        "text_decoder": 219.281,
    }


def test_the_930m_preset_has_930m_parameters() -> None:
    """The paper prints 930M; DESIGN allows 1 %."""
    assert abs(sum(parameters(with_vocabulary(PRESETS["930m"].model, 49152)).values()) - 930e6) < 9.3e6


@pytest.mark.parametrize("family", ["clip", "coca", "sycoca"])
def test_every_parameter_starts_as_the_paper_says(family: str) -> None:
    """N(0, 0.01) for matrices and embeddings, 1 for norms, 0 for biases, ln(1 / 0.07) for the logit scale, all finite."""
    config = dataclasses.replace(with_vocabulary(PRESETS["tiny"].model, 512), family=family, init_std=0.01)
    model = SyCoCa(config, seed=3)
    norms = {id(p) for m in model.modules() if isinstance(m, torch.nn.LayerNorm) for p in m.parameters()}
    for name, p in model.named_parameters():
        assert torch.isfinite(p).all(), name
        if name == "logit_scale":
            assert p.shape == (1,) and p.item() == pytest.approx(LOGIT_SCALE_START)
        elif name.endswith("bias"):
            assert (p == 0).all(), name
        elif id(p) in norms:
            assert (p == 1).all(), name
        else:
            error = 6 / p.numel() ** 0.5  # six standard errors of the estimates below
            assert abs(p.mean().item()) < 0.01 * error and abs(p.std().item() / 0.01 - 1) < error, name
    again = SyCoCa(config, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("family", ["clip", "coca", "sycoca"])
@pytest.mark.parametrize("pooling", ["cls", "attention"])
@pytest.mark.parametrize("mim", ["text_guided", "plain", "none"])
def test_every_parameter_receives_gradient(family: str, pooling: str, mim: str) -> None:
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    ways = itertools.product(("input", "embedding"), ("attention", "random"), (0.25, 0.5))
    for mask_at, mask_by, low_ratio in ways if family == "sycoca" else [("input", "attention", 0.5)]:
        masking = MaskingConfig(mim=mim, mask_at=mask_at, mask_by=mask_by, low_ratio=low_ratio)
        model = SyCoCa(dataclasses.replace(SMALL_MODEL, family=family, image=image, masking=masking), seed=1)
        model("train", **random_inputs())["loss"].backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and torch.isfinite(p.grad).all() and p.grad.abs().max() > 0, (name, masking)


@pytest.mark.parametrize(
    "objective, mim, trains",
    [
        ("itc", "text_guided", {"image_encoder", "text_encoder", "logit_scale"}),
        ("ic", "text_guided", {"image_encoder", "text_encoder", "text_decoder"}),
        ("mim", "text_guided", {"image_encoder", "text_encoder", "image_decoder"}),
        ("mim", "plain", {"image_encoder", "image_decoder"}),
    ],
)
def test_each_objective_trains_the_parts_it_should_and_no_other(objective: str, mim: str, trains: set) -> None:
    """Also no gradient through the scores: they alone join TG-MIM without text to the text encoder."""
    config = dataclasses.replace(SMALL_MODEL, masking=MaskingConfig(mim=mim))
    model = SyCoCa(config, LossConfig(**{"itc": 0.0, "ic": 0.0, "mim": 0.0, objective: 1.0}), seed=1)
    model("train", **random_inputs())["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {name.split(".")[0] for name in moved} == trains
    if objective != "itc":  # the projections to the shared space serve the contrast and the scores alone
        assert not {"image_encoder.proj.weight", "text_encoder.proj.weight"} & moved


@pytest.mark.parametrize("contrast", ["plain", "accumulated"])
def test_the_logit_scale_is_bounded_and_can_come_back(contrast: str) -> None:
    """Above ln 100 the value is 100, and the gradient is that of the contrast at 100: with none it would stay there for ever."""
    model, inputs = SyCoCa(dataclasses.replace(SMALL_MODEL, family="clip"), seed=1), random_inputs()

    def step(log_scale: float) -> tuple[float, float]:
        with torch.no_grad():
            model.logit_scale.fill_(log_scale)
        model.zero_grad()
        pieces = [inputs] if contrast == "plain" else [{k: v.chunk(2)[n] for k, v in inputs.items()} for n in range(2)]
        for micro, more in zip(pieces, shared_inputs(model, pieces, 2), strict=True):
            report = model("train", **micro, **more)
            (report["loss"] / len(pieces)).backward()
        return report["logit_scale"].item(), model.logit_scale.grad.item()

    below, at, above = (step(math.log(100) + d) for d in (-1e-3, 0.0, 0.7))
    assert below[0] < 99.95 and at[0] == pytest.approx(100) and above[0] == pytest.approx(100)
    assert abs(at[1]) > 1e-3 and above[1] == pytest.approx(at[1], rel=1e-5) and below[1] == pytest.approx(at[1], rel=0.05)


def test_a_parameter_of_an_unknown_kind_is_refused_at_the_start() -> None:
    """It would keep whatever the memory held, as the head of open_clip's decoder did."""
    model = torch.nn.Module()
    model.gate = torch.nn.Parameter(torch.empty(3))
    with pytest.raises(RuntimeError, match=r"no initialisation rule for parameter gate of shape \(3,\)"):
        initialise(model, 0.01, seed=0)


@pytest.mark.parametrize("every", [1, 2, {"text_encoder": 1, "image_decoder": 2}, 0])
def test_activation_checkpointing_changes_no_gradient(every: int | dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the blocks that were asked for are the ones that are computed again."""
    model, inputs, again = small_model().train(), random_inputs(), []
    kinds = (SelfBlock, CrossBlock)
    blocks_of = {name: [b for b in part.modules() if isinstance(b, kinds)] for name, part in model.named_children()}
    model("train", **inputs)["loss"].backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_activation_checkpointing(every)
    plain = stacks.checkpoint
    monkeypatch.setattr(stacks, "checkpoint", lambda block, *more, **rest: (again.append(block), plain(block, *more, **rest))[1])
    model("train", **inputs)["loss"].backward()
    for name, own in blocks_of.items():
        k = every.get(name, 0) if isinstance(every, dict) else every
        chosen = {id(block) for block in own} & {id(block) for block in again}
        places = [number for number, block in enumerate(b for b in own if isinstance(b, SelfBlock)) if id(block) in chosen]
        selves = sum(isinstance(block, SelfBlock) for block in own)
        assert places == (list(range(0, selves, k)) if k else []), name
    for (name, p), grad in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("family", ["sycoca", "coca"])
def test_what_is_compiled_changes_no_loss_and_no_gradient(family: str, every: int) -> None:
    """By torch's own compiler for a CPU; captions with and without padding; without a break, and as often as there are shapes."""
    from torch._dynamo.utils import counters

    counters.clear()
    courses = []
    for compiled in (False, True):
        model = SyCoCa(dataclasses.replace(SMALL_MODEL, family=family), seed=0).train()
        model.set_activation_checkpointing(every)
        assert not compiled or compile_blocks(model) == sum(isinstance(m, (SelfBlock, CrossBlock)) for m in model.modules())
        courses.append([])
        for lengths in ((12, 5, 8, 3), (9, 4, 7, 2), (11, 11, 3, 6)):
            report = model("train", **random_inputs(4, lengths))
            report["loss"].backward()
            courses[-1] += [report["loss"].detach(), *(p.grad.clone() for p in model.parameters())]
            model.zero_grad()
    for expected, found in zip(*courses, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 24, counters["stats"]


def test_bf16_gradients_are_those_of_float32_but_for_rounding() -> None:
    """Every parameter's gradient over 256 samples. torch's own layer norm gives some two thirds off on a CPU."""
    config = dataclasses.replace(SMALL_MODEL, masking=dataclasses.replace(SMALL_MODEL.masking, mask_by="random"))
    inputs, gradients = random_inputs(256, tuple(3 + row % 10 for row in range(256))), []
    for dtype in (torch.float32, torch.bfloat16):
        model = SyCoCa(config, seed=0).to(dtype)
        model("train", **inputs)["loss"].backward()
        gradients.append({name: p.grad.double() for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert (gradients[1][name] - expected).norm() < 0.06 * expected.norm(), name

"""Captions without padding against the same model with padding: losses, gradients, scores, likelihoods."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sycoca_ds.config import LossConfig, MaskingConfig, ModelConfig
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.model.decoders import ImageDecoder, TextDecoder
from sycoca_ds.model.layers import packing
from sycoca_ds.model.layers.packing import Packing
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import TextEncoder, label_places, real_tokens
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs

LENGTHS = {"ragged": (12, 5, 8, 3), "trimmed": (7, 2, 6, 7), "full": (12, 12, 12, 12), "alike": (5, 5, 5, 5)}


def inputs_of(lengths: str, seed: int = 0, zero_inside: bool = False) -> dict[str, Tensor]:
    inputs = random_inputs(lengths=LENGTHS[lengths], seed=seed)
    longest = max(LENGTHS[lengths])
    inputs["text_BL"] = inputs["text_BL"][:, :longest].contiguous()
    if zero_inside:
        inputs["text_BL"][2, 2] = 0
    return inputs


def model_of(loss: LossConfig | None = None, text: dict[str, Any] | None = None, **changes: Any) -> SyCoCa:
    """In float64. `text`: fields of the text encoder; other words are fields of the model, or of its masking."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    masking = MaskingConfig(**{name: changes.pop(name) for name in [*changes] if name not in fields})
    config = dataclasses.replace(
        SMALL_MODEL, masking=masking, text=dataclasses.replace(SMALL_MODEL.text, **(text or {})), **changes
    )
    if (text or {}).get("pooling") == "mean":
        config = dataclasses.replace(config, image=dataclasses.replace(config.image, pooling="mean"))
    return SyCoCa(config, loss, seed=1).double()


class WithPadding:
    """Within it every text part runs on padded captions: what it is given without padding is filled up by boolean indices, and what
    comes out is picked the same way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text_BL: Tensor):
        self.real_BL, self.patch = real_tokens(text_BL, 2), monkeypatch
        self.input_BL = (F.pad(self.real_BL, (0, 1))[:, 1:])[:, :-1]

    def __enter__(self) -> None:
        encode, decode, look, rebuild = TextEncoder.forward, TextDecoder.forward, TextDecoder.looks, ImageDecoder.forward

        def filled(x_TD: Tensor, where_BL: Tensor) -> Tensor:
            return x_TD.new_zeros(*where_BL.shape, x_TD.shape[1]).masked_scatter(where_BL[..., None], x_TD)

        def encoded(part, text_BL, rows=None, **more):
            global_BD, *each = encode(part, text_BL, **more)
            return (global_BD, *(x[self.real_BL] for x in each))

        def decoded(part, x_TD, image_BSD, target_M=None, each=False, packing=None, valid_BS=None):
            at_M = self.input_BL.flatten().nonzero().squeeze(1)
            return decode(part, filled(x_TD, self.input_BL), image_BSD, at_M, target_M, each, valid_BS)

        def looked(part, x_TD, image_BSD, packing):
            return look(part, filled(x_TD, self.input_BL), image_BSD)

        def rebuilt(part, kept_BKD, keep_BK, x_TD, valid_BL, packed):
            return rebuild(part, kept_BKD, keep_BK, None if x_TD is None else filled(x_TD, self.real_BL), valid_BL)

        self.patch.setattr(TextEncoder, "forward", encoded)
        self.patch.setattr(TextDecoder, "forward", decoded)
        self.patch.setattr(TextDecoder, "looks", looked)
        self.patch.setattr(ImageDecoder, "forward", rebuilt)

    def __exit__(self, *reason: object) -> None:
        self.patch.undo()


def step(model: SyCoCa, inputs: dict[str, Tensor]) -> tuple[dict[str, float], dict[str, Tensor]]:
    model.zero_grad()
    report = model("train", **inputs)
    report["loss"].backward()
    return {name: value.item() for name, value in report.items()}, {n: p.grad.clone() for n, p in model.named_parameters()}


def assert_near(found: Tensor, expected: Tensor, name: str) -> None:
    most = 1e-6 * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=most, msg=lambda said: f"{name}: {said}")


def assert_equal_to_padded(model: SyCoCa, inputs: dict[str, Tensor]) -> None:
    ours = step(model, inputs)
    with pytest.MonkeyPatch.context() as patch, WithPadding(patch, inputs["text_BL"]):
        theirs = step(model, inputs)
    for name, value in theirs[0].items():
        assert ours[0][name] == pytest.approx(value, rel=1e-6, abs=1e-7), name
    for name, grad in theirs[1].items():
        assert grad.abs().max() > 0, f"{name} has no gradient, so this comparison could not fail"
        assert_near(ours[1][name], grad, name)


PATTERNS = {"cls": {}, "cls of open_clip": {"attention_mask": "open_clip"}, "mean": {"pooling": "mean"}}


@pytest.mark.parametrize("text", PATTERNS.values(), ids=[*PATTERNS])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_every_pattern_and_length(text: dict, lengths: str) -> None:
    assert_equal_to_padded(model_of(text=text), inputs_of(lengths))


@pytest.mark.parametrize("lengths", ["ragged", "full"])
def test_an_id_of_zero_inside_a_caption_hides_what_open_clip_hides(lengths: str) -> None:
    text = {"attention_mask": "open_clip"}
    inputs = inputs_of(lengths, zero_inside=True)
    model = model_of(text=text)
    assert_equal_to_padded(model, inputs)
    changed = {**inputs, "text_BL": inputs["text_BL"].clone()}
    changed["text_BL"][2, 2] = 7
    assert abs(step(model, changed)[0]["itc"] - step(model, inputs)[0]["itc"]) > 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"family": "clip"},
        {"family": "coca"},
        {"mask_at": "embedding"},
        {"mim": "plain"},
        {"mim": "none"},
        {"mask_by": "random"},
        {"low_ratio": 0.0},
        {"target": "normalised_pixels"},
        {"words": "content", "left_out_ids": (1, 2, 9)},
        {"image": dataclasses.replace(SMALL_MODEL.image, pooling="attention", pooling_queries=9, pooling_heads=4)},
        *(
            {"similarity": name}
            for name in ("centred_over_pictures", "cross_attention", "value_path", "global", "centred_token_max", "saliency")
        ),
        {"loss": LossConfig(late_interaction=0.1, late_interaction_group=3)},
        {"loss": LossConfig(late_interaction=0.1, late_interaction_group=3), "text": {"pooling": "mean"}},
    ],
    ids=str,
)
def test_every_family_mask_and_loss(changes: dict) -> None:
    assert_equal_to_padded(model_of(**changes), inputs_of("trimmed"))


@pytest.mark.parametrize("text", PATTERNS.values(), ids=[*PATTERNS])
def test_blocks_that_are_computed_again(text: dict) -> None:
    model = model_of(text=text)
    before = step(model, inputs_of("ragged"))
    model.set_activation_checkpointing(1)
    after = step(model, inputs_of("ragged"))
    assert before[0] == after[0] and all(torch.equal(before[1][name], after[1][name]) for name in after[1])


def flash(q: Tensor, k: Tensor, v: Tensor, q_at: Tensor, k_at: Tensor, most_q: int, most_k: int, window_size=(-1, -1)) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` is documented to do, a sequence at a time."""
    assert q_at.dtype == k_at.dtype == torch.int32 and q_at[-1] == len(q) and k_at[-1] == len(k)
    out = []
    for (a, b), (c, d) in zip(q_at.unfold(0, 2, 1).tolist(), k_at.unfold(0, 2, 1).tolist(), strict=True):
        assert 0 < b - a <= most_q and 0 < d - c <= most_k
        parts = (x.transpose(0, 1)[None] for x in (q[a:b], k[c:d], v[c:d]))
        out.append(F.scaled_dot_product_attention(*parts, is_causal=window_size == (-1, 0))[0].transpose(0, 1))
    return torch.cat(out)


@pytest.mark.parametrize("text", PATTERNS.values(), ids=[*PATTERNS])
@pytest.mark.parametrize("lengths", ["ragged", "full"])
@pytest.mark.parametrize("kernel", ["flash", "padded view"])
def test_what_a_gpu_does(text: dict, lengths: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle rows at the end, and the kernel for sequences of unequal length, in its stead one that does what its page says."""
    assert packing.rows_multiple(torch.device("cuda")) == 64
    model, inputs = model_of(text=text, similarity="cross_attention"), inputs_of(lengths)
    with pytest.MonkeyPatch.context() as patch, WithPadding(patch, inputs["text_BL"]):
        theirs = step(model, inputs)
    calls = []
    monkeypatch.setattr(packing, "rows_multiple", lambda device: 16)
    monkeypatch.setattr(packing, "varlen_attention", lambda *shape: calls.append(1) or flash if kernel == "flash" else None)
    ours = step(model, inputs)
    assert calls if kernel == "flash" else not calls
    for name, value in theirs[0].items():
        assert ours[0][name] == pytest.approx(value, rel=1e-6), name
    for name, grad in theirs[1].items():
        assert_near(ours[1][name], grad, name)


def test_idle_rows_matter_to_nobody_and_change_no_gradient() -> None:
    count_B = torch.tensor([3, 1, 2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "rows_multiple", lambda device: 4)
        rows = Packing(count_B, 6, 4)
        assert rows.rows == 8 and rows.caption_T.tolist() == [0, 0, 0, 1, 2, 2, 2, 2] and rows.bounds.tolist() == [0, 3, 4, 8]
        x_TD = torch.arange(8.0, requires_grad=True)[:, None].expand(-1, 2)
        padded = rows.unpack(x_TD)
    assert padded[..., 0].tolist() == [[0, 1, 2, 2], [3, 3, 3, 3], [4, 5, 5, 5]]
    weight = torch.arange(1.0, 13.0).view(3, 4)
    (grad,) = torch.autograd.grad((padded[..., 0] * weight).sum(), x_TD)
    assert grad[:, 0].tolist() == [1, 2, 3, 5, 9, 10, 0, 0], "pads and idle rows have no gradient"
    back = rows.pack(padded)
    assert back[:6, 0].tolist() == [0, 1, 2, 3, 4, 5]
    (grad,) = torch.autograd.grad(back[:, 0].sum(), padded)
    assert grad[..., 0].tolist() == [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]]


@torch.no_grad()
@pytest.mark.parametrize("text", PATTERNS.values(), ids=[*PATTERNS])
def test_likelihoods_of_captions(text: dict) -> None:
    model, inputs = model_of(text=text), inputs_of("ragged")
    asked = {"image_BCHW": inputs["image_BCHW"], "text_TL": inputs["text_BL"], "image_of_T": torch.tensor([1, 0, 3, 3])}
    ours = model("caption_likelihoods", **asked)
    with pytest.MonkeyPatch.context() as patch, WithPadding(patch, inputs["text_BL"]):
        theirs = model("caption_likelihoods", **asked)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert len(set(theirs.tolist())) == 4


@pytest.mark.parametrize("similarity", ["token_max", "centred_over_pictures"])
def test_micro_batches_of_unequal_padding(similarity: str) -> None:
    """Each packed on its own: one step of two equals the two in one batch."""
    model = model_of(LossConfig(late_interaction=0.1, late_interaction_group=3), similarity=similarity)
    whole = inputs_of("ragged")
    losses, gradients = step(model, whole)
    micro = [{name: value.chunk(2)[n] for name, value in whole.items()} for n in range(2)]
    micro[1]["text_BL"] = micro[1]["text_BL"][:, :8].contiguous()
    for each in micro:
        each["label_at_M"] = label_places(each["text_BL"], 2)
    model.zero_grad()
    for each, more in zip(micro, shared_inputs(model, micro, 2), strict=True):
        (model("train", **each, **more)["loss"] / 2).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-6 * gradients[name].abs().max().item())


def test_linear_layers_see_real_tokens_alone() -> None:
    """Rows that the text parts' MLPs run on: 28 tokens and 4 [CLS]; 24 with a next one; nothing for 20 pads."""
    model, rows = model_of(), {"text_encoder": set(), "text_decoder": set()}
    for part, seen in rows.items():
        for name, module in getattr(model, part).named_modules():
            if name.endswith(("mlp.fc", "attention.qkv", "attention.q")):
                module.register_forward_pre_hook(lambda module, args, seen=seen: seen.add(tuple(args[0].shape[:-1])))
    model("train", **inputs_of("ragged"))
    assert rows == {"text_encoder": {(32,)}, "text_decoder": {(24,)}}

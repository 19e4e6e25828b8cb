"""The model against slow references, and the faults that open_clip's CoCa had for years (label leak, pad leak, [CLS] mask,
uninitialised head), one test each."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from data_pipeline.errors import UserError
from sycoca_ds.config import MaskingConfig, check_model
from sycoca_ds.model import sycoca
from sycoca_ds.model.image_encoder import patchify, unpatchify
from sycoca_ds.model.layers.blocks import SelfAttention
from sycoca_ds.model.masking.patches import random_scores, split_patches, take_patches
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import label_places
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs, small_model


def image_tokens(model: SyCoCa, patch_BNP: torch.Tensor, keep_BK: torch.Tensor | None = None) -> torch.Tensor:
    """What the decoders see of all patches, or of the kept ones."""
    if keep_BK is not None:
        patch_BNP = take_patches(patch_BNP, keep_BK)
    return model.image_encoder.read(model.image_encoder(patch_BNP, keep_BK))[1]


def test_patchify_orders_patches_by_rows_and_channels_last() -> None:
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            block = image[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(patches[1, row * 3 + column], block.permute(1, 2, 0).reshape(-1))


def test_causal_cls_attention_equals_one_masked_attention() -> None:
    """Two fused calls against one call with the whole (L + 1, L + 1) mask."""
    torch.manual_seed(0)
    attention = SelfAttention(32, 4, "causal_cls").double()
    x = torch.randn(3, 8, 32, dtype=torch.float64)
    valid = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5], dtype=torch.bool)
    sees = torch.ones(8, 8, dtype=torch.bool).tril().repeat(3, 1, 1)
    sees[:, -1, :-1] = valid
    q, k, v = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    weights = ((q @ k.transpose(-1, -2)) / 8**0.5).masked_fill(~sees[:, None], float("-inf")).softmax(dim=-1)
    expected = attention.out((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention.out(attention.mix(attention.qkv(x), valid)), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_a_later_token_changes_no_earlier_logit() -> None:
    """Label leak: the logits at position t predict token t + 1, so no token after t may reach them."""
    model, inputs = small_model(), random_inputs(lengths=(12, 12, 12, 12))
    text, image = inputs["text_BL"], inputs["image_BCHW"]

    def logits(ids: torch.Tensor) -> torch.Tensor:
        tokens = model.text_encoder(ids)[1]
        return model.text_decoder(tokens, image_tokens(model, patchify(image, 6)))

    before = logits(text)
    for t in range(11):
        changed = text.clone()
        changed[:, t + 1 :] = (changed[:, t + 1 :] + 7) % 46 + 3
        after = logits(changed)
        assert torch.equal(after[:, : t + 1], before[:, : t + 1])
        assert (after[:, t + 1] - before[:, t + 1]).abs().max() > 1e-4, "the token itself must matter, or the test cannot fail"


@torch.no_grad()
def test_longer_padding_changes_nothing() -> None:
    model, inputs = small_model(), random_inputs(lengths=(6, 5, 4, 3))
    long, short = inputs, {**inputs, "text_BL": inputs["text_BL"][:, :6]}
    for name, value in model("train", **long).items():
        torch.testing.assert_close(value, model("train", **short)[name], rtol=1e-6, atol=1e-6, msg=name)
    torch.testing.assert_close(model("text_features", text_BL=long["text_BL"]), model("text_features", text_BL=short["text_BL"]))
    rebuilt = [model("reconstruct", **x)["pixels_BNP"] for x in (long, short)]
    torch.testing.assert_close(*rebuilt, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_pad_embedding_influences_nothing() -> None:
    """Pads are never attended to: rewriting what a pad looks like must leave every loss, score and pixel as it was."""
    model, inputs = small_model(), random_inputs()
    before, features = model("train", **inputs), model("text_features", text_BL=inputs["text_BL"])
    pixels, scores = (model("reconstruct", **inputs)[name] for name in ("pixels_BNP", "scores_BN"))
    # not a constant: the norm in front of every block would take that off again
    model.text_encoder.token_embedding.weight[0] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    for name, value in model("train", **inputs).items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(model("text_features", text_BL=inputs["text_BL"]), features)
    after = model("reconstruct", **inputs)
    assert torch.equal(after["pixels_BNP"], pixels) and torch.equal(after["scores_BN"], scores)
    real = inputs["text_BL"][0, 1]  # the same done to a real token moves everything, or the test could not fail
    model.text_encoder.token_embedding.weight[real] += torch.randn(32, generator=torch.Generator().manual_seed(0))
    moved, losses = model("reconstruct", **inputs), model("train", **inputs)
    assert all((losses[name] - before[name]).abs() > 1e-4 for name in ("itc", "ic", "mim"))
    assert (moved["pixels_BNP"] - pixels).abs().max() > 1e-3 and (moved["scores_BN"] - scores).abs().max() > 1e-3
    assert (model("text_features", text_BL=inputs["text_BL"]) - features).abs().max() > 1e-3


@torch.no_grad()
def test_text_cls_sees_every_real_token_and_itself() -> None:
    model, text = small_model(), random_inputs()["text_BL"]
    before = model("text_features", text_BL=text)
    for place in range(1, 4):
        changed = text.clone()
        changed[1, place] = 3 + (changed[1, place] + 1) % 40
        after = model("text_features", text_BL=changed)
        assert (after[1] - before[1]).abs().max() > 1e-4 and torch.equal(after[[0, 2, 3]], before[[0, 2, 3]])
    model.text_encoder.cls_embedding *= -2.0
    assert (model("text_features", text_BL=text) - before).abs().amax(dim=1).min() > 1e-4


@torch.no_grad()
def test_random_masks_of_captioning_and_of_tg_mim_are_independent() -> None:
    model, kept = small_model(mask_by="random"), []
    model.image_encoder.register_forward_pre_hook(lambda module, args: kept.append(args[1] if len(args) > 1 else None))
    inputs = random_inputs(64, (5,) * 64)
    model("train", **inputs)
    for_caption, for_mim = kept[1].chunk(2)
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(for_caption, for_mim, strict=True)]
    # 8 of 16 each: 4 in common on average, 1.03 of deviation a sample
    assert len(shared) == 64 and abs(sum(shared) / 64 - 4) < 5 * 1.03 / 8


def test_places_of_labels_may_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the model looks for none."""
    model, inputs = small_model(), random_inputs()
    places, found = label_places(inputs["text_BL"], 2), model("train", **inputs)
    monkeypatch.setattr(sycoca, "label_places", None)
    given = model("train", **inputs, label_at_M=places)
    assert all(torch.equal(given[name], found[name]) for name in found)


def test_pixels_may_come_as_bytes() -> None:
    model = small_model()
    image = torch.randint(0, 256, (4, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = random_inputs()
    found = [model("train", **{**inputs, "image_BCHW": x}) for x in (image, normalise(image))]
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_a_model_cannot_do_is_refused_in_words() -> None:
    inputs = random_inputs()
    with pytest.raises(ValueError, match="'generate': a model of family clip"):
        small_model("clip")("generate", image_BCHW=inputs["image_BCHW"], steps=3)
    for model in (small_model("coca"), small_model(mim="none")):
        with pytest.raises(ValueError, match="'reconstruct': a model of family (coca|sycoca) with masking.mim = "):
            model("reconstruct", **inputs)
    del inputs["key_B"]
    with pytest.raises(ValueError, match="random masks need key_B"):
        small_model(mask_by="random")("train", **inputs)


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "width"), [("cls", 32), ("mean", 32), ("attention", 24)])
def test_image_outputs_are_what_is_projected(pooling: str, width: int) -> None:
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    model = SyCoCa(dataclasses.replace(SMALL_MODEL, image=image), seed=1).eval()
    pixels = random_inputs()["image_BCHW"]
    out_BD = model("image_outputs", image_BCHW=pixels)
    assert out_BD.shape == (4, width)
    expected = F.normalize(out_BD @ model.image_encoder.proj.weight.T, dim=-1)
    assert torch.allclose(model("image_features", image_BCHW=pixels), expected, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "attention"])
@pytest.mark.parametrize("mask_at", ["input", "embedding"])
def test_the_training_losses_equal_a_slow_reference(mask_at: str, pooling: str) -> None:
    """One sample at a time, one patch at a time, every mask by sorting Python lists. With attention pooling a patch's vector for
    the scores is what the pooling gives for it alone; the text decoder reads queries, the image decoder patches."""
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    model = SyCoCa(dataclasses.replace(SMALL_MODEL, image=image, masking=MaskingConfig(mask_at=mask_at)), seed=1).eval()
    inputs, encoder = random_inputs(), model.image_encoder
    images, texts = [], []
    nll, tokens, l1 = 0.0, 0, []
    for image, text in zip(inputs["image_BCHW"], inputs["text_BL"], strict=True):
        text = text[text != 0][None]
        patches = patchify(image[None], 6)
        whole = encoder(patches)
        cls, patch_out = encoder.read(whole)
        text_cls, token_out = model.text_encoder(text)
        images.append(F.normalize(model.image_encoder.proj(cls), dim=-1))
        texts.append(F.normalize(model.text_encoder.proj(model.text_encoder.ln_final(text_cls)), dim=-1))
        if pooling == "attention":  # one query, any, on a sequence of one
            patch_out = torch.stack([encoder.ln_post(encoder.pool(whole[:, n : n + 1]))[0, :1] for n in range(1, 17)], dim=1)
        patch_E = F.normalize(encoder.proj(patch_out[0]), dim=-1)
        token_E = F.normalize(model.text_encoder.proj(model.text_encoder.ln_final(token_out[0])), dim=-1)
        scores = [max(float(p @ t) for t in token_E) for p in patch_E]
        ranked = sorted(range(16), key=lambda i: (-scores[i], i))
        high, low = set(ranked[:8]), set(sorted(range(16), key=lambda i: (scores[i], i))[:8])
        sees = [torch.tensor([[i for i in range(16) if i not in hidden]]) for hidden in (low, high)]
        kept = [encoder(patches[:, keep[0]], keep) if mask_at == "input" else whole[:, [0, *(keep[0] + 1)]] for keep in sees]
        logits = model.text_decoder(token_out, encoder.read(kept[0])[1])[0]
        for t in range(text.shape[1] - 1):
            nll -= float(F.log_softmax(logits[t], dim=-1)[text[0, t + 1]])
            tokens += 1
        visible = (encoder.ln_post if pooling == "cls" else encoder.pool.ln_other)(kept[1][:, 1:])
        pixels = model.image_decoder(visible, sees[1], token_out, torch.ones_like(text, dtype=torch.bool))[0]
        l1 += [float((pixels[i] - patches[0, i]).abs().mean()) for i in high]
    logits = torch.cat(images) @ torch.cat(texts).T / 0.07
    target = torch.arange(4)
    itc = float((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2)
    out = model("train", **inputs)
    expected = {"itc": itc, "ic": nll / tokens, "mim": sum(l1) / len(l1)}
    for name, value in expected.items():
        assert out[name].item() == pytest.approx(value, rel=2e-5), name
    assert out["loss"].item() == pytest.approx(itc + 2 * expected["ic"] + expected["mim"], rel=2e-5)


@torch.no_grad()
def test_global_scores_compare_patches_with_the_captions_vector() -> None:
    model, inputs = small_model(similarity="global"), random_inputs()
    scores = model("reconstruct", **inputs)["scores_BN"]
    text_BE = model("text_features", text_BL=inputs["text_BL"])
    patch_BNE = F.normalize(model.image_encoder.proj(image_tokens(model, patchify(inputs["image_BCHW"], 6))), dim=-1)
    for b in range(4):
        torch.testing.assert_close(scores[b], patch_BNE[b] @ text_BE[b])


@torch.no_grad()
def test_hidden_patches_reach_neither_captioning_nor_the_rebuilding_input() -> None:
    """`mask_at = input`: a change of a hidden patch must not move any output computed without it."""
    model, inputs = small_model(), random_inputs()
    out = model("reconstruct", **inputs)
    hidden = out["hidden_BN"]
    noisy = patchify(inputs["image_BCHW"], 6).masked_fill(hidden[..., None], 9.0)
    keep = torch.stack([torch.nonzero(~row).squeeze(1) for row in hidden])
    valid = inputs["text_BL"] != 0
    tokens = model.text_encoder(inputs["text_BL"])[1]
    rebuilt = model.image_decoder(image_tokens(model, noisy, keep), keep, tokens, valid)
    torch.testing.assert_close(rebuilt, out["pixels_BNP"], rtol=1e-5, atol=1e-6)
    visible = patchify(inputs["image_BCHW"], 6).masked_fill(~hidden[..., None], 9.0)
    other = model.image_decoder(image_tokens(model, visible, keep), keep, tokens, valid)
    assert (other - out["pixels_BNP"]).abs().max() > 1e-3, "visible patches must matter"
    guided = model("reconstruct", **inputs, guide_BL=inputs["text_BL"].roll(1, dims=0))
    assert torch.equal(guided["hidden_BN"], hidden)
    assert (guided["pixels_BNP"] - out["pixels_BNP"]).abs().max() > 1e-3, "the caption must matter"


@torch.no_grad()
@pytest.mark.parametrize("target", ["pixels", "normalised_pixels"])
def test_two_guides_at_once_are_each_alone(target: str) -> None:
    model, inputs = small_model(target=target), random_inputs()
    guides = (inputs["text_BL"], random_inputs(seed=1)["text_BL"])
    both = model("reconstruct", **inputs, guide_BL=torch.cat(guides))
    for number, guide_BL in enumerate(guides):
        alone = model("reconstruct", **inputs, guide_BL=guide_BL)
        for name in ("pixels_BNP", "l1_B"):
            torch.testing.assert_close(both[name].chunk(2)[number], alone[name])
        for name in ("hidden_BN", "target_BNP", "scores_BN"):
            assert torch.equal(both[name], alone[name])


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_hidden_patches_do_not_reach_the_captioning_loss(ratio: float) -> None:
    """Random masks depend on the sample's key alone, so pixels can change without changing the mask: what captioning does not see
    must not move its loss, what it sees must."""
    model, inputs = small_model(mask_by="random", low_ratio=ratio), random_inputs()
    hidden_BN = split_patches(random_scores(inputs["key_B"], 16, salt=1), ratio, "lowest")[1]
    assert (hidden_BN.sum(dim=1) == 16 * ratio).all()
    before = model("train", **inputs)["ic"]

    def repainted(where_BN: torch.Tensor) -> torch.Tensor:
        patches = patchify(inputs["image_BCHW"], 6)
        return unpatchify(torch.where(where_BN[..., None], patches.flip(2) + 3.0, patches), 6)

    assert torch.equal(model("train", **{**inputs, "image_BCHW": repainted(hidden_BN)})["ic"], before)
    for n in range(4):
        one = torch.zeros_like(hidden_BN)
        one[n, torch.nonzero(~hidden_BN[n])[0]] = True
        assert (model("train", **{**inputs, "image_BCHW": repainted(one)})["ic"] - before).abs() > 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "masking, batches",
    [
        ({}, [4, 8]),
        ({"low_ratio": 0.25, "high_ratio": 0.75}, [4, 4, 4]),
        ({"mim": "none"}, [4, 4]),
        ({"low_ratio": 0.0}, [4, 4]),
        ({"mask_at": "embedding"}, [4]),
    ],
)
def test_masked_passes_of_one_size_are_one_batch(masking: dict, batches: list[int]) -> None:
    """Images in each call of the image encoder in a training step."""
    model, calls = small_model(**masking), []
    model.image_encoder.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    model("train", **random_inputs())
    assert calls == batches


@torch.no_grad()
@pytest.mark.parametrize("pooling", ["cls", "attention"])
def test_no_mask_of_tokens_by_tokens_is_ever_made(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused kernels take a causal flag or a mask of keys; a (L, L) mask would lose them. Captions stand without padding: [CLS] is
    the last of a causal text, and pads are left to be hidden among the keys of the image decoder alone."""
    seen, plain = [], F.scaled_dot_product_attention

    def watched(q, k, v, attn_mask=None, is_causal=False, **more):
        seen.append((None if attn_mask is None else tuple(attn_mask.shape), is_causal))
        return plain(q, k, v, attn_mask=attn_mask, is_causal=is_causal, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=9, pooling_heads=4)
    model = SyCoCa(dataclasses.replace(SMALL_MODEL, image=image), seed=1)
    model("train", **random_inputs())
    # (image encoder 2 + 2, pooling twice), text encoder 2 causal, text decoder 2 causal + 2, image decoder 2 + 2
    assert seen.count((None, True)) == 4 and seen.count(((4, 1, 1, 12), False)) == 2
    assert seen.count((None, False)) == 8 + 2 * (pooling == "attention") and len(seen) == 14 + 2 * (pooling == "attention")


@torch.no_grad()
def test_greedy_generation_is_the_argmax_of_the_training_logits() -> None:
    """Each generated token against the decoder run on the whole prefix of one caption alone; pads after [EOT]."""
    model, image = small_model(), random_inputs()["image_BCHW"]
    model.text_decoder.head.weight[2] *= 4  # make [EOT] likely enough to be seen
    ids = model("generate", image_BCHW=image, steps=11)
    assert ids.shape == (4, 11)
    ended = 0
    for row, picture in zip(ids, image, strict=True):
        seen, prefix = image_tokens(model, patchify(picture[None], 6)), [1]
        for token in row.tolist():
            if prefix[-1] in (0, 2):
                assert token == 0
                ended += 1
            else:
                logits = model.text_decoder(model.text_encoder(torch.tensor([prefix]))[1], seen)[0, -1]
                logits[[0, 1]] = float("-inf")
                assert token == logits.argmax().item()
            prefix.append(token)
    assert torch.equal(ids[:2], model("generate", image_BCHW=image[:2], steps=11)), "the batch must not matter"


@pytest.mark.parametrize(
    "change, field",
    [
        ({"image": dataclasses.replace(SMALL_MODEL.image, patch_size=5)}, "model.image.patch-size = 5"),
        ({"image": dataclasses.replace(SMALL_MODEL.image, heads=3)}, "model.image.heads = 3"),
        ({"text_decoder": dataclasses.replace(SMALL_MODEL.text_decoder, width=64)}, "model.text-decoder.width = 64"),
        ({"masking": dataclasses.replace(SMALL_MODEL.masking, high_ratio=0.0)}, "model.masking.high-ratio = 0.0"),
        ({"masking": dataclasses.replace(SMALL_MODEL.masking, low_ratio=1.0)}, "model.masking.low-ratio = 1.0"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused_by_name(change: dict, field: str) -> None:
    with pytest.raises(UserError, match="expected|divide") as caught:
        check_model(dataclasses.replace(SMALL_MODEL, **change))
    assert field in str(caught.value)

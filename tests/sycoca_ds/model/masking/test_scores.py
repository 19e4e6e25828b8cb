"""Each kind of score against a loop over pictures, tokens and patches."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch
import torch.nn.functional as F

from sycoca_ds.config import MaskingConfig
from sycoca_ds.model.masking.scores import (
    best_match,
    centred_over_patches,
    centred_over_pictures,
    counted_tokens,
    mean_match,
    mean_of_others,
    products,
    saliency,
)
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs

B, L, N, E = 3, 7, 10, 5
LEFT_OUT = (1, 2, 7, 30)
CLOSE = {"rel": 1e-5, "abs": 1e-6}


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(B, L, E, requires_grad=True), torch.randn(B, N, E, requires_grad=True)


COUNTED = torch.tensor([[1] * 7, [1] * 2 + [0] * 5, [0] * 2 + [1] + [0] * 3 + [1]], dtype=torch.bool)


@torch.no_grad()
def loop(token: torch.Tensor, patch: torch.Tensor, offset, reduce) -> torch.Tensor:
    """`reduce` over the tokens that count of <token, patch> - offset(b, j)."""
    found = torch.zeros(B, N)
    for b in range(B):
        for i in range(N):
            own = [float(patch[b, i] @ token[b, j]) - offset(b, j) for j in range(L) if COUNTED[b, j]]
            found[b, i] = reduce(own)
    return found


def test_products_and_their_best_and_mean_match(features) -> None:
    token, patch = features
    score = products(token, patch)
    assert not score.requires_grad, "no gradient flows through the scores"
    for name, reduce in {"best": max, "mean": lambda own: sum(own) / len(own)}.items():
        found = (best_match if name == "best" else mean_match)(score, COUNTED)
        torch.testing.assert_close(found, loop(token, patch, lambda b, j: 0.0, reduce))


def test_centred_over_patches(features) -> None:
    token, patch = features
    found = best_match(centred_over_patches(products(token, patch)), COUNTED)
    expected = loop(token, patch, lambda b, j: sum(float(p @ token[b, j]) for p in patch[b]) / N, max)
    torch.testing.assert_close(found, expected)


def test_centred_over_pictures_takes_off_what_a_token_matches_elsewhere(features) -> None:
    token, patch = features
    own = patch.sum(dim=1)
    found = best_match(centred_over_pictures(products(token, patch), token, mean_of_others(own, own.sum(dim=0), B, N)), COUNTED)

    def elsewhere(b: int, j: int) -> float:
        others = [float(patch[o, i] @ token[b, j]) for o in range(B) if o != b for i in range(N)]
        return sum(others) / len(others)

    expected = loop(token, patch, elsewhere, max)
    torch.testing.assert_close(found, expected)
    assert torch.equal(mean_of_others(own[:1], own[0], 1, N), torch.zeros(1, E)), "a picture alone has no other ones"


def test_a_hub_wins_every_maximum_until_other_pictures_are_taken_off() -> None:
    """Token 0 lies close to all patches of all pictures, token 1 to patch 3 of the first picture alone."""
    patch = torch.zeros(2, 6, 3)
    patch[:, :, 0] = 1.0
    patch[0, 3, 1] = 0.6
    patch, token = F.normalize(patch, dim=2), torch.eye(3)[None, :2].expand(2, -1, -1)
    score, both = products(token, patch), torch.ones(2, 2, dtype=torch.bool)
    assert best_match(score, both)[0].argmin() == 3, "it is the patch that is least like the hub"
    own = patch.sum(dim=1)
    without_hub = centred_over_pictures(score, token, mean_of_others(own, own.sum(dim=0), 2, 6))
    assert best_match(without_hub, both)[0].argmax() == 3


def test_saliency_is_the_distance_from_the_mean_patch(features) -> None:
    patch = features[1].detach()
    found = saliency(patch)
    for b in range(B):
        mean = [sum(float(p[e]) for p in patch[b]) / N for e in range(E)]
        for i in range(N):
            distance = sum((float(patch[b, i, e]) - mean[e]) ** 2 for e in range(E)) ** 0.5
            assert found[b, i].item() == pytest.approx(distance, **CLOSE)


def test_tokens_that_count() -> None:
    text = torch.tensor([[1, 5, 7, 9, 2, 0], [1, 7, 30, 2, 0, 0], [1, 2, 0, 0, 0, 0]])
    left_out = torch.zeros(50, dtype=torch.bool)
    left_out[list(LEFT_OUT)] = True
    real = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    found = counted_tokens(text, real, left_out).int().tolist()
    assert found[0] == [0, 1, 0, 1, 0, 0]
    assert found[1:] == real[1:].int().tolist(), "a caption of nothing else counts whole"


# ---- put together by the model ------------------------------------------------------------------------------------------------


def model(**changes) -> SyCoCa:
    """A small one whose [CLS], image and text, and words can be chosen."""
    masking = MaskingConfig(**{name: value for name, value in changes.items() if name not in ("pooling", "text_pooling")})
    image = dataclasses.replace(SMALL_MODEL.image, pooling=changes.get("pooling", "cls"), pooling_queries=9, pooling_heads=4)
    text = dataclasses.replace(SMALL_MODEL.text, pooling=changes.get("text_pooling", "cls"))
    return SyCoCa(dataclasses.replace(SMALL_MODEL, image=image, text=text, masking=masking), seed=1).eval()


def scores(built: SyCoCa, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return built("masking_scores", image_BCHW=inputs["image_BCHW"], text_CBL=inputs["text_BL"][None])[:, 0]


@torch.no_grad()
def tokens(built: SyCoCa, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return built("token_scores", image_BCHW=inputs["image_BCHW"], text_CBL=inputs["text_BL"][None])["token_BCLN"][:, 0]


SIMILARITIES = typing.get_args(typing.get_type_hints(MaskingConfig)["similarity"])


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_several_captions_of_a_picture_are_each_alone(similarity: str) -> None:
    """Though every encoder runs once for all of them."""
    built, inputs = model(similarity=similarity), random_inputs(lengths=(9, 5, 8, 3))
    text_CBL = torch.stack([inputs["text_BL"], random_inputs(seed=1)["text_BL"], inputs["text_BL"].flip(0)])
    asked = {"image_BCHW": inputs["image_BCHW"], "text_CBL": text_CBL}
    alone = [{**inputs, "text_BL": text_BL} for text_BL in text_CBL]
    runs: list[str] = []
    for name in ("image_encoder", "text_encoder"):
        getattr(built, name).register_forward_hook(lambda *_, name=name: runs.append(name))
    with torch.no_grad():
        torch.testing.assert_close(built("masking_scores", **asked), torch.stack([scores(built, them) for them in alone], dim=1))
        if similarity not in ("saliency", "global"):
            runs.clear()
            found = built("token_scores", **asked)
            assert runs == ["image_encoder", "text_encoder"]
            torch.testing.assert_close(found["token_BCLN"], torch.stack([tokens(built, them) for them in alone], dim=1))
            torch.testing.assert_close(found["score_BCN"], built("masking_scores", **asked))


def test_pictures_in_parts_are_centred_over_all_of_them() -> None:
    """Which ones a call happens to hold is then without effect; without `others` it is not."""
    built, inputs = model(similarity="centred_over_pictures"), random_inputs()
    with torch.no_grad():
        sum_BE = built("patch_sums", image_BCHW=inputs["image_BCHW"])
        patch_BNE = built.image_encoder.project_patches(built.image_encoder(built._patches(inputs["image_BCHW"])))
        torch.testing.assert_close(sum_BE, sum(patch_BNE.unbind(1)))
        others, whole = (sum_BE.sum(dim=0), len(sum_BE)), scores(built, inputs)
        for task in ("masking_scores", "token_scores", "reconstruct"):
            for number in range(4):
                image, text = inputs["image_BCHW"][number : number + 1], inputs["text_BL"][number : number + 1]
                given = {"image_BCHW": image, "key_B": inputs["key_B"][:1], "text_BL": text}
                given = given if task == "reconstruct" else {"image_BCHW": image, "text_CBL": text[None]}
                found, alone = built(task, **given, others=others), built(task, **given)
                if isinstance(found, dict):
                    name = "scores_BN" if task == "reconstruct" else "score_BCN"
                    found, alone = found[name], alone[name]
                torch.testing.assert_close(found.flatten(), whole[number])
                assert not torch.allclose(alone.flatten(), whole[number], atol=1e-4)


@pytest.mark.parametrize("words", ["all", "content"])
@pytest.mark.parametrize("similarity", ["token_max", "centred_over_pictures", "cross_attention", "value_path", "centred_token_max"])
def test_a_captions_scores_are_the_best_or_mean_of_its_tokens(similarity: str, words: str) -> None:
    """Pads, and with `content` the tokens that say nothing, count for none."""
    built, inputs = model(similarity=similarity, words=words, left_out_ids=LEFT_OUT), random_inputs()
    by_token, found = tokens(built, inputs), scores(built, inputs)
    assert found.isfinite().all() and found.std(dim=1).min() > 0
    for b, ids in enumerate(inputs["text_BL"].tolist()):
        real = ids[: ids.index(2) + 1]
        counted = [j for j, number in enumerate(real) if words == "all" or number not in LEFT_OUT]
        for i in range(found.shape[1]):
            own = [by_token[b, j, i].item() for j in counted]
            expected = sum(own) / len(own) if similarity == "cross_attention" else max(own)
            assert found[b, i].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "change",
    [{"similarity": name} for name in ("centred_over_pictures", "cross_attention", "value_path", "saliency", "global")]
    + [{"pooling": "mean"}, {"text_pooling": "mean"}, {"pooling": "attention", "similarity": "value_path"}],
    ids=str,
)
def test_padding_changes_no_score(change: dict) -> None:
    built, inputs = model(**change, words="content", left_out_ids=LEFT_OUT), random_inputs(lengths=(9, 5, 8, 3))
    shorter = {**inputs, "text_BL": inputs["text_BL"][:, :9]}
    torch.testing.assert_close(scores(built, shorter), scores(built, inputs))
    assert scores(built, inputs).std(dim=1).min() > 1e-6


def test_saliency_knows_no_caption_and_the_others_do() -> None:
    inputs = random_inputs()
    other = {**inputs, "text_BL": inputs["text_BL"].flip(0)}
    for similarity in ("token_max", "centred_over_pictures", "cross_attention", "value_path", "global", "saliency"):
        built = model(similarity=similarity)
        same = torch.equal(scores(built, inputs), scores(built, other))
        assert same == (similarity == "saliency"), similarity


def test_cross_attention_is_where_the_decoder_looks_when_it_says_the_caption() -> None:
    """The decoder's blocks one by one, their attention from its own projections; token j + 1 is said at place j."""
    built, inputs = model(similarity="cross_attention"), random_inputs()
    with torch.no_grad():
        found = tokens(built, inputs)
        assert torch.equal(found[:, 0], torch.zeros_like(found[:, 0]))
        torch.testing.assert_close(found[:, 1:].sum(dim=2), torch.ones(4, 11))
        image = built.image_encoder.read(built.image_encoder(built._patches(inputs["image_BCHW"])))[1]
        x, decoder, layers = built.text_encoder(inputs["text_BL"])[1][:, :-1], built.text_decoder, []
        for self_block, cross_block in zip(decoder.self_blocks, decoder.cross_blocks, strict=True):
            x = self_block(x)
            attention, normed = cross_block.attention, cross_block.ln_1(x)
            k = attention.kv(cross_block.ln_other(image)).chunk(2, dim=2)[0]
            heads = [
                (q_part @ k_part.transpose(1, 2) / q_part.shape[2] ** 0.5).softmax(dim=2)
                for q_part, k_part in zip(
                    attention.q(normed).chunk(attention.heads, dim=2), k.chunk(attention.heads, dim=2), strict=True
                )
            ]
            layers.append(sum(heads) / len(heads))
            x = cross_block(x, image)
    torch.testing.assert_close(found[:, 1:], sum(layers) / len(layers))


def test_the_value_path_is_what_a_cls_reads_that_sees_one_patch_or_token_alone() -> None:
    """The last block over [CLS] and one patch, with [CLS] made blind to itself."""
    built, inputs = model(similarity="value_path"), random_inputs()
    image, text = built.image_encoder, built.text_encoder

    def alone(block, cls_BD: torch.Tensor, one_BD: torch.Tensor) -> torch.Tensor:
        value = block.attention.qkv(block.ln_1(one_BD)).chunk(3, dim=1)[2]
        x = cls_BD + block.attention.out(value)
        return x + block.mlp(block.ln_2(x))

    with torch.no_grad():
        found = tokens(built, inputs)
        kept: dict[str, torch.Tensor] = {}
        for name, part in (("image", image), ("text", text)):
            part.blocks[-1].register_forward_pre_hook(lambda _, given, name=name: kept.__setitem__(name, given[0]))
        image(built._patches(inputs["image_BCHW"]))
        text(inputs["text_BL"])
        for i in range(16):
            patch = alone(image.blocks[-1], kept["image"][:, 0], kept["image"][:, 1 + i])
            patch = F.normalize(image.proj(image.ln_post(patch)), dim=1)
            for j in range(12):
                token = alone(text.blocks[-1], kept["text"][:, -1], kept["text"][:, j])
                token = F.normalize(text.proj(text.ln_final(token)), dim=1)
                torch.testing.assert_close(found[:, j, i], (patch * token).sum(dim=1))


def test_the_mean_is_the_global_vector() -> None:
    """The products of a picture's patches and a caption's tokens then add up to what the contrast compares."""
    built, inputs = model(pooling="mean", text_pooling="mean"), random_inputs()
    assert built.text_encoder.cls_embedding is None
    with torch.no_grad():
        image, text = (
            built(f"{name}_features", **{key: inputs[key]}) for name, key in (("image", "image_BCHW"), ("text", "text_BL"))
        )
        patch = built.image_encoder.ln_post(built.image_encoder(built._patches(inputs["image_BCHW"])))[:, 1:]
        token = built.text_encoder.ln_final(built.text_encoder(inputs["text_BL"])[1])
        for b, ids in enumerate(inputs["text_BL"].tolist()):
            real = ids.index(2) + 1
            torch.testing.assert_close(image[b], F.normalize(built.image_encoder.proj(patch[b].mean(dim=0)), dim=0))
            torch.testing.assert_close(text[b], F.normalize(built.text_encoder.proj(token[b, :real].mean(dim=0)), dim=0))


def test_with_mean_pooling_the_contrast_reaches_every_patch_and_token() -> None:
    """With [CLS] pooling the last block's patch outputs get none of its gradient."""
    for pooling, reached in (("cls", False), ("mean", True)):
        built, inputs = model(pooling=pooling, text_pooling=pooling), random_inputs()
        kept = []
        built.image_encoder.blocks[-1].register_forward_hook(lambda _, given, out, kept=kept: out.retain_grad() or kept.append(out))
        out = built("features", image_BCHW=inputs["image_BCHW"], text_BL=inputs["text_BL"])
        (out["image_BE"] @ out["text_BE"].T).trace().backward()
        assert (kept[0].grad[:, 1:].abs().amax(dim=2) > 0).all() == reached, pooling


def test_scores_without_tokens_are_refused_by_name() -> None:
    inputs = random_inputs()
    for similarity in ("saliency", "global"):
        with pytest.raises(ValueError, match=f"'{similarity}' has no scores of single tokens"):
            tokens(model(similarity=similarity), inputs)


def test_words_to_leave_out_have_to_be_known() -> None:
    with pytest.raises(ValueError, match="left_out_ids is open"):
        model(words="content")

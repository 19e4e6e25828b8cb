"""Answers of a model with fusion: against a slow reading without cache, batch or padding."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sycoca_ds.config import MaskingConfig
from sycoca_ds.model import answering
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.slow_generation import images
from tests.worlds.models.small_model import SMALL_MODEL

SOT, EOT = 1, 2
QUESTIONS = [(5, 6, 7), (9,), (30, 31, 32, 33, 34, 35, 36, 37, 38, 39), (7, 6, 5)]
ANSWERS = [(5, 6), (), (5,), (40, 41, 42), (8,), (5, 6, 6), (11, 12)]
"""Beginnings of one another, the empty one, and some that share their first token."""


def rows(texts: list[tuple[int, ...]], length: int = 12) -> torch.Tensor:
    return torch.tensor([[SOT, *text, EOT, *[0] * (length - 2 - len(text))] for text in texts])


def model_of(pooling: str = "cls") -> SyCoCa:
    """With weights so large that picture, question and answer all matter."""
    image = dataclasses.replace(SMALL_MODEL.image, pooling=pooling, pooling_queries=5, pooling_heads=4)
    text = dataclasses.replace(SMALL_MODEL.text, pooling="mean" if pooling == "mean" else "cls")
    config = dataclasses.replace(
        SMALL_MODEL, family="coca", fusion=True, image=image, text=text, masking=MaskingConfig(), init_std=0.3
    )
    return SyCoCa(config, seed=3).eval()


@torch.no_grad()
def read_slowly(model: SyCoCa, image_CHW: torch.Tensor, question: tuple[int, ...]) -> torch.Tensor:
    """One question with its picture, block by block, each token attending to those before it: (1, S, D)."""
    seen = model.image_encoder.read(model.image_encoder(patchify(image_CHW[None], 6)))[1]
    encoder, ids = model.text_encoder, torch.tensor([SOT, *question, EOT])
    x = encoder.token_embedding(ids) + encoder.position_embedding[: len(ids)]
    if encoder.cls_embedding is not None:
        x = torch.cat([x, (encoder.cls_embedding + encoder.position_embedding[-1])[None]])
    for block, cross in zip(encoder.blocks, model.fusion.blocks, strict=True):
        normed = block.ln_1(x)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(0, 1) for part in block.attention.qkv(normed).chunk(3, dim=-1))
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(len(x), len(x), dtype=torch.bool).tril(), float("-inf"))
        x = x + block.attention.out((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
        x = x + block.mlp(block.ln_2(x))
        x = cross(x[None], seen)[0]
    return model.fusion.out(model.fusion.ln_final(x))[None]


@torch.no_grad()
def likelihood_slowly(model: SyCoCa, seen: torch.Tensor, answer: tuple[int, ...]) -> float:
    """Token by token, the whole prefix anew each time."""
    total, said = 0.0, [SOT]
    for token in (*answer, EOT):
        prefix = model.text_encoder(torch.tensor([said]))[1]
        total += model.text_decoder(prefix, seen)[0, -1].double().log_softmax(0)[token].item()
        said.append(token)
    return total


def table(model: SyCoCa, picture: torch.Tensor, of: list[int]) -> torch.Tensor:
    """(Q, C) by the slow way."""
    seen = [read_slowly(model, picture[image], question) for image, question in zip(of, QUESTIONS, strict=True)]
    return torch.tensor([[likelihood_slowly(model, one, answer) for answer in ANSWERS] for one in seen])


@pytest.mark.parametrize("pooling", ["cls", "mean", "attention"])
def test_likelihoods_equal_a_slow_reading(pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, picture, of = model_of(pooling), images(2), [1, 0, 0, 1]
    expected = table(model, picture, of)
    assert expected.std(dim=0).min() > 0.05 and expected.std(dim=1).min() > 0.5, "both question and answer matter"
    ask = {"image_BCHW": picture, "text_QL": rows(QUESTIONS), "answer_CL": rows(ANSWERS), "image_of_Q": torch.tensor(of)}
    monkeypatch.setattr(answering, "PAIRS_AT_ONCE", 5)
    with torch.no_grad():
        found = model("rank_answers", keep=len(ANSWERS), **ask)
        other = model("rank_answers", keep=len(ANSWERS), **ask | {"image_of_Q": 1 - torch.tensor(of)})
    torch.testing.assert_close(found["likelihood_QK"], expected, rtol=0, atol=2e-3)
    assert found["candidate_QK"].tolist() == [list(range(len(ANSWERS)))] * 4
    assert (other["likelihood_QK"] - expected).abs().mean() > 0.05, "the picture matters"


@torch.no_grad()
def test_the_first_token_chooses_which_candidates_are_read_to_their_end() -> None:
    """Equal first tokens in the order of the list; what is read is what it is among all."""
    model, picture = model_of(), images(4)
    ask = {"image_BCHW": picture, "text_QL": rows(QUESTIONS), "answer_CL": rows(ANSWERS)}
    whole = model("rank_answers", keep=len(ANSWERS), **ask)["likelihood_QK"]
    for keep in (1, 3, len(ANSWERS) - 1):
        found = model("rank_answers", keep=keep, **ask)
        for row, question in enumerate(QUESTIONS):
            seen = read_slowly(model, picture[row], question)
            first = model.text_decoder(model.text_encoder(torch.tensor([[SOT]]))[1], seen)[0, 0]
            order = sorted(range(len(ANSWERS)), key=lambda n: (-round(first[(*ANSWERS[n], EOT)[0]].item(), 3), n))
            assert found["candidate_QK"][row].tolist() == order[:keep]
            torch.testing.assert_close(found["likelihood_QK"][row], whole[row, order[:keep]], rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_beam_search_among_as_many_beams_as_candidates_finds_the_likeliest() -> None:
    model, picture = model_of(), images(4)
    listed = [(first, second) for first in range(10, 40, 5) for second in range(11, 41, 6)]
    ask = {"image_BCHW": picture, "text_QL": rows(QUESTIONS)}
    best = model("rank_answers", keep=len(listed), answer_CL=rows(listed), **ask)["likelihood_QK"].argmax(dim=1).tolist()
    choices = Choices.from_ids([(*answer, EOT) for answer in listed], EOT)
    decoding = Decoding(beams=len(listed))
    said = model("generate_answers", steps=choices.longest, choices=choices, decoding=decoding, **ask).tolist()
    assert [tuple(row[: row.index(EOT)]) for row in said] == [listed[number] for number in best] and len(set(best)) > 1
    greedy = model("generate_answers", steps=choices.longest, choices=choices, **ask).tolist()
    assert all(tuple(row[: row.index(EOT)]) in listed for row in greedy)


def test_the_loss_is_the_weighted_likelihood_of_the_answers_and_reaches_every_weight() -> None:
    """A weight that is not asked for anything has a gradient of zero, not none."""
    model, picture = model_of(), images(4)
    of, weight = torch.tensor([0, 0, 1, 2, 2, 2, 3]), torch.tensor([0.7, 0.3, 1.0, 0.5, 0.2, 0.3, 1.0])
    ask = {"image_BCHW": picture, "text_BL": rows(QUESTIONS), "answer_AL": rows(ANSWERS), "question_of_A": of, "weight_A": weight}
    told = model("train_answers", **ask)
    expected = -(table(model, picture, [0, 1, 2, 3])[of, torch.arange(7)] * weight).sum() / 4
    assert told["vqa"].item() == pytest.approx(expected.item(), rel=1e-4) and told["loss"].item() == pytest.approx(
        told["vqa"].item()
    )
    told["loss"].backward()
    none = [name for name, p in model.named_parameters() if p.grad is None]
    zero = {name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()}
    assert not none
    assert zero == {"logit_scale", "image_encoder.proj.weight", "text_encoder.proj.weight", "text_encoder.ln_final.weight"} | {
        "text_encoder.ln_final.bias"
    }


def test_a_model_without_fusion_says_so_and_one_with_it_starts_as_the_same_model() -> None:
    model = model_of()
    plain = SyCoCa(dataclasses.replace(model.config, fusion=False), seed=3)
    with pytest.raises(ValueError, match="fusion = False has no decoder for it"):
        plain("rank_answers")
    mine = model.state_dict()
    assert all(torch.equal(value, mine[name]) for name, value in plain.state_dict().items())

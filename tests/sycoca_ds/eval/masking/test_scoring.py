"""What a model is asked: the texts of the three conditions, and the tokens of each phrase."""

from __future__ import annotations

import math
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from sycoca_ds.config import MaskingConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.masking.scoring import WITHOUT_WORDS, Scorer
from sycoca_ds.eval.regions.patches import PatchPhrase, PictureRegions, Regions
from tests.worlds.models.small_model import random_inputs, small_model
from tests.worlds.trainings.eval_world import make_tokenizer

CAPTIONS = ["a red square and a blue ring", "green", "a small black cross", "two triangles"]
OTHER = [1, 0, 3, 2]
N = 4


def fake(task: str, image_BCHW: torch.Tensor, text_CBL: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """Masking scores are the sum of a caption's ids; a token's are place + 1000 picture + 0.1 patch."""
    number_B, score_BCN = image_BCHW[:, 0, 0, 0], text_CBL.sum(2).T[..., None].expand(-1, -1, N).float()
    if task == "masking_scores":
        return score_BCN
    place = torch.arange(text_CBL.shape[2]).float()
    token_BLN = place[None, :, None] + 1000 * number_B[:, None, None] + 0.1 * torch.arange(N)
    return {"score_BCN": score_BCN, "token_BCLN": token_BLN[:, None].expand(-1, len(text_CBL), -1, -1)}


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer(make_tokenizer(tmp_path / "tokenizer.json"))


@pytest.fixture
def regions() -> Regions:
    def picture(*places: tuple[int, ...]) -> PictureRegions:
        region = np.array([True, False, False, False])
        return PictureRegions(np.zeros(N, np.int8), tuple(PatchPhrase(region, them) for them in places))

    return Regions("x", (picture((2, 3), (6, 7)), None, picture((1, 4), (2,), (3,)), picture((5,))), {})


def numbers_of(rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows).float()[:, None, None, None].expand(-1, 3, 2, 2)


def test_scores_of_the_three_conditions_and_of_each_phrases_tokens(tokenizer: Tokenizer, regions: Regions) -> None:
    def encode(captions: list[str]) -> torch.Tensor:
        return torch.from_numpy(tokenizer.encode(captions, 40))

    scorer = Scorer(CAPTIONS, OTHER, regions, encode, tokenizer.eot_id)
    rows = [2, 0, 1]
    found = scorer(fake, rows, numbers_of(rows))
    assert found.shape == (3, 3, 1 + 3, N)
    for row, number in enumerate(rows):
        own, other, none = (encode([text])[0] for text in (CAPTIONS[number], CAPTIONS[OTHER[number]], ""))
        assert found[row, :, 0, 0].tolist() == [own.sum().item(), other.sum().item(), none.sum().item()]
    best = found[:, :, 1:, 0]
    assert torch.equal(best[0, 0], torch.tensor([2004.0, 2002.0, 2003.0])), "each phrase's own tokens, its best one"
    assert torch.equal(best[0, 1], torch.tensor([2005.0, 2005.0, 2005.0])), "the other caption's only phrase"
    assert torch.equal(best[0, 2], torch.tensor([2001.0] * 3)), "[SOT] and [EOT]"
    assert torch.equal(best[1, 0, :2], torch.tensor([3.0, 7.0])) and best[1, :, 2].isnan().all()
    end = int((encode([CAPTIONS[1]])[0] == 2).nonzero())
    assert torch.equal(best[1, 1, :2], torch.tensor([end - 1.0] * 2)), "no phrase is known: all words, without [EOT]"
    assert best[2].isnan().all(), "a picture without regions"
    assert torch.allclose(found[0, 0, 1:, 3] - found[0, 0, 1:, 0], torch.tensor(0.3), atol=1e-3)
    assert scorer(fake, rows, numbers_of(rows), by_token=False).shape == (3, 3, 1, N)
    assert Scorer(CAPTIONS, OTHER, None, encode, 2)(fake, rows, numbers_of(rows)).shape == (3, 3, 1, N)


def test_a_batch_is_its_pictures_one_by_one(tokenizer: Tokenizer, regions: Regions) -> None:
    """With a real model, whose captions are padded differently."""
    model, inputs = small_model(), random_inputs()

    def encode(captions: list[str]) -> torch.Tensor:
        ids = torch.from_numpy(tokenizer.encode(captions, 12))
        return torch.where(ids > 2, 3 + ids % 47, ids)  # into the small model's vocabulary

    short = Regions(
        "x",
        tuple(
            PictureRegions(np.zeros(16, np.int8), (PatchPhrase(np.arange(16) < 5, (1, 2)),)) if number != 1 else None
            for number in range(4)
        ),
        {},
    )
    scorer = Scorer(CAPTIONS, OTHER, short, encode, 2)
    with torch.no_grad():
        whole = scorer(model, range(4), inputs["image_BCHW"])
        each = [scorer(model, [number], inputs["image_BCHW"][number : number + 1]) for number in range(4)]
        text = encode([CAPTIONS[3]])
        tokens = model("token_scores", image_BCHW=inputs["image_BCHW"][3:], text_CBL=text[None])["token_BCLN"][:, 0]
        masks = model("masking_scores", image_BCHW=inputs["image_BCHW"][3:], text_CBL=text[None])
    assert torch.allclose(whole, torch.cat(each), atol=1e-5, equal_nan=True)
    assert torch.allclose(whole[3, 0, 1], tokens[0, [1, 2]].amax(0), atol=1e-5)
    assert torch.allclose(whole[3, 0, 0], masks[0, 0], atol=1e-5)


def test_the_model_knows_words_of_all_similarities_but_those_that_are_said_not_to() -> None:
    inputs = random_inputs()
    model = small_model()
    for similarity in typing.get_args(typing.get_type_hints(MaskingConfig)["similarity"]):
        ask = {"image_BCHW": inputs["image_BCHW"], "text_CBL": inputs["text_BL"][None], "similarity": similarity}
        if similarity in WITHOUT_WORDS:
            with pytest.raises(ValueError, match=similarity), torch.no_grad():
                model("token_scores", **ask)
        else:
            with torch.no_grad():
                assert model("token_scores", **ask)["token_BCLN"].shape == (4, 1, 12, 16)
    assert math.isfinite(model("masking_scores", image_BCHW=inputs["image_BCHW"], text_CBL=inputs["text_BL"][None]).sum().item())

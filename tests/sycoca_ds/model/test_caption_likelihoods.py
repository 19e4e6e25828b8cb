"""How likely a text is as a picture's caption: against the whole uncached model, token by token."""

from __future__ import annotations

import pytest
import torch

from sycoca_ds.model import decoders
from tests.worlds.models.slow_generation import EOT, KINDS, PAD, SOT, Slow, images, varied_model
from tests.worlds.models.small_model import small_model

TEXTS = [(5, 6, 7, EOT), (EOT,), (9, 9, 9, 9, 9, 9, 9, 9, 9, 9, EOT), (7, 6, 5, EOT), (30, 0, 4, EOT)]
"""The empty one, one that fills the context, one with id 0 inside, which CLIP's vocabulary calls "!"."""


def rows(texts: list[tuple[int, ...]], length: int = 12) -> torch.Tensor:
    return torch.tensor([[SOT, *text, *[PAD] * (length - 1 - len(text))] for text in texts])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_likelihoods_equal_a_sum_over_prefixes(kind: str) -> None:
    model, picture = varied_model(kind), images(3)
    texts = TEXTS[:-1] if kind == "open_clip" else TEXTS  # there a mask goes by pads, which id 0 is
    pairs = [(image, text) for image in range(3) for text in range(len(texts))]
    of = torch.tensor([image for image, _ in pairs])
    found = model(
        "caption_likelihoods", image_BCHW=picture, text_TL=rows([texts[text] for _, text in pairs]), image_of_T=of
    ).tolist()
    slow = [Slow(model, image) for image in picture]
    expected = [slow[image].score(texts[text]) for image, text in pairs]
    assert found == pytest.approx(expected, abs=1e-3)
    assert max(expected) < 0 and len({round(value, 2) for value in expected}) == len(expected)


@torch.no_grad()
def test_neither_company_nor_pieces_of_the_vocabulary_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    model, picture = varied_model(), images(2)
    ask = {"image_BCHW": picture, "text_TL": rows(TEXTS), "image_of_T": torch.tensor([1, 0, 0, 1, 1])}
    whole = model("caption_likelihoods", **ask)
    alone = [
        model("caption_likelihoods", image_BCHW=picture[of][None], text_TL=text[None], image_of_T=torch.tensor([0])).item()
        for of, text in zip(ask["image_of_T"], ask["text_TL"], strict=True)
    ]
    assert whole.tolist() == pytest.approx(alone, abs=1e-4)
    monkeypatch.setattr(decoders, "LOGITS_AT_ONCE", 150)  # three rows of logits
    with torch.inference_mode():
        assert model("caption_likelihoods", **ask).tolist() == pytest.approx(whole.tolist(), abs=1e-4)


@torch.no_grad()
def test_they_are_the_captioning_loss_apart() -> None:
    model, picture = small_model("coca"), images(4)
    text_BL = rows(TEXTS[:4])
    loss = model("train", image_BCHW=picture, text_BL=text_BL)["ic"]
    found = model("caption_likelihoods", image_BCHW=picture, text_TL=text_BL, image_of_T=torch.arange(4))
    assert -found.sum() / sum(map(len, TEXTS[:4])) == pytest.approx(loss.item(), rel=1e-5)


def test_a_model_without_a_text_decoder_says_so() -> None:
    with pytest.raises(ValueError, match="'caption_likelihoods': a model of family clip"):
        small_model("clip")("caption_likelihoods", image_BCHW=images(1), text_TL=rows(TEXTS[:1]), image_of_T=torch.tensor([0]))

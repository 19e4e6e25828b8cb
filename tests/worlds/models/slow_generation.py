"""Small models whose captions vary, and slow references of caption generation: no cache, Python lists."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import torch

from sycoca_ds.config import MaskingConfig, TextEncoderConfig
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.sycoca import SyCoCa
from tests.worlds.models.small_model import SMALL_MODEL

PAD, SOT, EOT, STEPS = 0, 1, 2, 8
KINDS = ("plain", "pooled", "open_clip")
MODES = {
    "greedy": Decoding(),
    "beams": Decoding(beams=4),
    "beams by mean": Decoding(beams=3, length_penalty=1.0, min_tokens=2),
    "sample": Decoding(sample=True, temperature=0.8, top_k=12, top_p=0.9),
}


LISTED = [(5, 6, 7, EOT), (5, EOT), (9, 9, 9, 9, EOT), (5, 6, EOT), (30, EOT), (5, EOT), (EOT,), (31, 5, EOT), (PAD, SOT, 4, EOT)]
"""Beginnings of one another, a duplicate, the empty text, and ids that are never generated otherwise."""


@functools.cache
def varied_model(kind: str = "plain", vocab_size: int = 50, eot: float = 2.0) -> SyCoCa:
    """Logits a few units apart; captions that depend on image, words and places, and end at different lengths.

    Weights as drawn give every image the same caption of one word over and over; these seeds and factors were looked for.
    """
    config = dataclasses.replace(
        SMALL_MODEL,
        text=dataclasses.replace(
            SMALL_MODEL.text, vocab_size=vocab_size, attention_mask="open_clip" if kind == "open_clip" else "exact"
        ),
        masking=MaskingConfig(),
    )
    seed, from_image = 12, 6.0
    if kind == "pooled":
        seed, from_image = 17, 12.0
        image = dataclasses.replace(config.image, pooling="attention", pooling_queries=6, pooling_heads=4)
        config = dataclasses.replace(config, image=image)
    model = SyCoCa(config, seed=seed).eval()
    with torch.no_grad():
        model.text_decoder.head.weight *= 3
        model.text_decoder.head.weight[EOT] *= eot
        model.text_encoder.token_embedding.weight *= 4
        model.text_encoder.position_embedding *= 4
        for block in (*model.text_encoder.blocks, *model.text_decoder.self_blocks):
            block.attention.out.weight *= 4
            block.mlp.out.weight *= 4
        for block in model.text_decoder.cross_blocks:
            block.attention.out.weight *= from_image
    return model


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


def ended(tokens: tuple[int, ...]) -> bool:
    return EOT in tokens


def trimmed(row: torch.Tensor) -> tuple[int, ...]:
    """Up to and with [EOT]; what follows it must be pads."""
    ids = row.tolist()
    end = ids.index(EOT) + 1 if EOT in ids else len(ids)
    assert not any(ids[end:])
    return tuple(ids[:end])


def shown_as_row(tokens: tuple[int, ...], steps: int) -> list[int]:
    return [*tokens, *[PAD] * (steps - len(tokens))]


class Slow:
    """One image, no cache: the whole model on each prefix, as in training."""

    def __init__(self, model: SyCoCa, image_CHW: torch.Tensor):
        encoder = model.image_encoder
        with torch.no_grad():
            self.seen = encoder.read(encoder(patchify(image_CHW[None], 6)))[1]
        self.model, self.known, self.vocab_size = model, {}, model.config.text.vocab_size

    @torch.no_grad()
    def logits(self, prefix: tuple[int, ...]) -> torch.Tensor:
        if prefix not in self.known:
            tokens = self.model.text_encoder(torch.tensor([[SOT, *prefix]]))[1]
            self.known[prefix] = self.model.text_decoder(tokens, self.seen)[0, -1]
        return self.known[prefix]

    def log_probabilities(self, prefix: tuple[int, ...]) -> list[float]:
        return self.logits(prefix).double().log_softmax(dim=0).tolist()

    def score(self, tokens: tuple[int, ...], prompt: tuple[int, ...] = ()) -> float:
        return sum(self.log_probabilities(prompt + tokens[:t])[tokens[t]] for t in range(len(tokens)))


def slow_next(listed: list[tuple[int, ...]] | None, tokens: tuple[int, ...], decoding: Decoding, vocab_size: int) -> list[int]:
    """The tokens that may follow, by looking through the whole list of choices."""
    if listed is not None:
        return sorted({choice[len(tokens)] for choice in listed if len(choice) > len(tokens) and choice[: len(tokens)] == tokens})
    return [t for t in range(2, vocab_size) if t != EOT or len(tokens) >= decoding.min_tokens]


def slow_beam_search(
    slow: Slow, steps: int, decoding: Decoding, prompt: tuple[int, ...] = (), listed: list[tuple[int, ...]] | None = None
) -> tuple[int, ...]:
    """Beam search on Python lists; equal ranks by the order of their parents, then by token."""
    live = [((), 0.0)]
    for _ in range(steps - len(prompt)):
        wider = []
        for parent, (tokens, score) in enumerate(live):
            if ended(tokens):
                wider.append((tokens, score, parent, PAD))
                continue
            scores = slow.log_probabilities(prompt + tokens)
            for token in slow_next(listed, tokens, decoding, slow.vocab_size):
                wider.append(((*tokens, token), score + scores[token], parent, token))
        wider.sort(key=lambda w: (-w[1] / len(w[0]) ** decoding.length_penalty, w[2], w[3]))
        live = [(tokens, score) for tokens, score, _, _ in wider[: decoding.beams]]
    return prompt + live[0][0]


def all_texts(words: range, steps: int) -> list[tuple[int, ...]]:
    """Every text that ends within `steps` tokens, and every one cut off there."""
    whole = [(*text, EOT) for length in range(steps) for text in itertools.product(words, repeat=length)]
    return whole + list(itertools.product(words, repeat=steps))


class Table:
    """A captioner whose next token depends on the last and on its place, by tables of logits: (B, T, V, V)."""

    def __init__(self, logits_BTVV: torch.Tensor):
        self.logits_BTVV, self.images, self.device, self.calls = logits_BTVV, len(logits_BTVV), torch.device("cpu"), 0

    def next_logits(self, token_R: torch.Tensor) -> torch.Tensor:
        image_R = torch.arange(self.images).repeat_interleave(len(token_R) // max(self.images, 1))
        self.calls += 1
        return self.logits_BTVV[image_R, self.calls - 1, token_R]

    def reorder(self, index_R: torch.Tensor) -> None:
        pass

    def keep(self, index_B: torch.Tensor) -> None:
        self.logits_BTVV, self.images = self.logits_BTVV[index_B], len(index_B)


class SlowTable(Slow):
    """One image's tables, for the slow search."""

    def __init__(self, logits_TVV: torch.Tensor):
        self.logits_TVV, self.vocab_size = logits_TVV, logits_TVV.shape[1]

    def logits(self, prefix: tuple[int, ...]) -> torch.Tensor:
        return self.logits_TVV[len(prefix), prefix[-1] if prefix else SOT]


def table_text(vocab_size: int) -> TextEncoderConfig:
    return dataclasses.replace(SMALL_MODEL.text, vocab_size=vocab_size)

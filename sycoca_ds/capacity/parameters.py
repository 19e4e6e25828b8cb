"""Shapes of every weight by arithmetic: what `SyCoCa` would allocate, without torch. Held equal to the real model's by a test.

Names: D width, E embed_dim, N patches, P numbers in a patch, V vocabulary, L context length, Q pooling queries.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sycoca_ds.config import DecoderConfig, ModelConfig

Shape = tuple[int, ...]


def numel(shapes: Iterable[Shape]) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(math.prod(shape) for shape in shapes)


def linear(inputs: int, outputs: int, bias: bool = True) -> list[Shape]:
    return [(outputs, inputs), (outputs,)] if bias else [(outputs, inputs)]


def norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def mlp(width: int) -> list[Shape]:
    return linear(width, 4 * width) + linear(4 * width, width)


def cross_attention(width: int, other_width: int) -> list[Shape]:
    return linear(width, width) + linear(other_width, 2 * width) + linear(width, width)


def self_block(width: int) -> list[Shape]:
    return norm(width) + linear(width, 3 * width) + linear(width, width) + norm(width) + mlp(width)


def cross_block(width: int, other_width: int) -> list[Shape]:
    return norm(width) + norm(other_width) + cross_attention(width, other_width) + norm(width) + mlp(width)


@dataclass(frozen=True)
class Part:
    """The weights of one of the model's parts, in the order in which a forward pass meets them."""

    first: list[Shape]
    """Before the blocks."""
    blocks: list[list[Shape]]
    """One list a block; a decoder's layer is two."""
    read: list[Shape]
    """Behind the blocks: the last norm, pooling, the decoder's head."""
    project: list[Shape]
    """The projection to the shared space, for the contrast and the scores."""

    @cached_property
    def block_numbers(self) -> list[int]:
        """How many numbers each block holds; a search asks for them some hundred thousand times."""
        return [numel(block) for block in self.blocks]

    def shapes(self) -> list[Shape]:
        return [*self.first, *(shape for block in self.blocks for shape in block), *self.read, *self.project]


def _image_encoder(model: ModelConfig) -> Part:
    image, e = model.image, model.embed_dim
    first = [*linear(image.patch_values, image.width, bias=False), (image.width,), (image.patches + 1, image.width)]
    read, width = [], image.width
    if image.pooling == "attention":
        read = [(image.pooling_queries, e), *norm(e), *norm(width), *cross_attention(e, width)]
        width = e
    blocks = [self_block(image.width) for _ in range(image.layers)]
    return Part([*first, *norm(image.width)], blocks, [*read, *norm(width)], linear(width, e, bias=False))


def _text_encoder(model: ModelConfig) -> Part:
    text = model.text
    cls = text.pooling == "cls"
    first = [(text.vocab_size, text.width), *[(text.width,)] * cls, (text.context_length + cls, text.width)]
    blocks = [self_block(text.width) for _ in range(text.layers)]
    return Part(first, blocks, [], [*norm(text.width), *linear(text.width, model.embed_dim, bias=False)])


def _decoder(config: DecoderConfig, other_width: int | None, first: list[Shape], head: list[Shape]) -> Part:
    pair = [self_block(config.width)] + ([] if other_width is None else [cross_block(config.width, other_width)])
    return Part(first, [block for _ in range(config.layers) for block in pair], [*norm(config.width), *head], [])


@lru_cache(maxsize=64)
def parts(model: ModelConfig) -> dict[str, Part]:
    """The weights by part, under the names that `sycoca_ds.model.flops.passes` uses. The vocabulary must be settled."""
    image, text = model.image, model.text
    found = {"image encoder": _image_encoder(model), "text encoder": _text_encoder(model)}
    if model.captions:
        head = linear(model.text_decoder.width, text.vocab_size, bias=False)
        found["text decoder"] = _decoder(model.text_decoder, model.image_token_width, [], head)
    if model.reconstructs:
        width = model.image_decoder.width
        first = [*linear(image.width, width), (width,), (image.patches, width)]
        guide = text.width if model.masking.mim == "text_guided" else None
        found["image decoder"] = _decoder(model.image_decoder, guide, first, linear(width, image.patch_values))
    if model.fusion:
        blocks = [cross_block(text.width, model.image_token_width) for _ in range(text.layers)]
        found["fusion"] = Part([], blocks, [*norm(text.width), *linear(text.width, model.image_token_width)], [])
    found["logit scale"] = Part([], [], [], [(1,)])
    return found


@lru_cache(maxsize=64)
def all_shapes(model: ModelConfig) -> tuple[Shape, ...]:
    """Every weight of the model."""
    return tuple(shape for part in parts(model).values() for shape in part.shapes())

"""Floating-point operations of one training sample, counted by formula: 2 per multiply-add of matrix products, attention scores
and mixing included; norms, softmax and activations left out, as usual for MFU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sycoca_ds.config import LossConfig, ModelConfig, hidden_count


@dataclass(frozen=True)
class Pass:
    """One run of a part on one sample."""

    part: str
    what: str
    tokens: str
    """How many tokens go through it, as a reader would say it."""
    forward: int
    """FLOPs."""
    recomputed: int
    """FLOPs of them that activation checkpointing computes again in the backward pass: the blocks', but for each one's last
    product, whose output no gradient needs (torch's checkpoint stops before it)."""
    trained: bool = True
    """Whether there is a backward pass."""
    for_contrast: bool = False
    """Whether the contrast alone needs it: run once more, without gradient, where a step has several micro-batches."""


def _self_block(tokens: float, width: int, causal: bool) -> float:
    """qkv, output and MLP projections 24 n d^2; scores and mixing 4 n^2 d, half of it under a causal mask."""
    return 24 * tokens * width**2 + 4 * tokens * tokens * width / (2 if causal else 1)


def _cross_block(queries: float, keys: float, width: int, key_width: int) -> float:
    """Query, output and MLP 20 n d^2; keys and values 4 m d d'; scores and mixing 4 n m d."""
    return 20 * queries * width**2 + 4 * keys * key_width * width + 4 * queries * keys * width


def _last_product(tokens: float, width: int) -> float:
    """The second linear layer of a block's MLP."""
    return 8 * tokens * width**2


def passes(model: ModelConfig, text_tokens: float | None = None, loss: LossConfig | None = None) -> list[Pass]:
    """Everything that one training sample goes through. Captions are computed without padding, so it is their real tokens that
    count: attention within a caption as if all had the mean's length.

    Args:
        text_tokens: real tokens of a caption, [SOT] and [EOT] counted, on average; default the context length, which is the most.
            All but the last one's next token is scored by captioning.
        loss: says whether there is a late interaction; default none.
    """
    image, text, masking = model.image, model.text, model.masking
    n, length = image.patches, text_tokens or text.context_length
    labels = length - 1
    pooled = image.pooling == "attention"

    def project(rows: float, width: int) -> int:
        return round(2 * rows * width * model.embed_dim)

    def pool(tokens: int) -> int:
        e, q = model.embed_dim, image.pooling_queries  # their own projection is one for all pictures of a batch
        return 4 * tokens * image.width * e + 2 * q * e * e + 4 * q * tokens * e

    def encode(part: str, what: str, patches: int, read: bool) -> Pass:
        blocks = round(image.layers * _self_block(patches + 1, image.width, False))
        again = round(blocks - image.layers * _last_product(patches + 1, image.width))
        rest = 2 * patches * image.patch_values * image.width + (pool(patches + 1) if pooled and read else 0)
        return Pass(part, what, f"1 + {patches} of {n} patches", blocks + rest, again)

    with_cls = length + (text.pooling == "cls")
    tokens = f"{length:g} + {text.pooling == 'cls':d}"
    blocks = round(text.layers * _self_block(with_cls, text.width, True))
    again = round(blocks - text.layers * _last_product(with_cls, text.width))
    out = [
        replace(encode("image encoder", "all patches", n, read=True), for_contrast=True),
        Pass("image encoder", "projection", "1", project(1, model.image_token_width), 0, for_contrast=True),
        Pass("text encoder", "caption", tokens, blocks + project(1, text.width), again, for_contrast=True),
    ]
    masked = model.family == "sycoca"
    seen = n - (hidden_count(n, masking.low_ratio) if masked else 0)
    kept = n - hidden_count(n, masking.high_ratio)
    if masked and masking.mask_by == "attention" and (model.reconstructs or seen < n):
        out.append(_scores(model, n, length))
    if loss is not None and loss.late_interaction:
        # each pair's patches with the tokens of its group's captions, and the other way round
        features = _patches_in_shared_space(model, n) + project(length, text.width)
        out.append(Pass("late interaction", "features", f"{n} and {length:g}", features, 0, for_contrast=True))
        one, group, whole = 2 * n * model.embed_dim, loss.late_interaction_group, text.context_length
        products = 2 * one * group * whole
        out.append(Pass("late interaction", "products", f"{n} x {whole} in groups of {group}", products, products))
    at_input = masked and masking.mask_at == "input"
    if at_input and seen < n:
        out.append(encode("image encoder", "without low-attentive patches", seen, read=True))
    if at_input and model.reconstructs:
        out.append(encode("image encoder", "without high-attentive patches", kept, read=False))
    if pooled and seen < n and not at_input:
        out.append(Pass("image encoder", "pooling of what captioning sees", f"1 + {seen}", pool(seen + 1), 0))
    if model.captions:
        width, layers, keys = model.text_decoder.width, model.text_decoder.layers, seen
        if pooled:
            keys = image.pooling_queries - 1
        pair = _self_block(labels, width, True) + _cross_block(labels, keys, width, model.image_token_width)
        blocks, again = round(layers * pair), round(layers * (pair - 2 * _last_product(labels, width)))
        out.append(Pass("text decoder", "blocks", f"{labels:g} on {keys} image tokens", blocks, again))
        head = round(2 * labels * width * text.vocab_size)
        out.append(Pass("text decoder", "vocabulary head", f"{labels:g} labelled", head, 0))
    if model.reconstructs:
        decoder, guided = model.image_decoder, masking.mim == "text_guided"
        blocks = decoder.layers * _self_block(n, decoder.width, False)
        again = blocks - decoder.layers * _last_product(n, decoder.width)
        if guided:
            cross = decoder.layers * _cross_block(n, length, decoder.width, text.width)
            blocks, again = blocks + cross, again + cross - decoder.layers * _last_product(n, decoder.width)
        rest = 2 * kept * image.width * decoder.width + 2 * n * decoder.width * image.patch_values
        tokens = f"{n} on {length:g} text tokens" if guided else f"{n}"
        out.append(Pass("image decoder", "text-guided" if guided else "plain", tokens, round(blocks + rest), round(again)))
    return out


def _patches_in_shared_space(model: ModelConfig, n: int) -> int:
    """`ImageEncoder.project_patches`; with attention pooling each patch goes through its value path first."""
    e, pooled = model.embed_dim, model.image.pooling == "attention"
    return 2 * n * model.image_token_width * e + (2 * n * (2 * model.image.width + e) * e if pooled else 0)


def _scores(model: ModelConfig, n: int, length: float) -> Pass:
    """Attentive scores by their kind (`ranking.PatchRanking`)."""
    image, text, similarity, e = model.image, model.text, model.masking.similarity, model.embed_dim
    compared = {"global": 1, "saliency": 0}.get(similarity, length)
    if similarity == "cross_attention":
        width, queries = model.text_decoder.width, length - 1
        looks = 2 * queries * width * (width + n)  # the queries once more, and their products with the keys
        pair = _self_block(queries, width, True) + _cross_block(queries, n, width, model.image_token_width) + looks
        flops, compared = model.text_decoder.layers * pair, queries
    else:
        flops = _patches_in_shared_space(model, n) + 2 * compared * (text.width + n) * e
    if similarity == "centred_over_pictures":
        flops += 2 * compared * e
    if similarity == "value_path":  # of the last block qkv, output and MLP, without mixing
        flops += 24 * length * text.width**2 + (24 * n * image.width**2 if image.pooling == "cls" else 0)
    return Pass("masking", f"scores: {similarity}", f"{n} x {compared:g}", round(flops), 0, trained=False)


def answer_passes(model: ModelConfig, question: float, answers: float, labels: float) -> list[Pass]:
    """Everything that one question of a model with fusion goes through when it is trained.

    Args:
        question: tokens of the padded question, whose padding is computed. answers: distinct ones a question; labels: their tokens
            that are scored, each answer having one more. Answers are computed without padding.
    """
    text, decoder, keys = model.text, model.text_decoder, model.image.patches
    if model.image.pooling == "attention":
        keys = model.image.pooling_queries - 1
    said = labels / answers
    with_cls, answered = round(question) + (text.pooling == "cls"), said + 1 + (text.pooling == "cls")
    cross = text.layers * _cross_block(with_cls, keys, text.width, model.image_token_width)
    cross += 2 * with_cls * text.width * model.image_token_width
    again = text.layers * _self_block(answered, text.width, True)
    blocks = _self_block(said, decoder.width, True) + _cross_block(said, with_cls, decoder.width, model.image_token_width)
    return [
        *passes(replace(model, family="clip", fusion=False), round(question)),
        Pass("fusion", "blocks", f"{with_cls} on {keys} image tokens", round(cross), 0),
        Pass("text encoder", "answers", f"{answers:g} of {answered:g}", round(answers * again), 0),
        Pass("text decoder", "answers", f"{answers:g} of {said:g}", round(answers * decoder.layers * blocks), 0),
        Pass("text decoder", "vocabulary head", f"{labels:g} labelled", round(2 * labels * decoder.width * text.vocab_size), 0),
    ]


def forward_flops(model: ModelConfig, text_tokens: float | None = None, loss: LossConfig | None = None) -> int:
    """Forward FLOPs of one training sample; the arguments are those of `passes`."""
    return sum(part.forward for part in passes(model, text_tokens, loss))


def step_flops(
    model: ModelConfig,
    text_tokens: float | None = None,
    recompute: bool | Mapping[str, float] = False,
    accumulation_steps: int = 1,
    loss: LossConfig | None = None,
) -> int:
    """FLOPs of one sample in a training step: forward once, backward twice that, scores forward only.

    Args:
        recompute: activation checkpointing, blocks forward once more, but for each one's last product; of all parts, or the share
            of each part's blocks. Leave it out for MFU, put it in for hardware FLOPs.
        accumulation_steps: above 1 the encoders run once more, without gradient.
    """
    parts = passes(model, text_tokens, loss)
    total = sum((3 if part.trained else 1) * part.forward for part in parts)
    if recompute:
        shares = {part.part: 1.0 for part in parts} if recompute is True else recompute
        total += sum(round(shares.get(part.part, 0.0) * part.recomputed) for part in parts if part.trained)
    if accumulation_steps > 1:
        total += sum(part.forward for part in parts if part.for_contrast)
    return total

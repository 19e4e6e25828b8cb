"""open_clip's CoCa and ours hold the same tensors under other names and in other layouts: both ways, strictly.

`coca` with `text.attention_mask = "open_clip"` computes what open_clip 3.3's `CoCa` computes; `clip` is its `CustomTextCLIP`
with a text [CLS]. Nothing here reads a file or needs open_clip: names, shapes and values only. docs/open_clip.md says what
differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from data_pipeline.errors import UserError
from sycoca_ds.config import ModelConfig
from sycoca_ds.model.open_clip.config import check_held
from sycoca_ds.model.shapes import Shape, check_tensors, our_shapes, unwrapped


@dataclass(frozen=True)
class Rule:
    """Tensors that hold the same values: ours laid one under another (dimension 0) equal theirs laid one under another."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    layout: Literal["same", "transposed", "convolution", "scalar"] = "same"
    """How theirs is laid out, seen from ours: `transposed` (in, out) where nn.Linear has (out, in); `convolution` (D, 3, p, p)
    where ours is (D, p * p * 3) in the order (row, column, channel); `scalar` () where ours is (1,)."""

    def their_shapes(self, shapes: Mapping[str, Shape], patch_size: int) -> dict[str, Shape]:
        """The shape of each of their tensors, from ours."""
        rows, rest = sum(shapes[name][0] for name in self.ours), shapes[self.ours[0]][1:]
        if self.layout == "transposed":
            return {self.theirs[0]: (*rest, rows)}
        if self.layout == "convolution":
            return {self.theirs[0]: (rows, 3, patch_size, patch_size)}
        if self.layout == "scalar":
            return {self.theirs[0]: ()}
        return {name: (rows // len(self.theirs), *rest) for name in self.theirs}

    def to_ours(self, values: list[Tensor], shapes: Mapping[str, Shape]) -> list[Tensor]:
        if self.layout == "transposed":
            return [values[0].t().contiguous()]
        if self.layout == "convolution":
            return [values[0].permute(0, 2, 3, 1).flatten(1).contiguous()]
        if self.layout == "scalar":
            return [values[0].reshape(1)]
        return _cut(values, [shapes[name][0] for name in self.ours])

    def to_theirs(self, values: list[Tensor], patch_size: int) -> list[Tensor]:
        if self.layout == "transposed":
            return [values[0].t().contiguous()]
        if self.layout == "convolution":
            return [values[0].unflatten(1, (patch_size, patch_size, 3)).permute(0, 3, 1, 2).contiguous()]
        if self.layout == "scalar":
            return [values[0].reshape(())]
        return _cut(values, [sum(map(len, values)) // len(self.theirs)] * len(self.theirs))


def _cut(values: list[Tensor], rows: list[int]) -> list[Tensor]:
    """The rows of `values`, one under another, in pieces of the given numbers of rows; each piece owns its memory."""
    if [len(value) for value in values] == rows:
        return values
    whole = values[0] if len(values) == 1 else torch.cat(values)
    return [piece.clone() for piece in whole.split(rows)]


def _affine(ours: str, theirs: str) -> list[Rule]:
    return [Rule((f"{ours}.{kind}",), (f"{theirs}.{kind}",)) for kind in ("weight", "bias")]


def _self_block(ours: str, theirs: str) -> list[Rule]:
    return [
        *_affine(f"{ours}.ln_1", f"{theirs}.ln_1"),
        Rule((f"{ours}.attention.qkv.weight",), (f"{theirs}.attn.in_proj_weight",)),
        Rule((f"{ours}.attention.qkv.bias",), (f"{theirs}.attn.in_proj_bias",)),
        *_affine(f"{ours}.attention.out", f"{theirs}.attn.out_proj"),
        *_affine(f"{ours}.ln_2", f"{theirs}.ln_2"),
        *_affine(f"{ours}.mlp.fc", f"{theirs}.mlp.c_fc"),
        *_affine(f"{ours}.mlp.out", f"{theirs}.mlp.c_proj"),
    ]


def _cross_attention(ours: str, theirs: str, one_width: bool) -> list[Rule]:
    """torch's MultiheadAttention keeps one stacked matrix where queries and keys are equally wide, else three."""
    q, kv = f"{ours}.q", f"{ours}.kv"
    if one_width:
        weights = [Rule((f"{q}.weight", f"{kv}.weight"), (f"{theirs}.in_proj_weight",))]
    else:
        weights = [
            Rule((f"{q}.weight",), (f"{theirs}.q_proj_weight",)),
            Rule((f"{kv}.weight",), (f"{theirs}.k_proj_weight", f"{theirs}.v_proj_weight")),
        ]
    return [
        *weights,
        Rule((f"{q}.bias", f"{kv}.bias"), (f"{theirs}.in_proj_bias",)),
        *_affine(f"{ours}.out", f"{theirs}.out_proj"),
    ]


def _cross_block(ours: str, theirs: str) -> list[Rule]:
    return [
        *_affine(f"{ours}.ln_1", f"{theirs}.ln_1"),
        *_affine(f"{ours}.ln_other", f"{theirs}.ln_1_kv"),
        *_cross_attention(f"{ours}.attention", f"{theirs}.attn", one_width=True),
        *_affine(f"{ours}.ln_2", f"{theirs}.ln_2"),
        *_affine(f"{ours}.mlp.fc", f"{theirs}.mlp.c_fc"),
        *_affine(f"{ours}.mlp.out", f"{theirs}.mlp.c_proj"),
    ]


def rules(config: ModelConfig) -> list[Rule]:
    """How every tensor of an open_clip model corresponds to ours; the image decoder has no counterpart."""
    image, text = config.image, config.text
    found = [
        Rule(("logit_scale",), ("logit_scale",), "scalar"),
        Rule(("image_encoder.patch_embed.weight",), ("visual.conv1.weight",), "convolution"),
        Rule(("image_encoder.cls_embedding",), ("visual.class_embedding",)),
        Rule(("image_encoder.position_embedding",), ("visual.positional_embedding",)),
        *_affine("image_encoder.ln_pre", "visual.ln_pre"),
        *_affine("image_encoder.ln_post", "visual.ln_post"),
        Rule(("image_encoder.proj.weight",), ("visual.proj",), "transposed"),
        Rule(("text_encoder.token_embedding.weight",), ("text.token_embedding.weight",)),
        Rule(("text_encoder.cls_embedding",), ("text.cls_emb",)),
        Rule(("text_encoder.position_embedding",), ("text.positional_embedding",)),
        *_affine("text_encoder.ln_final", "text.ln_final"),
        Rule(("text_encoder.proj.weight",), ("text.text_projection",), "transposed"),
    ]
    for layer in range(image.layers):
        found += _self_block(f"image_encoder.blocks.{layer}", f"visual.transformer.resblocks.{layer}")
    for layer in range(text.layers):
        found += _self_block(f"text_encoder.blocks.{layer}", f"text.transformer.resblocks.{layer}")
    if image.pooling == "attention":
        found += [
            Rule(("image_encoder.pool.query_embedding",), ("visual.attn_pool.query",)),
            *_affine("image_encoder.pool.ln_query", "visual.attn_pool.ln_q"),
            *_affine("image_encoder.pool.ln_other", "visual.attn_pool.ln_k"),
            *_cross_attention("image_encoder.pool.attention", "visual.attn_pool.attn", image.width == config.embed_dim),
        ]
    if config.captions:
        for layer in range(config.text_decoder.layers):
            found += _self_block(f"text_decoder.self_blocks.{layer}", f"text_decoder.resblocks.{layer}")
            found += _cross_block(f"text_decoder.cross_blocks.{layer}", f"text_decoder.cross_attn.{layer}")
        found += _affine("text_decoder.ln_final", "text_decoder.ln_final")
        found.append(Rule(("text_decoder.head.weight",), ("text_decoder.text_projection",), "transposed"))
    return found


def from_open_clip(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our state dict from open_clip's; values and dtypes stay as they are, bit for bit.

    Args:
        state: open_clip's; the names of wrappers (torch.compile, DDP, ...) are taken off.
        config: of family `coca` or `clip`.

    Raises:
        UserError: names or shapes are not exactly those of `config`, or open_clip has no such model.
    """
    check_held(config)
    if config.family == "sycoca":
        raise UserError("model.family = sycoca: open_clip has no image decoder; load its weights as coca, then start from them")
    shapes, found = our_shapes(config), rules(config)
    expected = {name: shape for rule in found for name, shape in rule.their_shapes(shapes, config.image.patch_size).items()}
    state = unwrapped(state, "open_clip's weights")
    check_tensors(state, expected, "open_clip's weights")
    result: dict[str, Tensor] = {}
    for rule in found:
        values = rule.to_ours([state[name] for name in rule.theirs], shapes)
        result.update(zip(rule.ours, values, strict=True))
    return {name: result[name] for name in shapes}


CLIPS_TEXT = ("positional_embedding", "text_projection", "transformer.", "token_embedding.", "ln_final.")
"""How names of CLIP's text encoder begin where it has no `text.` before it."""
TEXT_CLS = "text_encoder.cls_embedding"


def is_plain_clip(state: Mapping[str, Tensor]) -> bool:
    """Whether these are open_clip's names of a CLIP whose text vector is read at the text's end, without a [CLS]."""
    return "text.cls_emb" not in state and bool({"token_embedding.weight", "text.token_embedding.weight"} & set(state))


def from_clip(state: Mapping[str, Tensor], config: ModelConfig, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(Our state dict of both encoders but for the text's [CLS], which CLIP has not, bit for bit; the names that it lacks).

    Args:
        config: of family `clip`. where: names the weights in errors.

    Raises:
        UserError: names or shapes are not exactly those of `config`.
    """
    state = {f"text.{name}" if name.startswith(CLIPS_TEXT) else name: value for name, value in unwrapped(state, where).items()}
    state = {name: value for name, value in state.items() if not name.endswith("attn_mask")}  # a buffer that older files hold
    shapes, found = our_shapes(config), [rule for rule in rules(config) if rule.ours != (TEXT_CLS,)]
    expected = {name: shape for rule in found for name, shape in rule.their_shapes(shapes, config.image.patch_size).items()}
    check_tensors(state, expected, where)
    result: dict[str, Tensor] = {}
    for rule in found:
        result.update(zip(rule.ours, rule.to_ours([state[name] for name in rule.theirs], shapes), strict=True))
    return result, (TEXT_CLS,)


def to_open_clip(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """open_clip's state dict from ours, bit for bit; the image decoder, which open_clip lacks, is left out.

    Raises:
        UserError: names or shapes are not exactly those of `config`, or open_clip has no such model.
    """
    check_held(config)
    check_tensors(state, our_shapes(config), "the weights")
    result: dict[str, Tensor] = {}
    for rule in rules(config):
        values = rule.to_theirs([state[name] for name in rule.ours], config.image.patch_size)
        result.update(zip(rule.theirs, values, strict=True))
    return result

"""open_clip's names and layouts of weights: there and back, against torch's own layers, and what does not fit."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_pipeline.errors import UserError
from sycoca_ds.config import DecoderConfig, ModelConfig
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.open_clip.config import config_from_open_clip, open_clip_config, what_changes
from sycoca_ds.model.open_clip.weights import from_open_clip, to_open_clip
from sycoca_ds.presets import PRESETS
from tests.worlds.open_clip.world import (
    SMALL,
    VARIANTS,
    assert_same_tensors,
    built,
    random_weights,
)

BLOCK = (
    "ln_1.weight ln_1.bias attn.in_proj_weight attn.in_proj_bias attn.out_proj.weight attn.out_proj.bias ln_2.weight ln_2.bias "
    "mlp.c_fc.weight mlp.c_fc.bias mlp.c_proj.weight mlp.c_proj.bias"
)
OPEN_CLIP_NAMES = {
    "": "logit_scale",
    "visual.": "class_embedding positional_embedding proj conv1.weight ln_pre.weight ln_pre.bias ln_post.weight ln_post.bias "
    "attn_pool.query attn_pool.ln_q.weight attn_pool.ln_q.bias attn_pool.ln_k.weight attn_pool.ln_k.bias "
    "attn_pool.attn.q_proj_weight attn_pool.attn.k_proj_weight attn_pool.attn.v_proj_weight attn_pool.attn.in_proj_bias "
    "attn_pool.attn.out_proj.weight attn_pool.attn.out_proj.bias",
    "text.": "cls_emb positional_embedding text_projection token_embedding.weight ln_final.weight ln_final.bias",
    "text_decoder.": "text_projection ln_final.weight ln_final.bias",
    "visual.transformer.resblocks.0.": BLOCK,
    "text.transformer.resblocks.0.": BLOCK,
    "text_decoder.resblocks.0.": BLOCK,
    "text_decoder.cross_attn.0.": BLOCK + " ln_1_kv.weight ln_1_kv.bias",
}
"""Names of open_clip 3.3's CoCa with attention pooling and one layer each, as its `state_dict` prints them."""


def one_layer() -> ModelConfig:
    base = VARIANTS["pooled"]
    return dataclasses.replace(
        base,
        image=dataclasses.replace(base.image, layers=1),
        text=dataclasses.replace(base.text, layers=1),
        text_decoder=dataclasses.replace(base.text_decoder, layers=1),
    )


def test_names_and_shapes_are_open_clips() -> None:
    config = one_layer()
    state = to_open_clip(random_weights(config), config)
    assert set(state) == {prefix + name for prefix, names in OPEN_CLIP_NAMES.items() for name in names.split()}
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    assert shapes["logit_scale"] == () and shapes["visual.conv1.weight"] == (48, 3, 6, 6) and shapes["visual.proj"] == (32, 32)
    assert shapes["visual.attn_pool.attn.q_proj_weight"] == (32, 32) and shapes["visual.attn_pool.attn.v_proj_weight"] == (32, 48)
    assert shapes["text.positional_embedding"] == (13, 32) and shapes["text_decoder.text_projection"] == (32, 50)


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back_is_bit_for_bit(name: str) -> None:
    config, weights = VARIANTS[name], random_weights(VARIANTS[name])
    state = to_open_clip(weights, config)
    assert_same_tensors(from_open_clip(state, config), weights)
    assert_same_tensors(to_open_clip(from_open_clip(state, config), config), state)
    assert sum(value.numel() for value in state.values()) == sum(value.numel() for value in weights.values())
    assert config_from_open_clip(json.loads(json.dumps(open_clip_config(config))), 1, 2) == config


@torch.no_grad()
def test_layouts_mean_what_torchs_own_layers_compute() -> None:
    """Convolution, attention of one and of two widths, and projections from the right, each as torch itself computes it."""
    for name in ("pooled", "pooled_one_width"):
        config = VARIANTS[name]
        weights = random_weights(config)
        model, state = built(config, weights), to_open_clip(weights, config)
        image, e = torch.randn(2, 3, 24, 24), config.embed_dim
        patches = F.conv2d(image, state["visual.conv1.weight"], stride=6).flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.image_encoder.patch_embed(patchify(image, 6)), patches)

        width, prefix = config.image.width, "visual.attn_pool.attn."
        theirs = nn.MultiheadAttention(e, 2, kdim=width, vdim=width, batch_first=True)
        theirs.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        ours, query, other = model.image_encoder.pool.attention, torch.randn(2, 5, e), torch.randn(2, 9, width)
        found = ours.out(ours.mix(ours.q(query), ours.keys_values(ours.kv(other))))
        torch.testing.assert_close(found, theirs(query, other, other)[0], rtol=1e-4, atol=1e-5)

        prefix, x = "text.transformer.resblocks.1.attn.", torch.randn(2, 5, 32)
        theirs = nn.MultiheadAttention(32, 2, batch_first=True)
        theirs.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        ours = model.text_decoder.self_blocks[0].attention
        ours.load_state_dict(model.text_encoder.blocks[1].attention.state_dict())
        ours.heads = 2
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        found = ours.out(ours.mix(ours.qkv(x)))
        torch.testing.assert_close(found, theirs(x, x, x, attn_mask=mask)[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.text_decoder.head(x), x @ state["text_decoder.text_projection"])


def test_tensors_that_do_not_fit_are_named() -> None:
    config = VARIANTS["pooled"]
    state = to_open_clip(random_weights(config), config)
    missing = {name: value for name, value in state.items() if name != "visual.attn_pool.query"}
    for wrong, message in (
        (missing, "missing: visual.attn_pool.query"),
        ({**state, "logit_bias": torch.zeros(())}, "unknown: logit_bias"),
        ({**state, "visual.proj": state["visual.proj"][:, 1:]}, r"visual.proj \(32, 31\) instead of \(32, 32\)"),
        ({**state, "visual.conv1.weight": state["visual.conv1.weight"].flatten(1)}, r"visual.conv1.weight \(48, 108\) instead of"),
        ({"a": torch.zeros(1)}, "missing: .* and [0-9]+ more; unknown: a"),
    ):
        with pytest.raises(UserError, match=message):
            from_open_clip(wrong, config)
    weights = random_weights(config)
    del weights["text_encoder.cls_embedding"]
    with pytest.raises(UserError, match="missing: text_encoder.cls_embedding"):
        to_open_clip(weights, config)


def test_the_image_decoder_is_left_out_and_said() -> None:
    config = dataclasses.replace(SMALL, family="sycoca", image_decoder=DecoderConfig(layers=1, width=32, heads=2))
    weights = random_weights(config)
    state = to_open_clip(weights, config)
    kept = {name: value for name, value in weights.items() if not name.startswith("image_decoder.")}
    assert len(kept) < len(weights)
    assert_same_tensors(from_open_clip(state, dataclasses.replace(config, family="coca")), kept)
    exact = dataclasses.replace(config, text=dataclasses.replace(config.text, attention_mask="exact"))
    said = " ".join(what_changes(exact, True))
    assert "image decoder is left out" in said and "shifted padding mask" in said and "id 1 and end with 2" in said
    assert "transformers" in said and "--tokenizer" in " ".join(what_changes(exact, False))
    assert what_changes(PRESETS["coca_ViT-L-14"].model, False) == []

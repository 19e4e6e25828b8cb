"""open_clip's JSON of a model: what it cannot hold, and what of it we cannot."""

from __future__ import annotations

import dataclasses
import re

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.cli.table import COMMANDS
from sycoca_ds.model.open_clip.config import check_held, config_from_open_clip, open_clip_config
from sycoca_ds.model.open_clip.weights import from_open_clip, to_open_clip
from sycoca_ds.presets import PRESETS
from tests.worlds import REPOSITORY
from tests.worlds.open_clip.world import (
    SMALL,
    pooled,
    random_weights,
)


def test_what_open_clip_cannot_hold_is_refused_by_field() -> None:
    for config, field in (
        (dataclasses.replace(SMALL, image=dataclasses.replace(SMALL.image, width=64)), "model.text-decoder.width = 32.*64"),
        (dataclasses.replace(SMALL, embed_dim=24, image=pooled(32)), r"model.text-decoder.width = 32.*24 \(model.embed-dim\)"),
    ):
        for convert in (lambda c: to_open_clip(random_weights(c), c), open_clip_config):
            with pytest.raises(UserError, match=field):
                convert(config)
    with pytest.raises(UserError, match="model.family = sycoca"):
        from_open_clip({}, dataclasses.replace(SMALL, family="sycoca"))


def test_a_refusal_gives_the_reason_of_its_field_and_the_option_that_holds_the_model() -> None:
    exact = dataclasses.replace(SMALL.text, attention_mask="exact")
    mean_image, mean_text = dataclasses.replace(SMALL.image, pooling="mean"), dataclasses.replace(exact, pooling="mean")
    for changes, said in (
        ({"fusion": True}, "model.fusion = True: "),
        ({"image": mean_image, "text": mean_text}, "model.text.pooling = mean: open_clip's text tower reads [CLS] and cannot pool"),
        ({"image": mean_image}, "model.image.pooling = mean: written for open_clip is what pools by [CLS] or attention"),
        ({"image": dataclasses.replace(SMALL.image, width=64)}, "model.text-decoder.width = 32: "),
    ):
        with pytest.raises(UserError) as error:
            check_held(dataclasses.replace(SMALL, **changes))
        assert str(error.value).startswith(said) and "export with --to safetensors" in str(error.value)


def test_presets_that_cannot_go_to_open_clip_are_those_of_the_page() -> None:
    refused = set()
    for name, preset in PRESETS.items():
        try:
            check_held(preset.model)
        except UserError:
            refused.add(name)
    page = (REPOSITORY / "docs/open_clip.md").read_text()
    listed = re.search(r"Runs of these presets are: (.*?)\. Of the others", page, re.DOTALL)[1]
    assert set(re.findall(r"`(.*?)`", listed)) == refused
    exported = re.findall(r"export(?:\.py)? runs/(\S+) --to open_clip", page + (REPOSITORY / "docs/commands.md").read_text())
    example = COMMANDS["export"].example
    assert exported and "--to open_clip" in example
    assert {*exported, example.split()[0].removeprefix("runs/")} <= PRESETS.keys() - refused


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("vision_cfg", "ls_init_value", 1e-5, "vision_cfg.ls_init_value = 1e-05"),
        ("vision_cfg", "attentional_pool", "parallel", "vision_cfg.attentional_pool = 'parallel'"),
        ("vision_cfg", "timm_model_name", "vit_base", "vision_cfg.timm_model_name"),
        ("vision_cfg", "layers", [3, 4, 6, 3], "vision_cfg.layers"),
        ("vision_cfg", "image_size", [24, 30], "vision_cfg.image_size"),
        ("vision_cfg", "pool_type", "avg", "vision_cfg.pool_type"),
        ("vision_cfg", "head_width", 5, "vision_cfg.head_width = 5 does not divide width = 32"),
        ("vision_cfg", "output_tokens", False, "vision_cfg.output_tokens"),
        ("text_cfg", "embed_cls", False, "text_cfg.embed_cls"),
        ("text_cfg", "hf_model_name", "roberta-base", "text_cfg.hf_model_name"),
        ("text_cfg", "pad_id", 1, "text_cfg.pad_id"),
        ("text_cfg", "colour", "red", "text_cfg has a key .* colour"),
        ("multimodal_cfg", "width", 64, "model.text-decoder.width"),
        ("multimodal_cfg", "context_length", 5, "multimodal_cfg.context_length"),
        ("model_cfg", "quick_gelu", True, "model_cfg.quick_gelu"),
        ("model_cfg", "custom_text", False, "model_cfg.custom_text"),
        ("model_cfg", "vision_cfg", 3, "vision_cfg = 3"),
        ("vision_cfg", "head_width", 1000, "vision_cfg.head_width = 1000 does not divide"),
    ],
)
def test_configurations_of_other_models_are_refused_by_key(section: str, key: str, value: object, message: str) -> None:
    values = open_clip_config(SMALL)
    (values if section == "model_cfg" else values[section])[key] = value
    with pytest.raises(UserError, match=message):
        config_from_open_clip(values, 1, 2)


def test_keys_without_effect_are_known() -> None:
    """Those of the shipped configurations that open_clip itself never reads."""
    values = open_clip_config(SMALL)
    values["multimodal_cfg"] |= {"mlp_ratio": 3, "dim_head": 64, "n_queries": 256, "attn_pooler_heads": 12}
    values["vision_cfg"] |= {"image_size": [24, 24]}
    assert config_from_open_clip(values, 1, 2) == SMALL
    with pytest.raises(UserError, match="vocab_size = 50 has no room .* 49406 and 49407.*--tokenizer"):
        config_from_open_clip(values)

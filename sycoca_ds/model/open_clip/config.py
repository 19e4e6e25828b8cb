"""open_clip's JSON of a CoCa (`model_cfg`) and our `ModelConfig`, both ways. Every key is read, known to be without effect, or
refused: a model that only nearly fits would load and compute something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from data_pipeline.errors import UserError
from sycoca_ds.config import DecoderConfig, ImageEncoderConfig, ModelConfig, TextEncoderConfig, check_model

CLIP_SOT_ID, CLIP_EOT_ID, CLIP_VOCABULARY = 49406, 49407, 49408
"""<start_of_text> and <end_of_text> in CLIP's BPE, which open_clip's own tokenizer uses for every CoCa."""


def check_held(config: ModelConfig) -> None:
    """Raises `UserError` naming the field if open_clip has no model of this shape.

    Heads never stand in the way: open_clip takes the image encoder's as a width a head and the others' as a number.
    """
    check_model(config)
    if config.fusion:
        raise UserError("model.fusion = True: open_clip has no model that answers questions; export with --to safetensors")
    for part, why in (
        ("text", "open_clip's text tower reads [CLS] and cannot pool by the mean, so its vectors would be others"),
        ("image", "written for open_clip is what pools by [CLS] or attention"),
    ):
        if getattr(config, part).pooling == "mean":
            raise UserError(
                f"model.{part}.pooling = mean: {why}; export with --to safetensors, or train a preset that open_clip can hold "
                "(paper-base, coca_base, ...)"
            )
    if config.captions and config.text_decoder.width != config.image_token_width:
        source = "model.embed-dim" if config.image.pooling == "attention" else "model.image.width"
        raise UserError(
            f"model.text-decoder.width = {config.text_decoder.width}: open_clip can hold only {config.image_token_width} "
            f"({source}), since its decoder attends to image tokens of its own width; export with --to safetensors"
        )


def open_clip_config(config: ModelConfig) -> dict[str, Any]:
    """The model's JSON as open_clip 3.3 reads it (`model_cfg`)."""
    check_held(config)
    image, text, decoder = config.image, config.text, config.text_decoder
    vision = {
        "image_size": image.image_size,
        "layers": image.layers,
        "width": image.width,
        "head_width": image.width // image.heads,
        "patch_size": image.patch_size,
        "output_tokens": config.captions,
    }
    if image.pooling == "attention":
        vision |= {
            "attentional_pool": True,
            "attn_pooler_queries": image.pooling_queries,
            "attn_pooler_heads": image.pooling_heads,
        }
    values = {
        "embed_dim": config.embed_dim,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
            "embed_cls": True,
            "output_tokens": config.captions,
        },
        "custom_text": True,
    }
    if config.captions:
        values["multimodal_cfg"] = {
            "context_length": text.context_length,
            "vocab_size": text.vocab_size,
            "width": decoder.width,
            "heads": decoder.heads,
            "layers": decoder.layers,
        }
    return values


_BLOCK_FIXED: dict[str, Any] = {
    "mlp_ratio": 4.0,
    "ls_init_value": None,
    "act_kwargs": None,
    "norm_kwargs": None,
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
_TEXT_FIXED: dict[str, Any] = _BLOCK_FIXED | {
    "embed_cls": True,
    "pad_id": 0,
    "no_causal_mask": False,
    "proj_bias": False,
    "proj_type": "linear",
    "hf_model_name": None,
}
_FIXED: dict[str, dict[str, Any]] = {
    "model_cfg": {"quick_gelu": False, "init_logit_bias": None, "pad_id": 0, "custom_text": True},
    "vision_cfg": _BLOCK_FIXED
    | {
        "no_ln_pre": False,
        "pos_embed_type": "learnable",
        "final_ln_after_pool": False,
        "pool_type": "tok",
        "timm_model_name": None,
    },
    "text_cfg": _TEXT_FIXED,
    "multimodal_cfg": {"ls_init_value": None},
}
"""The value a key must have for the model to be ours. Where the key is absent open_clip takes this value too, except for
`embed_cls` and `custom_text`, which it takes for false."""
_READ = {
    "model_cfg": "embed_dim vision_cfg text_cfg multimodal_cfg",
    "vision_cfg": "layers width head_width patch_size image_size attentional_pool attn_pooler_queries attn_pooler_heads",
    "text_cfg": "context_length vocab_size width heads layers",
    "multimodal_cfg": "context_length width heads layers",
}
_TEXT_WITHOUT_EFFECT = (
    "output_tokens eos_id final_ln_after_pool pool_type hf_tokenizer_name tokenizer_mode tokenizer_kwargs hf_model_pretrained "
    "hf_proj_type hf_pooler_type"
)
_WITHOUT_EFFECT = {
    "model_cfg": "init_logit_scale nonscalar_logit_scale",
    "vision_cfg": "output_tokens patch_dropout timm_model_pretrained timm_pool timm_proj timm_proj_bias timm_drop timm_drop_path",
    "text_cfg": _TEXT_WITHOUT_EFFECT,
    # open_clip takes all of these into its MultimodalCfg and reads none of them (its issue #434)
    "multimodal_cfg": " ".join([_TEXT_WITHOUT_EFFECT, "vocab_size dim_head n_queries attn_pooler_heads", *_TEXT_FIXED]),
}


def config_from_open_clip(
    values: Mapping[str, Any], sot_id: int = CLIP_SOT_ID, eot_id: int = CLIP_EOT_ID, attention_mask: str = "open_clip"
) -> ModelConfig:
    """Our configuration of the model that open_clip's JSON (`model_cfg`) describes.

    Args:
        sot_id, eot_id, attention_mask: what open_clip's JSON does not say; default as in all its CoCa.

    Raises:
        UserError: it describes a model that is not ours, naming the key.
    """
    sections: dict[str, Any] = {"model_cfg": values}
    if not isinstance(values, Mapping):
        raise UserError(f"open_clip's configuration: model_cfg = {values!r}: expected an object")
    for name in ("vision_cfg", "text_cfg", "multimodal_cfg"):
        if name in values or name != "multimodal_cfg":
            sections[name] = values.get(name)
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise UserError(f"open_clip's configuration: {name} = {section!r}: expected an object")
        known = {*_READ[name].split(), *_WITHOUT_EFFECT[name].split(), *_FIXED[name]}
        unknown = [key for key in section if key not in known]
        if unknown:
            raise UserError(f"open_clip's configuration: {name} has a key that open_clip 3.3's CoCa does not: {', '.join(unknown)}")
        for key, wanted in _FIXED[name].items():
            found = section.get(key, False if key in ("embed_cls", "custom_text") else wanted)
            if found != wanted:
                raise UserError(f"open_clip's configuration: {name}.{key} = {found!r}: this model can only be {wanted!r} there")
    vision, decoder = sections["vision_cfg"], sections.get("multimodal_cfg")

    def whole(section: str, key: str, default: int | None = None) -> int:
        value = sections[section].get(key, default)
        if isinstance(value, (list, tuple)) and len(set(value)) == 1:  # open_clip takes [224, 224] for 224
            value = value[0]
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"open_clip's configuration: {section}.{key} = {value!r}: expected a whole number of at least 1")
        return value

    pool = vision.get("attentional_pool", False)
    if not isinstance(pool, bool):
        raise UserError(f"open_clip's configuration: vision_cfg.attentional_pool = {pool!r}: this model knows true and false")
    if decoder is not None:
        for name in ("vision_cfg", "text_cfg"):
            if sections[name].get("output_tokens") is not True:
                raise UserError(f"open_clip's configuration: {name}.output_tokens: expected true, its CoCa cannot run otherwise")
    width, head_width = whole("vision_cfg", "width", 768), whole("vision_cfg", "head_width", 64)
    if width % head_width:
        raise UserError(f"open_clip's configuration: vision_cfg.head_width = {head_width} does not divide width = {width}")
    image = ImageEncoderConfig(
        image_size=whole("vision_cfg", "image_size", 224),
        patch_size=whole("vision_cfg", "patch_size", 16),
        layers=whole("vision_cfg", "layers", 12),
        width=width,
        heads=width // head_width,
        pooling="attention" if pool else "cls",
        pooling_queries=whole("vision_cfg", "attn_pooler_queries", 256),
        pooling_heads=whole("vision_cfg", "attn_pooler_heads", 8),
    )
    length, vocab_size = whole("text_cfg", "context_length", 77), whole("text_cfg", "vocab_size", CLIP_VOCABULARY)
    if max(sot_id, eot_id) >= vocab_size:
        raise UserError(
            f"open_clip's configuration: text_cfg.vocab_size = {vocab_size} has no room for the special ids {sot_id} and {eot_id}: "
            "give the tokenizer these weights were trained with (--tokenizer FILE)"
        )
    config = ModelConfig(
        family="clip" if decoder is None else "coca",
        embed_dim=whole("model_cfg", "embed_dim"),
        image=image,
        text=TextEncoderConfig(
            context_length=length,
            vocab_size=vocab_size,
            layers=whole("text_cfg", "layers", 12),
            width=whole("text_cfg", "width", 512),
            heads=whole("text_cfg", "heads", 8),
            sot_id=sot_id,
            eot_id=eot_id,
            attention_mask=attention_mask,
        ),
    )
    if decoder is not None:
        if whole("multimodal_cfg", "context_length", 77) < length:
            raise UserError(f"open_clip's configuration: multimodal_cfg.context_length is below text_cfg's {length}")
        layers, heads = whole("multimodal_cfg", "layers", 12), whole("multimodal_cfg", "heads", 8)
        sizes = DecoderConfig(layers=layers, width=whole("multimodal_cfg", "width", 512), heads=heads)
        config = replace(config, text_decoder=sizes)
    check_held(config)
    return config


def uses_clips_ids(config: ModelConfig) -> bool:
    """Whether the special ids are those of CLIP's BPE."""
    return (config.text.sot_id, config.text.eot_id) == (CLIP_SOT_ID, CLIP_EOT_ID)


def what_changes(config: ModelConfig, has_tokenizer: bool) -> list[str]:
    """What a user of weights exported to open_clip must know, a sentence each."""
    said = []
    if config.reconstructs:
        said.append("the image decoder is left out: open_clip has none")
    if config.text.attention_mask == "exact":
        same = "image vectors and caption logits at real tokens" if config.captions else "image vectors"
        said.append(
            "open_clip applies its shifted padding mask whatever the model was trained with (model.text.attention-mask = exact): "
            f"text vectors of captions shorter than {config.text.context_length} tokens, and whatever follows an id 0 within a "
            f"caption, will differ from this model's; {same} stay the same"
        )
    if not uses_clips_ids(config):
        said.append(
            f"captions begin with id {config.text.sot_id} and end with {config.text.eot_id}, not as in CLIP's BPE, "
            "open_clip's default: "
            + (
                "open_clip.get_tokenizer reads the tokenizer beside the weights, for which it needs the package transformers"
                if has_tokenizer
                else "give the tokenizer with --tokenizer, or open_clip will read captions with the wrong one"
            )
        )
    return said

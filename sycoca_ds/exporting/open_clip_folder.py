"""A folder as open_clip reads it, tokenizer included; and a tokenizer as transformers reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sycoca_ds.exporting.open_clip_files import OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS, OWN_KEY, preprocessing

if TYPE_CHECKING:
    from torch import Tensor

    from sycoca_ds.config import ModelConfig, TextEncoderConfig
    from sycoca_ds.exporting.source import Source


def write_open_clip(folder: Path, source: Source, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Fills a new folder as open_clip reads it; `weights` have open_clip's names. Returns facts about the weights' file."""
    from sycoca_ds.engine.checkpoint.exported import copy_tokenizer, save_tensors
    from sycoca_ds.model.open_clip.config import open_clip_config, uses_clips_ids

    text, model = source.config.text, open_clip_config(source.config)
    facts = save_tensors(weights, folder / OPEN_CLIP_WEIGHTS)
    tokenizer = copy_tokenizer(source.tokenizer, folder)
    if tokenizer is not None and not uses_clips_ids(source.config):
        tokenizer |= describe_tokenizer(folder / tokenizer["file"], text)
        # any name makes open_clip look into the folder; without one it silently takes CLIP's BPE
        model["text_cfg"]["hf_tokenizer_name"] = tokenizer["file"]
    record = {
        "model_cfg": model,
        "preprocess_cfg": preprocessing(source.config.image.image_size),
        OWN_KEY: {
            "sot_id": text.sot_id,
            "eot_id": text.eot_id,
            "attention_mask": text.attention_mask,
            "source": source.facts,
            "weights": facts,
            "tokenizer": tokenizer,
        },
    }
    (folder / OPEN_CLIP_CONFIG).write_text(json.dumps(record, indent=2) + "\n")
    return facts


def describe_tokenizer(path: Path, text: TextEncoderConfig) -> dict[str, str]:
    """Lets transformers' AutoTokenizer, and through it open_clip, make the ids that ours makes; the file's sha256."""
    from tokenizers import Tokenizer as Bpe
    from tokenizers.processors import TemplateProcessing

    from data_pipeline.files import sha256_file
    from sycoca_ds.model.text_encoder import PAD_ID

    names = {"bos_token": "<start_of_text>", "eos_token": "<end_of_text>"}
    bpe = Bpe.from_file(str(path))
    bpe.post_processor = TemplateProcessing(
        single="{bos_token} $A {eos_token}".format(**names),
        special_tokens=[(names["bos_token"], text.sot_id), (names["eos_token"], text.eot_id)],
    )
    bpe.save(str(path))
    record = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "pad_token": bpe.id_to_token(PAD_ID),
        "model_max_length": text.context_length,
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a special token's letters in a caption are letters, as `data.tokenizer` reads them
    }
    (path.parent / "tokenizer_config.json").write_text(json.dumps(record, indent=2) + "\n")
    return {"sha256": sha256_file(path)}


def add_hub_files(folder: Path, config: ModelConfig) -> None:
    """What users of a hub expect beside our own files: a tokenizer that transformers' AutoTokenizer reads, and the kind of model in
    config.json. The tokenizer's own file changes, and config.json's word on it."""
    from sycoca_ds.engine.checkpoint.exported import CONFIG_FILE
    from sycoca_ds.model.open_clip.config import uses_clips_ids

    record = json.loads((folder / CONFIG_FILE).read_text())
    if record["tokenizer"] is not None and not uses_clips_ids(config):
        record["tokenizer"] |= describe_tokenizer(folder / record["tokenizer"]["file"], config.text)
    record = {"model_type": config.family, "architectures": ["SyCoCa"], "library_name": "sycoca-ds", **record}
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n")

"""Our `coca` is open_clip's CoCa: its weights under our names give its vectors and caption logits, and the other way round.

The comparison runs open_clip 3.3 itself, beside this environment (`make peer`), in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data_pipeline.errors import UserError
from data_pipeline.tokenizer import clip_bpe
from sycoca_ds.config import DecoderConfig, ModelConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.open_clip_config import config_from_open_clip, open_clip_config, what_changes
from sycoca_ds.model.open_clip_weights import from_open_clip, to_open_clip
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import TextEncoder
from sycoca_ds.presets import PRESETS
from tests.worlds.open_clip_world import (
    DIRTY,
    SMALL,
    VARIANTS,
    ask,
    assert_same_tensors,
    built,
    export_for_open_clip,
    make_inputs,
    needs_open_clip,
    pooled,
    random_weights,
    texts,
)

REAL = ("coca_base", "coca_ViT-B-32", "coca_ViT-L-14")
ALL = "SYCOCA_OPEN_CLIP_ALL" in os.environ
"""Whether all of them are compared at full depth, both ways (docs/open_clip.md)."""
TOLERANCE = 1e-4
"""Largest difference of a float32 logit or vector entry; what is seen is below 1e-5."""


@pytest.fixture
def all_threads() -> Iterator[None]:
    """The real configurations are large enough to gain from more than one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def image_tokens(model: SyCoCa, inputs: dict[str, Tensor]) -> Tensor:
    """What the text decoder sees of the images."""
    return model.image_encoder.read(model.image_encoder(patchify(inputs["image"], model.config.image.patch_size)))[1]


@torch.no_grad()
def text_answers(model: SyCoCa, text_BL: Tensor, seen_BSD: Tensor | None, encoder: TextEncoder | None = None) -> dict[str, Tensor]:
    """Text vectors, and caption logits at every position if the model has a text decoder."""
    encoder = encoder or model.text_encoder
    cls_BD, token_BLD = encoder(text_BL)
    found = {"text_vector": encoder.project(cls_BD)}
    return found if seen_BSD is None else found | {"logits": model.text_decoder(token_BLD, seen_BSD)}


@torch.no_grad()
def our_answers(model: SyCoCa, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `open_clip_peer.answers` returns, from our model."""
    seen_BSD = image_tokens(model, inputs) if model.text_decoder is not None else None
    return {
        "image_vector": model("image_features", image_BCHW=inputs["image"]),
        "logit_scale": model._scale(model.logit_scale).squeeze(),
        "prepared": normalise(eval_image(inputs["picture"].numpy(), model.config.image.image_size)),
        **text_answers(model, inputs["text"], seen_BSD),
    }


def differences(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    assert ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in theirs)
    return {name: (ours[name] - theirs[name]).abs().max().item() for name in sorted(theirs)}


def assert_equal_answers(ours: dict[str, Tensor], theirs: dict[str, Tensor], what: str) -> None:
    """Compares everything at every position, pads included, and prints the largest differences."""
    found = differences(ours, theirs)
    print(f"{what}: " + ", ".join(f"{name} {value:.1e}" for name, value in found.items()))
    for name, value in found.items():
        assert value <= TOLERANCE, f"{what}: {name} differs by {value}"
    for name in ("image_vector", "text_vector"):
        spread = (theirs[name] - theirs[name].mean(dim=0)).abs().max()
        assert spread > 100 * TOLERANCE, f"{what}: all {name}s are alike, so this comparison could not fail"
    assert "logits" not in theirs or theirs["logits"].std() > 0.3


# ---- against open_clip ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes of weights, emptied at once: pytest keeps its own for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def real(*always: str) -> list:
    """All of `REAL`, and which of them run always. The others differ from it in sizes and pooling, which `VARIANTS` have at sizes
    that take no time; the full grid adds that nothing depends on the real ones."""
    return [pytest.param(name, marks=() if ALL or name in always else pytest.mark.full) for name in REAL]


def sized(name: str, full: str | None = None) -> ModelConfig:
    """A shipped configuration. Unless all are asked for, only `full` keeps its depth: the others have two layers a part, at their
    full width, heads, image, vocabulary and pooling."""
    config = PRESETS[name].model
    if ALL or name == full:
        return config
    parts = {part: dataclasses.replace(getattr(config, part), layers=2) for part in ("image", "text", "text_decoder")}
    return dataclasses.replace(config, **parts)


@needs_open_clip
@pytest.mark.slow
@pytest.mark.parametrize("name", real("coca_ViT-B-32"))
def test_open_clips_weights_give_open_clips_numbers(name: str, room: Path, all_threads: None) -> None:
    """Every parameter random. Then the control: with the exact mask, padded captions are another matter."""
    config = sized(name, full="coca_ViT-B-32")
    inputs = make_inputs(config)
    save_file(inputs, room / "inputs")
    described = name
    if config != PRESETS[name].model:
        described = str(room / f"shallow_{name}.json")
        Path(described).write_text(json.dumps(open_clip_config(config)))
    ask([{"model": described, "seed": 3, "folder": room / "model", "inputs": room / "inputs", "answers": room / "answers"}], room)
    theirs, state = load_file(room / "answers"), load_file(room / "model" / "open_clip_model.safetensors")
    weights = from_open_clip(state, config)
    assert_same_tensors(to_open_clip(weights, config), state)
    model = built(config, weights)
    del state, weights
    assert_equal_answers(our_answers(model, inputs), theirs, f"{name}, {config.image.layers} image layers, open_clip -> ours")

    # a caption that is not padded at all gives the same as the padded one
    length, seen_BSD = config.text.context_length, image_tokens(model, inputs)
    short = text_answers(model, inputs["text"][1:2, : length // 2], seen_BSD[1:2])
    torch.testing.assert_close(short["text_vector"], theirs["text_vector"][1:2], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(short["logits"], theirs["logits"][1:2, : length // 2], rtol=0, atol=TOLERANCE)

    exact = TextEncoder(dataclasses.replace(config.text, attention_mask="exact"), config.embed_dim)
    exact.load_state_dict(model.text_encoder.state_dict())
    found = text_answers(model, inputs["text"], seen_BSD, exact)
    off = {name: (found[name] - theirs[name]).abs().flatten(1).amax(dim=1) for name in found}
    assert off["text_vector"][1:].min() > 10 * TOLERANCE and off["logits"][1] > 10 * TOLERANCE
    assert off["text_vector"][0] < TOLERANCE and off["logits"][0] < TOLERANCE, "a full caption knows no padding"
    real = found["logits"][2, : length // 3] - theirs["logits"][2, : length // 3]
    assert real.abs().max() < TOLERANCE, "real tokens of a caption without id 0 inside see no padding"


@needs_open_clip
@pytest.mark.slow
@pytest.mark.parametrize("name", real("coca_base"))
def test_our_weights_give_our_numbers_in_open_clip(name: str, room: Path, all_threads: None) -> None:
    """`local-dir:` on what the command wrote, by `open_clip.create_model_and_transforms`."""
    config = sized(name)
    inputs, weights = make_inputs(config), random_weights(config)
    save_file(inputs, room / "inputs")
    folder = export_for_open_clip(config, weights, room)
    ask([{"folder": folder, "inputs": room / "inputs", "answers": room / "answers"}], room)
    ours = our_answers(built(config, weights), inputs)
    assert_equal_answers(ours, load_file(room / "answers"), f"{name}, {config.image.layers} image layers, ours -> open_clip")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything small that open_clip is asked, in one process: starting it takes longer than the answers."""
    folder = tmp_path_factory.mktemp("asked")
    jobs = [{"shipped": name, "folder": folder} for name in REAL]
    jobs.append({"tokenize": texts(), "context_length": 76, "folder": folder})
    for name, config in VARIANTS.items():
        save_file(make_inputs(config), folder / f"{name}.inputs")
        (folder / f"tested_{name}.json").write_text(json.dumps(open_clip_config(config)))
        (folder / name).mkdir()
        exported = export_for_open_clip(config, random_weights(config), folder / name)
        random = {"model": folder / f"tested_{name}.json", "seed": 4, "folder": folder / f"{name}_random"}
        jobs += [
            random | {"inputs": folder / f"{name}.inputs", "answers": folder / f"{name}.in"},
            {"folder": exported, "inputs": folder / f"{name}.inputs", "answers": folder / f"{name}.out"},
        ]
    ask(jobs, folder)
    return folder


@needs_open_clip
def test_presets_are_the_configurations_that_open_clip_ships(asked: Path) -> None:
    for name in REAL:
        config = PRESETS[name].model
        assert config_from_open_clip(json.loads((asked / f"{name}.json").read_text())) == config
        assert config_from_open_clip(open_clip_config(config)) == config


@needs_open_clip
@pytest.mark.parametrize("name", VARIANTS)
def test_every_kind_of_model_both_ways(name: str, asked: Path) -> None:
    """Poolings of both weight layouts, unequal widths, heads and layers, and the two encoders alone."""
    config = VARIANTS[name]
    inputs, state = make_inputs(config), load_file(asked / f"{name}_random" / "open_clip_model.safetensors")
    weights = from_open_clip(state, config)
    assert_same_tensors(to_open_clip(weights, config), state)
    assert_equal_answers(our_answers(built(config, weights), inputs), load_file(asked / f"{name}.in"), f"{name}, in")
    ours = our_answers(built(config, random_weights(config)), inputs)
    assert_equal_answers(ours, load_file(asked / f"{name}.out"), f"{name}, out")


@needs_open_clip
def test_clips_bpe_gives_the_ids_of_open_clips_tokenizer(asked: Path) -> None:
    clip_bpe.ImportClipCommand(merges=asked / "merges.txt.gz", out=asked / "clip.json").run()
    tokenizer, theirs = Tokenizer(asked / "clip.json"), np.array(json.loads((asked / "ids.json").read_text()))
    assert (tokenizer.vocab_size, tokenizer.sot_id, tokenizer.eot_id) == (49408, 49406, 49407)
    assert len(np.unique(theirs)) > 1000 and set(DIRTY) <= set(texts())
    for text, ours, expected in zip(texts(), tokenizer.encode(texts(), 76), theirs, strict=True):
        assert ours.tolist() == expected.tolist(), text
    assert tokenizer.decode(theirs[0]) == "a photo of a cat !"
    assert tokenizer.decode(theirs[3]) == "na\u00efve caf\u00e9 \u65e5\u672c \U0001f600 \u00e9"


@needs_open_clip
def test_open_clip_reads_the_tokenizer_beside_the_weights(data_set: Path, tmp_path: Path) -> None:
    """A tokenizer of this project, through open_clip's `get_tokenizer("local-dir:...")` and transformers."""
    ours = Tokenizer(data_set / "tokenizer.json")
    text = dataclasses.replace(SMALL.text, vocab_size=ours.vocab_size, sot_id=ours.sot_id, eot_id=ours.eot_id)
    config = dataclasses.replace(SMALL, text=text)
    folder = export_for_open_clip(config, random_weights(config), tmp_path, ours.path)
    captions = ["red beside blue", "Small  ROUND\tgreen on white!", "", "black " * 30, "un\u00e9 word", *DIRTY]
    ask([{"tokenize": captions, "of": folder, "folder": tmp_path}], tmp_path)
    assert json.loads((tmp_path / "ids.json").read_text()) == ours.encode(captions, text.context_length).tolist()


# ---- without open_clip ---------------------------------------------------------------------------------------------------------

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
        torch.testing.assert_close(ours(query, ours.keys_values(other)), theirs(query, other, other)[0], rtol=1e-4, atol=1e-5)

        prefix, x = "text.transformer.resblocks.1.attn.", torch.randn(2, 5, 32)
        theirs = nn.MultiheadAttention(32, 2, batch_first=True)
        theirs.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        ours = model.text_decoder.self_blocks[0].attention
        ours.load_state_dict(model.text_encoder.blocks[1].attention.state_dict())
        ours.heads = 2
        mask = torch.ones(5, 5, dtype=torch.bool).triu(1)
        torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask)[0], rtol=1e-4, atol=1e-5)
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

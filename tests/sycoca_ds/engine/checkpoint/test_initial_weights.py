"""Starting from given weights: which parts are taken, and which differences are refused by field."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_pipeline.errors import UserError
from sycoca_ds.config import DecoderConfig, ModelConfig, with_vocabulary
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.checkpoint.initial_weights import initialise_from, read_weights
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.engine.preparation import find_tokenizer
from sycoca_ds.model.open_clip.config import CLIP_EOT_ID, CLIP_SOT_ID, open_clip_config
from sycoca_ds.model.open_clip.weights import TEXT_CLS, to_open_clip
from sycoca_ds.model.shapes import our_shapes
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import parse_options
from sycoca_ds.presets import PRESETS
from tests.worlds.open_clip.world import VARIANTS, assert_same_tensors, random_weights, run_export
from tests.worlds.trainings.eval_world import SMALL, make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported SyCoCa run."""
    run, out = make_run(tmp_path_factory.mktemp("run") / "run"), tmp_path_factory.mktemp("exported") / "run"
    assert run_export("--checkpoint", run, "--out", out) == 0
    return out


def changed(**parts: object) -> ModelConfig:
    return dataclasses.replace(SMALL, **parts)


def test_coca_weights_start_a_sycoca_whose_image_decoder_stays_fresh(tmp_path: Path) -> None:
    make_run(tmp_path / "coca", changed(family="coca"), seed=3)
    fresh, model = SyCoCa(SMALL, seed=5).state_dict(), SyCoCa(SMALL, seed=5)
    said = initialise_from(model, tmp_path / "coca")
    taken = read_weights(tmp_path / "coca")[1]
    assert any(name.startswith("text_decoder.") for name in taken)
    assert_same_tensors(dict(model.state_dict()), {name: taken.get(name, value) for name, value in fresh.items()})
    total, count = (sum(value.numel() for value in state.values()) / 1e6 for state in (fresh, taken))
    assert said == (
        f"weights of {tmp_path / 'coca' / 'checkpoints' / 'step_00000007'} (step 7): logit_scale, image_encoder, text_encoder, "
        f"text_decoder taken ({count:.1f} M of {total:.1f} M parameters); image_decoder fresh"
    )
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_for_other_ids_of_words_are_refused(folder: Path, tmp_path: Path) -> None:
    file = json.loads((folder / "tokenizer.json").read_text())
    entries = file["model"]["vocab"]
    first, second = list(entries)[-2:]
    entries[first], entries[second] = entries[second], entries[first]
    (tmp_path / "other.json").write_text(json.dumps(file))
    with pytest.raises(UserError, match=f"start from them with --data.tokenizer {folder / 'tokenizer.json'}"):
        initialise_from(SyCoCa(SMALL, seed=5), folder, Tokenizer(tmp_path / "other.json"))
    assert "text_encoder" in initialise_from(SyCoCa(SMALL, seed=5), folder, Tokenizer(folder / "tokenizer.json"))


def test_a_run_takes_the_tokenizer_of_its_weights(folder: Path, data_set: Path, tmp_path: Path) -> None:
    run, out = make_run(tmp_path / "run"), tmp_path / "out"
    step = run / "checkpoints/step_00000007"
    own, data = step / "tokenizer.json", data_set / "tokenizer.json"

    def found(*words: str | Path) -> Path:
        config = parse_options(["--preset", "tiny", "--data.train", str(data_set), "--run.out", str(out), *map(str, words)])
        return find_tokenizer(config, Sources.of(config.data)).path

    assert found() == data and found("--run.weights", folder) == folder / "tokenizer.json"
    assert [found("--run.weights", path) for path in (run, run / "checkpoints", step)] == [own] * 3
    assert found("--run.weights", folder, "--data.tokenizer", own) == own, "a named one comes first"
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip/open_clip_config.json").write_text('{"model_cfg": {}}')
    shutil.copyfile(own, tmp_path / "open_clip/tokenizer.json")
    assert found("--run.weights", tmp_path / "open_clip") == data, "other people's file is of another kind"
    (tmp_path / "open_clip/open_clip_config.json").write_text('{"model_cfg": {}, "sycoca_ds": {}}')
    assert found("--run.weights", tmp_path / "open_clip") == tmp_path / "open_clip/tokenizer.json", "this one is of ours"

    out.mkdir()
    shutil.copyfile(own, out / "tokenizer.json")
    assert found("--run.weights", tmp_path / "gone") == out / "tokenizer.json", "a run that goes on without them"
    assert found() == data


def test_parts_the_new_model_lacks_are_left_and_changed_switches_said(folder: Path) -> None:
    text = dataclasses.replace(SMALL.text, attention_mask="open_clip")
    model = SyCoCa(changed(family="clip", text=text), seed=5)
    said = initialise_from(model, folder)
    before = load_for_inference(folder).model.state_dict()
    assert_same_tensors(dict(model.state_dict()), {name: before[name] for name in model.state_dict()})
    assert "logit_scale, image_encoder, text_encoder taken" in said and "text_decoder, image_decoder not used" in said
    assert said.endswith("model.text.attention-mask was exact, is open_clip")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embed_dim", 64),
        ("image.image_size", 64),
        ("image.patch_size", 6),
        ("image.layers", 1),
        ("image.heads", 4),
        ("image.pooling", "attention"),
        ("text.vocab_size", 320),
        ("text.context_length", 30),
        ("text.heads", 4),
        ("text.eot_id", 9),
        ("text_decoder.layers", 2),
        ("text_decoder.heads", 1),
        ("image_decoder.width", 48),
        ("masking.mim", "plain"),
    ],
)
def test_shared_parts_that_differ_are_refused_by_field(field: str, value: object, folder: Path) -> None:
    """Heads and special ids too: they change no shape, and everything that is computed."""
    *section, name = field.split(".")
    config = changed(
        **({section[0]: dataclasses.replace(getattr(SMALL, section[0]), **{name: value})} if section else {name: value})
    )
    model = SyCoCa(config, seed=5)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=f"has model.{field.replace('_', '-')} = .*, this model {value}"):
        initialise_from(model, folder)
    assert_same_tensors(dict(model.state_dict()), before)


def test_fields_of_parts_that_are_not_shared_do_not_matter(tmp_path: Path) -> None:
    pooling = dataclasses.replace(SMALL.image, pooling="attention", pooling_queries=5, pooling_heads=2)
    make_run(tmp_path / "run", changed(image=pooling))
    assert "image_decoder taken" in initialise_from(SyCoCa(changed(image=pooling)), tmp_path / "run")
    with pytest.raises(UserError, match="model.image.pooling-heads = 2, this model 4"):
        initialise_from(SyCoCa(changed(image=dataclasses.replace(pooling, pooling_heads=4))), tmp_path / "run")
    make_run(tmp_path / "coca", changed(family="coca", image_decoder=DecoderConfig(width=999)))
    other_pooling = changed(image=dataclasses.replace(SMALL.image, pooling_queries=9))
    assert "image_decoder fresh" in initialise_from(SyCoCa(other_pooling), tmp_path / "coca")


def test_the_documented_way_from_open_clips_largest_model_to_sycoca() -> None:
    """docs/open_clip.md's options make `930m` share every part of coca_ViT-L-14."""
    words = "--preset paper-930m --model.image.pooling attention --model.text.sot-id 49406 --model.text.eot-id 49407"
    ours = parse_options([*words.split(), "--model.text.attention-mask", "open_clip"]).model
    ours = with_vocabulary(ours, 49408)  # of the tokenizer that the command names
    theirs = PRESETS["coca_ViT-L-14"].model
    assert ours.text == theirs.text and ours.image == theirs.image and ours.text_decoder == theirs.text_decoder
    shapes = our_shapes(ours)
    assert {name: shape for name, shape in shapes.items() if not name.startswith("image_decoder.")} == our_shapes(theirs)


def test_open_clips_own_files_start_a_run_and_the_log_says_what_was_left(tmp_path: Path) -> None:
    """A file of its CoCa, a folder of it, and a CLIP whose text is read at its end: all but the text's [CLS]."""
    text = dataclasses.replace(VARIANTS["cls"].text, vocab_size=49408, sot_id=CLIP_SOT_ID, eot_id=CLIP_EOT_ID)
    coca = dataclasses.replace(VARIANTS["cls"], text=text)
    weights = random_weights(coca)
    theirs = to_open_clip(weights, coca)
    save_file(theirs, tmp_path / "coca.safetensors")
    torch.save({"state_dict": {f"module.{name}": value for name, value in theirs.items()}}, tmp_path / "coca.pt")
    (tmp_path / "folder").mkdir()
    save_file(theirs, tmp_path / "folder/open_clip_model.safetensors")
    (tmp_path / "folder/open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip_config(coca)}))
    sycoca = dataclasses.replace(coca, family="sycoca", image_decoder=coca.text_decoder)
    fresh = SyCoCa(sycoca, seed=5).state_dict()
    for name in ("coca.safetensors", "coca.pt", "folder"):
        model = SyCoCa(sycoca, seed=5)
        said = initialise_from(model, tmp_path / name)
        assert (
            "(open_clip's): logit_scale, image_encoder, text_encoder, text_decoder taken" in said
            and "; image_decoder fresh" in said
        )
        assert_same_tensors(dict(model.state_dict()), {name: weights.get(name, value) for name, value in fresh.items()})

    encoders = {name: value for name, value in theirs.items() if not name.startswith("text_decoder.") and name != "text.cls_emb"}
    flat = {name.removeprefix("text."): value for name, value in encoders.items()}
    for name, state in (("custom.pt", encoders), ("flat.pt", flat)):
        torch.save(state, tmp_path / name)
        model = SyCoCa(sycoca, seed=5)
        said = initialise_from(model, tmp_path / name)
        assert "text_decoder, image_decoder, text_encoder.cls_embedding fresh" in said and "not taken: the place where CLIP" in said
        taken = {n for n in weights if n.split(".")[0] in ("logit_scale", "image_encoder", "text_encoder")} - {TEXT_CLS}
        assert_same_tensors(dict(model.state_dict()), {n: weights[n] if n in taken else value for n, value in fresh.items()})

    text_64 = dataclasses.replace(text, vocab_size=64_000)  # as open_clip's coca_base has, whose ids are CLIP's
    longer = dataclasses.replace(coca, text=text_64)
    torch.save(to_open_clip(random_weights(longer), longer), tmp_path / "longer.pt")
    said = initialise_from(SyCoCa(dataclasses.replace(sycoca, text=text_64), seed=5), tmp_path / "longer.pt")
    assert "text_decoder taken" in said

    for name, change, said in (
        ("flat.pt", {"text": dataclasses.replace(text, sot_id=1, eot_id=2)}, "such weights read captions by CLIP's BPE"),
        ("coca.pt", {"image": dataclasses.replace(coca.image, layers=3)}, "do not fit the model; missing"),
        ("flat.pt", {"image": dataclasses.replace(coca.image, width=48)}, "do not fit the model; of another shape"),
    ):
        with pytest.raises(UserError, match=said):
            initialise_from(SyCoCa(dataclasses.replace(sycoca, **change), seed=5), tmp_path / name)


def test_our_open_clip_folder_is_read_with_its_own_ids(tmp_path: Path) -> None:
    """Written by `sycoca export` of a run whose tokenizer was trained here; its files alone do not say whose ids they have."""
    run = make_run(tmp_path / "run", changed(family="coca"))
    for name, form in (("folder", "open_clip"), ("ours", "safetensors")):
        assert run_export("--checkpoint", run, "--to", form, "--out", tmp_path / name) == 0
    model = load_for_inference(run).config.model
    own = Tokenizer(tmp_path / "folder/tokenizer.json")
    assert "text_encoder" in initialise_from(SyCoCa(model, seed=5), tmp_path / "folder", own)
    file = json.loads(own.path.read_text())
    entries = file["model"]["vocab"]
    first, second = list(entries)[-2:]
    entries[first], entries[second] = entries[second], entries[first]
    (tmp_path / "other.json").write_text(json.dumps(file))
    with pytest.raises(UserError, match=f"other ids than those of .*: start from them with --data.tokenizer {own.path}"):
        initialise_from(SyCoCa(model, seed=5), tmp_path / "folder", Tokenizer(tmp_path / "other.json"))
    with pytest.raises(
        UserError, match=f"a vocabulary of {SMALL.text.vocab_size}, which is not CLIP's of 49,408, and a file does not"
    ):
        initialise_from(SyCoCa(model, seed=5), tmp_path / "folder/open_clip_model.safetensors", own)
    with pytest.raises(UserError, match=f"have this project's names, .*: give the folder, {tmp_path / 'ours'}$"):
        initialise_from(SyCoCa(model, seed=5), tmp_path / "ours/model.safetensors", own)

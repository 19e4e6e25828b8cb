"""Our `coca` is open_clip's CoCa: its weights under our names give its vectors and caption logits, and the other way round.

The comparison runs open_clip 3.3 itself, beside this environment (`make peer`), in a process of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from data_pipeline.tokenizer import clip_bpe
from sycoca_ds.config import ModelConfig
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import eval_image
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.image_encoder import patchify
from sycoca_ds.model.open_clip.config import config_from_open_clip, open_clip_config
from sycoca_ds.model.open_clip.weights import from_open_clip, to_open_clip
from sycoca_ds.model.pixels import normalise
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import TextEncoder
from sycoca_ds.presets import PRESETS
from tests.worlds import REPOSITORY
from tests.worlds.open_clip.world import (
    DIRTY,
    SMALL,
    VARIANTS,
    ask,
    assert_same_tensors,
    built,
    export_for_open_clip,
    make_inputs,
    needs_open_clip,
    peer,
    random_weights,
    run_export,
    texts,
)
from tests.worlds.pages.typed import BLOCK
from tests.worlds.processes.launching import LIMIT
from tests.worlds.trainings.eval_world import make_run

REAL = ("coca_base", "coca_ViT-B-32", "coca_ViT-L-14")
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
    """What `peer.answers` returns, from our model."""
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


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder for gigabytes of weights, emptied at once: pytest keeps its own for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


NIGHT = [pytest.mark.full, pytest.mark.timeout(1200)]
WHOLE = [pytest.param(name, None, marks=NIGHT) for name in REAL]


def sized(name: str, layers: int | None) -> ModelConfig:
    """A shipped configuration, at its own depth or with `layers` a part, at its full width, heads, image, vocabulary, pooling."""
    config = PRESETS[name].model
    if layers is None:
        return config
    parts = {part: dataclasses.replace(getattr(config, part), layers=layers) for part in ("image", "text", "text_decoder")}
    return dataclasses.replace(config, **parts)


@needs_open_clip
@pytest.mark.slow
@pytest.mark.parametrize("name, layers", [("coca_ViT-B-32", 2), *WHOLE])
def test_open_clips_weights_give_open_clips_numbers(name: str, layers: int | None, room: Path, all_threads: None) -> None:
    """Every parameter random. Then the control: with the exact mask, padded captions are another matter. By day at two layers a
    part; `VARIANTS` have what else is in the other configurations, at sizes that take no time."""
    config = sized(name, layers)
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
@pytest.mark.parametrize("name, layers", WHOLE)
def test_our_weights_give_our_numbers_in_open_clip(name: str, layers: None, room: Path, all_threads: None) -> None:
    """`local-dir:` on what the command wrote, by `open_clip.create_model_and_transforms`."""
    config = sized(name, layers)
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


@needs_open_clip
def test_open_clips_own_commands_drive_an_exported_run_captions_included(tmp_path: Path) -> None:
    """As its users type them: create_model_and_transforms, get_tokenizer, load_state_dict(strict=True), generate."""
    run, folder, pictures = make_run(tmp_path / "run"), tmp_path / "theirs", []
    assert run_export(run, "--to", "open_clip", "--out", folder) == 0
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (60, 48 + 9 * number, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number}.png")
        pictures.append(str(tmp_path / f"{number}.png"))
    card = (folder / "README.md").read_text()
    typed = re.search(r"model\.generate\(image, (.*)\)", card)[1]
    arguments = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", typed)}
    assert arguments == {"seq_len": 30, "sot_token_id": 1, "eos_token_id": 2}
    job = {"generate": folder, "images": pictures, "folder": folder}
    ask(
        [
            job | {"arguments": arguments | {"generation_type": "top_k"}, "answers": tmp_path / "greedy.json"},
            job | {"arguments": arguments, "answers": tmp_path / "beams.json"},
        ],
        tmp_path,
    )
    loaded = load_for_inference(run)
    size = loaded.config.model.image.image_size
    image = normalise(torch.stack([eval_image(np.asarray(Image.open(file)), size) for file in pictures]))
    ours = loaded.model("generate", image_BCHW=image, steps=28, decoding=Decoding(min_tokens=4))  # its least length is 5 with [SOT]
    greedy = json.loads((tmp_path / "greedy.json").read_text())
    assert len({tuple(ids) for ids in greedy["ids"]}) > 1
    for theirs, own in zip(greedy["ids"], ours.tolist(), strict=True):
        assert theirs[0] == 1 and 0 not in own, "an id 0 hides the place after it there"
        assert theirs[1 : len(own) + 1] == own
    beams = json.loads((tmp_path / "beams.json").read_text())
    assert len(beams["texts"]) == 3 and all(ids[0] == 1 for ids in beams["ids"])


@needs_open_clip
@pytest.mark.parametrize("page", ["docs/open_clip.md", "card"])
def test_what_the_page_and_the_card_say_is_typed_as_it_stands(page: str, tmp_path: Path) -> None:
    """In open_clip's environment, without a line of this project on the path."""
    run, folder = make_run(tmp_path / "run"), tmp_path / "weights/theirs"
    assert run_export(run, "--to", "open_clip", "--out", folder) == 0
    text = (folder / "README.md" if page == "card" else REPOSITORY / page).read_text()
    code = "\n".join(block[2] for block in BLOCK.finditer(text) if block[1] == "python")
    assert "model.generate(" in code and code.count("local-dir:") == 1
    noise = np.random.default_rng(0).integers(0, 256, (60, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.jpg")
    code = code.replace("PATH/OF/THIS/FOLDER", str(folder))
    python, environment = peer()
    done = subprocess.run([python, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr[-3000:]


@needs_open_clip
def test_where_open_clip_is_installed_the_export_asks_it(tmp_path: Path) -> None:
    """The command under the Python that has open_clip."""
    python, environment = peer()
    run = make_run(tmp_path / "run")
    environment["PYTHONPATH"] += f"{os.pathsep}{REPOSITORY}"
    words = [python, "-m", "sycoca_ds.export", str(run), "--to", "open_clip", "--out", str(tmp_path / "theirs")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    found = re.search(r"open_clip 3\.3\.0's own vectors differ from them by (\S+) at most", done.stdout)
    assert found and float(found[1]) < 1e-5, done.stdout

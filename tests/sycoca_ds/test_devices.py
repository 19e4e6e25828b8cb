"""Where tensors are made, and where the host waits for the device, on a GPU that is not there (worlds/machines/fake_gpu.py)."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sycoca_ds.config import DataConfig, LossConfig, MaskingConfig, ModelConfig, RunConfig, TrainConfig
from sycoca_ds.data.batch import Batch
from sycoca_ds.engine.accumulation import shared_inputs
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.engine.logit_scale import bound_logit_scale
from sycoca_ds.engine.monitoring.meters import Meter
from sycoca_ds.engine.monitoring.validation import Validation
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.eval.alignment import naming
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.compositions.reading import read_compositions
from sycoca_ds.eval.datasets.reading import Question
from sycoca_ds.eval.labels import load_labels
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.probe.data import Labelled, ProbeData
from sycoca_ds.eval.regions.patches import read_regions
from sycoca_ds.eval.regions.segments import read_segments
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.eval.vqa.items import Request
from sycoca_ds.model import decoders, objectives, sycoca
from sycoca_ds.model.choices import Choices
from sycoca_ds.model.generation import Decoding
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.model.text_encoder import label_places
from tests.worlds.data.named_squares import ENTRIES, draw_squares, squares_tokenizer, write_squares
from tests.worlds.data.nearly_fitting import write_sugarcrepe
from tests.worlds.machines.fake_gpu import GPU, WrongDevice, fake_gpu
from tests.worlds.models.small_model import SMALL_MODEL, random_inputs
from tests.worlds.trainings.eval_world import SMALL, make_data, make_labels, make_run, url_of

pytestmark = pytest.mark.slow

RUNTIME = Runtime(0, 0, 1, GPU, 1)


def one_layer(config: ModelConfig) -> ModelConfig:
    """What a second layer does the first has done."""
    parts = ("image", "text", "text_decoder", "image_decoder")
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), layers=1) for part in parts})


SYCOCA = one_layer(SMALL_MODEL)
POOLED = dataclasses.replace(SYCOCA.image, pooling="attention", pooling_queries=9, pooling_heads=4)
MODELS: dict[str, ModelConfig] = {
    "sycoca": SYCOCA,
    "coca": dataclasses.replace(SYCOCA, family="coca"),
    "clip": dataclasses.replace(SYCOCA, family="clip"),
    "pooling = attention": dataclasses.replace(SYCOCA, image=POOLED),
    "attention_mask = open_clip": dataclasses.replace(SYCOCA, text=dataclasses.replace(SYCOCA.text, attention_mask="open_clip")),
    "pooling = mean": dataclasses.replace(
        SYCOCA, image=dataclasses.replace(SYCOCA.image, pooling="mean"), text=dataclasses.replace(SYCOCA.text, pooling="mean")
    ),
    "words = content": dataclasses.replace(SYCOCA, masking=MaskingConfig(words="content", left_out_ids=(1, 2, 9))),
    **{
        f"{field} = {value}": dataclasses.replace(SYCOCA, masking=MaskingConfig(**{field: value}))
        for field, values in {
            "mask_by": ("random",),
            "similarity": ("centred_over_pictures", "cross_attention", "value_path", "global", "centred_token_max", "saliency"),
            "mask_at": ("embedding",),
            "mim": ("plain", "none"),
            "high_ratio": (0.75,),
            "low_ratio": (0.0,),
            "target": ("normalised_pixels",),
        }.items()
        for value in values
    },
}
"""Every family, and every other value of each field that the model's way depends on."""


def model_on_gpu(config: ModelConfig, dtype: torch.dtype = torch.float32) -> SyCoCa:
    return SyCoCa(config, seed=0).to(GPU, dtype)


def train_step(model: SyCoCa, micro_batches: int = 1) -> None:
    """What the loop does in a step from loaded batches on, without DeepSpeed and the guard."""
    size_B2, inputs = torch.tensor([[30, 40], [24, 24], [61, 29], [30, 40]]), random_inputs()
    pixels, places = torch.zeros(int(3 * size_B2.prod(1).sum()), dtype=torch.uint8), label_places(inputs["text_BL"], 2)
    loaded = [Batch(pixels, size_B2, inputs["text_BL"], places, inputs["key_B"], stand_ins=0)] * micro_batches
    batches = [batch.to_device(GPU, model.config.image.image_size) for batch in loaded]
    meter = Meter(model.config, RUNTIME)
    for micro, more in zip(batches, shared_inputs(model, batches, model.config.text.eot_id), strict=True):
        report = model("train", **micro, **more)
        report["loss"].backward()
        meter.add(report)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    bound_logit_scale(model)
    meter.count(loaded)
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.device == p.device, name


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_nor_leaves_it_with_a_late_interaction(micro_batches: int) -> None:
    model = SyCoCa(MODELS["similarity = centred_over_pictures"], LossConfig(late_interaction=0.1), seed=0).to(GPU)
    with fake_gpu() as gpu:
        train_step(model, micro_batches)
    assert not gpu.waits


@pytest.mark.parametrize("name", MODELS)
def test_a_step_stays_on_the_device_and_never_waits_for_it(name: str) -> None:
    model = model_on_gpu(MODELS[name])
    with fake_gpu() as gpu:
        train_step(model)
    assert not gpu.waits


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_nor_does_one_of_several_micro_batches_in_bf16_computed_twice(micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With activation checkpointing and the captioning loss in pieces."""
    monkeypatch.setattr(decoders, "LOGITS_AT_ONCE", 2 * SYCOCA.text.vocab_size)
    model = model_on_gpu(MODELS["pooling = attention"], torch.bfloat16)
    model.set_activation_checkpointing(1)
    with fake_gpu() as gpu:
        train_step(model, micro_batches)
    assert not gpu.waits


def test_what_is_made_on_the_host_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    split = sycoca.split_patches

    def planted(*inputs):
        keep, hidden = split(*inputs)
        return keep, torch.zeros(hidden.shape, dtype=torch.bool)

    monkeypatch.setattr(sycoca, "split_patches", planted)
    model = model_on_gpu(SYCOCA)
    with fake_gpu(), pytest.raises(WrongDevice, match=r"aten.mul.Tensor of tensors on the GPU \[\(4, 16\)\] and on the host"):
        train_step(model)


@pytest.mark.parametrize(
    "planted, why",
    [
        (lambda count: torch.tensor(float(count), device=count.device), "a number"),
        (lambda count: torch.tensor([8.0], device=count.device).squeeze(), "a copy of the host's numbers"),
        (lambda count: count.cpu().to(count.device, non_blocking=True), "a copy between host and device"),
        (lambda count: count if count > 0 else count + 1, "a number"),
        (lambda count: count[None].repeat(3)[torch.tensor([1])].squeeze(), "an index on the host, or a mask as index"),
    ],
)
def test_what_makes_the_host_wait_is_seen(planted, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = objectives.label_count
    monkeypatch.setattr(sycoca, "label_count", lambda labelled, pieces: planted(counted(labelled, pieces)))
    model = model_on_gpu(SYCOCA)
    with fake_gpu() as gpu:
        train_step(model)
    assert {wait.rsplit("(", 1)[1] for wait in gpu.waits} >= {f"{why})"}
    assert "sycoca_ds/model/sycoca.py:" in gpu.waits[0]


@pytest.mark.parametrize("pooling", ["cls", "attention"])
def test_generation_stays_on_the_device(pooling: str) -> None:
    model = model_on_gpu(MODELS["sycoca" if pooling == "cls" else "pooling = attention"]).eval()
    ways = (
        {},
        {"decoding": Decoding(beams=3, length_penalty=1.0, min_tokens=2)},
        {"decoding": Decoding(sample=True, top_k=9, top_p=0.9), "key_B": torch.arange(4)},
        {"decoding": Decoding(beams=2), "choices": Choices.from_ids([[5, 6, 2], [5, 7, 2], [9, 2]], 2)},
        {"prompt_BL": torch.tensor([[5, 6], [7, 0], [8, 9], [11, 0]])},
    )
    with fake_gpu(), torch.no_grad():
        for way in ways:
            ids = model("generate", image_BCHW=torch.zeros(4, 3, 24, 24, device=GPU), steps=4, **way)
            assert ids.shape == (4, 4) and ids.device == GPU


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    make_data(folder / "data", images=6, captions=2)
    make_labels(folder / "labels.json", images=6)
    make_run(folder / "run")
    make_run(folder / "answers", dataclasses.replace(SMALL, family="coca", fusion=True))
    answers = ("red", "blue", "red", "green", "red", "blue")
    asked = [{"url": url_of(n), "question": "a colour", "answer": said, "kind": "colour"} for n, said in enumerate(answers)]
    (folder / "questions.json").write_text(json.dumps({"name": "drawn", "questions": asked}))
    write_sugarcrepe(folder / "sugarcrepe")
    return folder


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("alignment", "vqa")])  # others' turn is below
def test_evaluation_takes_its_inputs_to_the_device_and_its_numbers_from_there(
    task: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captioning, "java_command", lambda: None)
    loaded = load_for_inference(world / "run")
    size = loaded.config.model.image.image_size
    with fake_gpu():
        model = loaded.model.to(GPU)
        compositions = read_compositions([f"sugarcrepe={world / 'sugarcrepe'}"])
        collection = Collection(world / "data", size)
        collection.cues = (Question("red", 0, 5, (1, 2)),)
        probe = ProbeData(Labelled("train", collection, np.arange(6) % 2, ""))
        labels = load_labels(world / "labels.json")
        inputs = Inputs(SuiteOptions(batch_size=4, beams=2), labels, compositions=compositions, probe=probe)
        bench = Bench(model, loaded.config, loaded.tokenizer, collection, GPU, inputs)
        assert TASKS[task].run(bench).numbers


def test_answers_do_so_too(world: Path) -> None:
    """By rank; of answers along a tree the device gives no numbers to read (test_generation_stays_on_the_device)."""
    loaded = load_for_inference(world / "answers")
    collection = Collection(world / "data", loaded.config.model.image.image_size)
    asked = Request(str(world / "questions.json"), keep=1).open(collection)
    with fake_gpu():
        inputs = Inputs(SuiteOptions(batch_size=4, beams=2), questions=asked)
        bench = Bench(loaded.model.to(GPU), loaded.config, loaded.tokenizer, collection, GPU, inputs)
        assert TASKS["vqa"].run(bench).numbers["accuracy"] is not None


def test_masks_and_regions_do_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an evaluation, of masks and of words, and in a validation."""
    counted = naming.confusion  # labels of pixels from this device are no labels
    monkeypatch.setattr(naming, "confusion", lambda label, guess, labels: counted(label, guess % labels, labels))
    write_squares(tmp_path, draw_squares(4))
    text = dataclasses.replace(SMALL.text, vocab_size=ENTRIES)
    make_run(tmp_path / "run", one_layer(dataclasses.replace(SMALL, text=text)), tokenizer=squares_tokenizer)
    loaded, path = load_for_inference(tmp_path / "run"), str(tmp_path / "test_regions.json")
    collection = Collection(tmp_path / "data", 48)
    regions = read_regions(path, collection, loaded.tokenizer, 8, 40)
    data = DataConfig(validation=str(tmp_path / "data"), regions=path)
    config = TrainConfig(model=loaded.config.model, data=data, run=RunConfig(validation_samples=4, pictures=0))
    with fake_gpu():
        model = loaded.model.to(GPU)
        inputs = Inputs(SuiteOptions(batch_size=4), regions=regions, segments=read_segments(path, collection))
        bench = Bench(model, loaded.config, loaded.tokenizer, collection, GPU, inputs)
        words = TASKS["alignment"].run(bench).numbers
        numbers = TASKS["masking"].run(Bench(model, loaded.config, loaded.tokenizer, collection, GPU, inputs)).numbers
        found = Validation.of(config, loaded.tokenizer, RUNTIME, batch_size=4).masking(model)
    assert {"pointing", "gradcam_pointing", "gradcam_likelihood_pointing", "miou", "untrained_objects_miou"} <= set(words)
    assert {"untrained_pointing", "gap_named_high"} <= set(numbers) and {"masking/pointing", "masking/gap_named"} <= set(found)


def test_a_validation_takes_its_inputs_to_the_device_and_its_numbers_from_there(world: Path) -> None:
    loaded = load_for_inference(world / "run")
    run = RunConfig(validation_samples=6, pictures=2)
    config = TrainConfig(model=loaded.config.model, data=DataConfig(validation=str(world / "data")), run=run)
    with fake_gpu():
        model = loaded.model.to(GPU)
        validation = Validation.of(config, loaded.tokenizer, RUNTIME, batch_size=3)
        assert {"validation/loss", "validation/t2i_r1", "masking/caption_ignored"} <= set(validation.numbers(model))
        images, texts = validation.pictures(model)
    assert len(images) == 2 and "captions" in texts

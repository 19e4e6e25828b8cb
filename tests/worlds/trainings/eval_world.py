"""Small real inputs for the evaluation tests: a verified data set folder of drawn scenes and a sealed checkpoint."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch

from data_pipeline.files import sha256_file
from data_pipeline.shards.verify import verify
from data_pipeline.world.drawn.canvas import encode_jpeg
from data_pipeline.world.drawn.demo_pixels import draw
from data_pipeline.world.drawn.demo_scenes import CLASSES, class_templates, sample_scenes
from sycoca_ds.config import (
    DecoderConfig,
    ImageEncoderConfig,
    MaskingConfig,
    ModelConfig,
    TextEncoderConfig,
    TrainConfig,
)
from tests.worlds.data.data_sets import parts, write_tar

SMALL = ModelConfig(
    embed_dim=32,
    image=ImageEncoderConfig(image_size=48, patch_size=8, layers=2, width=32, heads=2),
    text=TextEncoderConfig(context_length=40, vocab_size=300, layers=2, width=32, heads=2),
    text_decoder=DecoderConfig(layers=1, width=32, heads=2),
    image_decoder=DecoderConfig(layers=1, width=32, heads=2),
    masking=MaskingConfig(),
)


def url_of(number: int) -> str:
    return f"http://127.0.0.1:8000/test/{number:06d}.jpg"


def make_data(folder: Path, images: int = 24, captions: int = 1, shards: int = 2) -> Path:
    """A data set folder with `images` scenes, each with `captions` captions (samples of one url), in `shards` tars."""
    scenes = sample_scenes(images, seed=5)
    samples = [(image, caption) for image in range(images) for caption in range(captions)]
    per_shard = -(-len(samples) // shards)
    for shard in range(shards):
        members = []
        for place, (image, caption) in enumerate(samples[shard * per_shard : (shard + 1) * per_shard]):
            text = scenes[image].caption if caption == 0 else f"picture number {caption}: {scenes[image].caption}"
            uid = hashlib.sha256(f"{url_of(image)} {text}".encode()).hexdigest()[:16]
            meta = {"uid": uid, "url": url_of(image), "caption": text, "width": 64, "height": 64}
            jpeg = encode_jpeg(draw(scenes[image], (5, image)))
            members += parts(f"{shard:05d}{place:04d}", jpg=jpeg, txt=text.encode(), json=json.dumps(meta).encode())
        write_tar(folder / "shards" / f"{shard:05d}.tar", members)
    verify(folder, 1)
    return folder


def make_labels(path: Path, images: int = 24) -> Path:
    scenes = sample_scenes(images, seed=5)
    labels = {url_of(number): scene.label for number, scene in enumerate(scenes)}
    value = {"name": "scenes", "classes": list(CLASSES), "templates": class_templates(2), "labels": labels}
    path.write_text(json.dumps(value))
    return path


def make_tokenizer(path: Path) -> Path:
    """A BPE on the scenes' captions with the contract's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = ["<pad>", "<start_of_text>", "<end_of_text>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    bpe.train_from_iterator([scene.caption for scene in sample_scenes(200, seed=7)], trainer)
    bpe.save(str(path))
    return path


def make_run(
    folder: Path,
    model: ModelConfig = SMALL,
    seed: int = 3,
    step: int = 7,
    average_of: int | None = None,
    tokenizer: Callable[[Path], Path] = make_tokenizer,
    diverged: str | None = None,
) -> Path:
    """A run folder with one sealed checkpoint of an untrained model (no ZeRO) and a metrics.jsonl.

    Args:
        average_of: seed of other weights that are there as the moving average, cut over two ranks.
        tokenizer: writes the run's tokenizer.
        diverged: beginning of the names of weights that are NaN; "" all.
    """
    from sycoca_ds.engine.checkpoint.seal import write_seal
    from sycoca_ds.model.sycoca import SyCoCa

    place = folder / "checkpoints" / f"step_{step:08d}"
    place.mkdir(parents=True)
    config = dataclasses.replace(TrainConfig(), model=dataclasses.replace(model, init_std=0.2))
    if average_of is not None:
        config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, ema_decay=0.99))
        flat = {name: value.flatten() for name, value in SyCoCa(config.model, seed=average_of).state_dict().items()}
        cut = {name: len(value) // 2 for name, value in flat.items()}
        torch.save({name: (0, flat[name][:half].clone()) for name, half in cut.items()}, place / "ema_rank_00000.pt")
        torch.save({name: (half, flat[name][half:].clone()) for name, half in cut.items()}, place / "ema_rank_00001.pt")
    weights = SyCoCa(config.model, seed=seed).state_dict()
    for name in weights if diverged is not None else ():
        if name.startswith(diverged):
            weights[name].fill_(float("nan"))
    torch.save({"module": weights}, place / "mp_rank_00_model_states.pt")
    tokenizer(place / "tokenizer.json")
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in sorted(place.iterdir())}
    state = {
        "step": step,
        "samples": step * 256,
        "world_size": 1,
        "zero_stage": 0,
        "manifest_digest": "0" * 64,
        "config": dataclasses.asdict(config),
        "extra": {},
        "versions": {},
        "files": files,
    }
    write_seal(place, state)
    lines = [
        {
            "step": s,
            "samples": 256 * s,
            "loss": 9 / s,
            "itc": 5 / s,
            "ic": 3 / s,
            "mim": 1 / s,
            "lr": 1e-3,
            "grad_norm": 1.0 + 1 / s,
            "logit_scale": 14.0,
            "samples_per_second": 300.0,
            "data_wait": 0.01,
        }
        for s in range(1, 8)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def made_of_pictures(folder: Path, task: str) -> set[str]:
    """The numbers of a task that what each picture left makes again, each the value of results.json."""
    from sycoca_ds.eval.comparison.folders import Evaluation
    from sycoca_ds.eval.comparison.numbers import additive_numbers
    from sycoca_ds.eval.registry import METRICS

    evaluation = Evaluation.read(folder)
    metrics = evaluation.results["tasks"][task]["metrics"]
    found = additive_numbers(task, {k: v for k, v in evaluation.each(task).items() if k != "image_id"}, METRICS[task])
    for name, number in found.items():
        assert abs(number.value - metrics[name]) <= 1e-9 * max(1, abs(metrics[name])), (task, name, number.value, metrics[name])
    return set(found)

"""Our numbers of a WebDataset are CLIP_benchmark's, of the same weights on the same tars: it runs itself, with the model in
open_clip's layout, in a process of its own (`make peer`)."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.eval.exports.tars import Tars
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.open_clip.world import SMALL, ask, clip_benchmark, export_for_open_clip, has_benchmark, random_weights, run_export
from tests.worlds.published.exported import Shown, scenes, write_wds
from tests.worlds.trainings.eval_world import SMALL as TRAINED
from tests.worlds.trainings.eval_world import make_run, make_tokenizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_benchmark(), reason="CLIP_benchmark is not installed beside open_clip: `make peer` does it"),
]
CLASSES = tuple(f"{colour} {shape}" for colour in ("red", "green", "blue") for shape in ("square", "ring", "cross"))
TEMPLATES = ("a large {c} in the west", "{c}", "a picture of a small {c}.")


def as_large(sample: Shown, number: int) -> Shown:
    """Of another size each, so that resizing and cropping have something to do."""
    import io

    from PIL import Image

    image, stream = Image.open(io.BytesIO(sample.picture)), io.BytesIO()
    image.resize((60 + number, 90 - number), Image.Resampling.BICUBIC).save(stream, "PNG")
    return dataclasses.replace(sample, picture=stream.getvalue(), label=number % 9, extension="png")


def test_our_numbers_are_clip_benchmarks(tmp_path):
    tokenizer = Tokenizer(make_tokenizer(tmp_path / "tokenizer.json"))
    text = dataclasses.replace(
        SMALL.text,
        context_length=40,
        vocab_size=tokenizer.vocab_size,
        sot_id=tokenizer.sot_id,
        eot_id=tokenizer.eot_id,
    )
    config = dataclasses.replace(SMALL, text=text)
    theirs = export_for_open_clip(config, random_weights(config), tmp_path, tokenizer.path)
    samples = [as_large(sample, number) for number, sample in enumerate(scenes(40, captions=2))]
    folders = {
        "classes": write_wds(tmp_path / "sets/wds_classes", samples, CLASSES, TEMPLATES, per_shard=15),
        "captions": write_wds(tmp_path / "sets/wds_captions", samples, kind="retrieval", per_shard=15),
    }
    # labels that are partly right, or both would get next to nothing
    ask([{"model": theirs, "sets": {"classes": folders["classes"]}, "answers": tmp_path / "guess.json"}], tmp_path, "benchmark.py")
    logit_NK = np.array(json.loads((tmp_path / "guess.json").read_text())["classes"]["logits"])
    place = np.random.default_rng(0).choice([0, 1, 3, 6], len(samples))
    labels = np.argsort(-logit_NK, axis=1)[np.arange(len(samples)), place]
    samples = [dataclasses.replace(sample, label=int(label)) for sample, label in zip(samples, labels, strict=True)]
    write_wds(folders["classes"], samples, CLASSES, TEMPLATES, per_shard=15)
    ask([{"model": theirs, "sets": folders, "answers": tmp_path / "answers.json"}], tmp_path, "benchmark.py")
    expected = json.loads((tmp_path / "answers.json").read_text())

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        options = EvaluateConfig(
            str(tmp_path / "ours"),
            data_root=str(tmp_path / "sets"),
            sets=("wds:classes", "wds:captions"),
            tasks=("classification", "retrieval"),
            out=str(tmp_path / "out"),
            device="cpu",
            precision="fp32",
        )
        assert evaluate(options) == 0
    finally:
        torch.set_num_threads(threads)
    records = json.loads((tmp_path / "out/sets.json").read_text())["sets"]
    found = records["wds:classes"]["metrics"]["classification"]
    assert expected["classes"]["label"] == Tars().read(folders["classes"], "test").label_N.tolist() == labels.tolist()
    for ours, name in (("top1", "acc1"), ("top5", "acc5"), ("mean_per_class", "mean_per_class_recall")):
        assert found[ours] == pytest.approx(100 * expected["classes"][name], abs=1e-4), name
    assert 10 < found["top1"] < 60 < found["top5"] < 90, "neither chance nor everything"
    hit_N = np.load(tmp_path / "out/wds_classes/each/classification.npz")["top1"] == 100
    assert (hit_N == (np.argmax(expected["classes"]["logits"], axis=1) == labels)).all(), "picture by picture"
    found = records["wds:captions"]["metrics"]["retrieval"]
    for side, name in (("i2t", "text"), ("t2i", "image")):
        for k in (1, 5, 10):
            assert found[f"{side}_r{k}"] == pytest.approx(100 * expected["captions"][f"{name}_retrieval_recall@{k}"], abs=1e-4)
    print("CLIP_benchmark", {name: value for name, value in expected["classes"].items() if name.startswith(("acc", "mean"))})
    print("CLIP_benchmark", expected["captions"])


def test_clip_benchmarks_command_takes_an_exported_folder(tmp_path):
    """As its users type it; what it writes is what we measure of the same weights."""
    run = make_run(
        tmp_path / "run", dataclasses.replace(TRAINED, text=dataclasses.replace(TRAINED.text, attention_mask="open_clip"))
    )
    assert run_export(run, "--to", "open_clip", "--out", tmp_path / "theirs") == 0
    samples = [as_large(sample, number) for number, sample in enumerate(scenes(18))]
    data = write_wds(tmp_path / "sets/wds_classes", samples, CLASSES, TEMPLATES, per_shard=9)
    words = [
        "eval",
        "--model",
        f"local-dir:{tmp_path / 'theirs'}",
        "--pretrained",
        "",
        "--dataset",
        "wds/peer",
        "--num_workers",
        "0",
    ]
    words += [
        "--dataset_root",
        str(data),
        "--task",
        "zeroshot_classification",
        "--no_amp",
        "--output",
        str(tmp_path / "typed.json"),
    ]
    clip_benchmark(*words)
    typed = json.loads((tmp_path / "typed.json").read_text())["metrics"]
    out = {
        "sets": ("wds:classes",),
        "tasks": ("classification",),
        "out": str(tmp_path / "out"),
        "device": "cpu",
        "precision": "fp32",
    }
    assert evaluate(EvaluateConfig(str(run), data_root=str(tmp_path / "sets"), **out)) == 0
    found = json.loads((tmp_path / "out/sets.json").read_text())["sets"]["wds:classes"]["metrics"]["classification"]
    for ours, name in (("top1", "acc1"), ("top5", "acc5"), ("mean_per_class", "mean_per_class_recall")):
        assert found[ours] == pytest.approx(100 * typed[name], abs=1e-4), name
    assert 0 < found["top5"] < 100

"""What real runs of two ranks leave: every number against the checkpoint of the same step, each step once after a resume, texts and
pictures, the best checkpoint, and the line for masks that do not depend on the caption."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from data_pipeline.errors import UserError
from data_pipeline.shards.verify import verify
from sycoca_ds.config import DataConfig, MaskingConfig, TrainConfig
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.engine.batches import plan_batches
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.engine.feed import start_feed
from sycoca_ds.engine.monitoring.best import best_step
from sycoca_ds.engine.monitoring.curves import CHARTS, CLOCK, OF_REGIONS, RECALLS, TAGS, tag_of
from sycoca_ds.engine.monitoring.meters import batch_tflops
from sycoca_ds.engine.monitoring.validation import Validation
from sycoca_ds.engine.preparation import make_plan
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.masking.attending import attending
from sycoca_ds.eval.regions.patches import UNNAMED, read_regions
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.stats.controls import wrong_captions
from sycoca_ds.eval.tasks.masking import run_masking
from sycoca_ds.eval.tasks.retrieval import run_retrieval
from sycoca_ds.options import from_dict
from sycoca_ds.presets import PRESETS
from tests.worlds.data.data_sets import parts, picture, write_data_set, write_regions, write_tar
from tests.worlds.processes.launching import finish, start_warm
from tests.worlds.trainings.training import SMALL, STEPS, in_turn

PEAK = 0.25
"""TFLOP/s that the runs are told a device has."""


@pytest.fixture(scope="module", params=["zero1", pytest.param("zero3", marks=pytest.mark.full)])
def watched(request: pytest.FixtureRequest, data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks through all steps; then once more from step 2 on, as if the rest had been lost."""
    folder = tmp_path_factory.mktemp("watched")
    options = ["--data.validation", str(data_set), "--run.validation-samples", "1000", "--run.pictures", "3"]
    options += ["--run.ds-config", f"ds_configs/{request.param}.json"]
    options += ["--run.picture-every", "2", "--run.peak-tflops", str(PEAK), "--optim.accumulation-steps", "2"]
    for _ in range(2):
        assert in_turn(folder, data_set, [(folder / "run", options)], ranks=2) == [""]
        if not (folder / "first.jsonl").exists():
            shutil.copyfile(folder / "run/metrics.jsonl", folder / "first.jsonl")
            shutil.rmtree(folder / f"run/checkpoints/step_{STEPS:08d}")
    return folder / "run"


CHOOSE = {
    "attention": [],
    "noise": ["--model.masking.mask-by", "random"],
    "coca": ["--model.family", "coca"],
    "global": ["--model.masking.similarity", "global"],
}
"""What chooses the masks: the scores, noise, nothing since there are none, scores that know no words."""


@pytest.fixture(scope="module", params=CHOOSE)
def with_regions(request: pytest.FixtureRequest, data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same ranks with 24 validation pictures of which regions are known."""
    folder = tmp_path_factory.mktemp("regions")
    held = write_data_set(folder / "held", [11, 13], seed=4)
    options = ["--data.validation", str(held), "--run.pictures", "0", "--run.picture-every", "4"]
    options += ["--run.ds-config", "ds_configs/zero1.json"]
    options += ["--data.regions", str(write_regions(held, folder / "held_regions/all_regions.json")), *CHOOSE[request.param]]
    assert in_turn(folder, data_set, [(folder / "run", options)], ranks=2) == [""]
    return folder / "run"


def records(run: Path, key: str) -> dict[int, dict]:
    """The records that have a number, by step, each step once."""
    found = [record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if key in record]
    assert len({record["step"] for record in found}) == len(found)
    return {record["step"]: record for record in found}


def board(run: Path) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    return found.Reload()


@pytest.mark.slow
def test_every_number_has_each_step_once_after_a_resume(watched: Path) -> None:
    curves = board(watched)
    assert [event.step for event in curves.Scalars("loss/total")] == list(records(watched, "loss")) == [1, 2, 3, 4]
    assert [event.step for event in curves.Scalars("retrieval/t2i_r1")] == list(records(watched, "validation/t2i_r1")) == [0, 2, 4]
    assert [event.step for event in curves.Scalars("speed/checkpoint_seconds")] == list(records(watched, "checkpoint_seconds"))
    assert [event.step for event in curves.Images("pictures/00")] == [0, 2, 4]
    for key in {key for step in (1, 2, 3, 4) for key in records(watched, "loss")[step]} - {"step"}:
        values = [event.value for event in curves.Scalars(tag_of(key))]
        assert values == pytest.approx([record[key] for record in records(watched, "loss").values()], rel=1e-6), key
    before = [json.loads(line) for line in (watched.parent / "first.jsonl").read_text().splitlines()]
    now = list(records(watched, "validation/loss").values())
    first, again = (
        [{k: v for k, v in r.items() if k not in CLOCK} for r in them if "validation/loss" in r] for them in (before, now)
    )
    assert first == again and len(again) == 3


@pytest.mark.slow
def test_every_curve_of_the_layout_is_there_but_for_the_gpu(watched: Path) -> None:
    found = set(board(watched).Tags()["scalars"])
    wanted = {TAGS[key] for page, charts in CHARTS.items() if page != OF_REGIONS for keys in charts.values() for key in keys}
    answers = {tag for tag in wanted if "vqa" in tag or tag.endswith("fusion")}  # of a run that learns to answer
    assert wanted - found == {"speed/max_memory_gib"} | answers and len(answers) == 6
    assert not [tag for tag in found if tag.startswith("masking_regions/")]


@pytest.mark.slow
def test_flops_and_mfu_are_those_of_the_samples_of_each_step(watched: Path, data_set: Path) -> None:
    saved = json.loads((watched / "config.json").read_text())
    config = from_dict(TrainConfig, saved, "config.json")
    batches, sources = plan_batches(config, 2), Sources.of(config.data)
    plan, tokenizer = make_plan(config, sources, batches), Tokenizer(watched / "tokenizer.json")
    work = [0.0] * STEPS
    for rank in range(2):
        runtime = Runtime(rank, rank, 2, torch.device("cpu"), 2)
        feed = start_feed(config, runtime, sources, plan, tokenizer, batches, first_step=0, last_step=STEPS)
        for number, batch in enumerate(feed):
            work[number // 2] += batch_tflops(config.model, batch.text_BL)
    for step, record in records(watched, "loss").items():
        a_sample = record["model_tflops_per_second"] / record["samples_per_second"]
        assert a_sample == pytest.approx(work[step - 1] / 16, rel=1e-5)
        assert record["mfu"] == pytest.approx(record["model_tflops_per_second"] / (2 * PEAK))
        assert record["samples_per_second_per_device"] == pytest.approx(record["samples_per_second"] / 2)
        assert record["grad_norm"] ** 2 == pytest.approx(
            sum(v**2 for k, v in record.items() if k.startswith("grad_norm/")), rel=1e-5
        )
        assert 0 < record["data_wait"] < 1 and 0.1 < record["host_memory_gib"] < 8


@pytest.mark.slow
def test_retrieval_is_what_the_evaluation_finds_in_the_checkpoint(watched: Path, data_set: Path) -> None:
    """But for texts that tie: the evaluation pads all captions alike, which moves the last bit."""
    loaded = load_for_inference(watched)
    collection = Collection(data_set, loaded.config.model.image.image_size)
    bench = Bench(loaded.model, loaded.config, loaded.tokenizer, collection, torch.device("cpu"))
    expected, found = run_retrieval(bench), records(watched, "validation/t2i_r1")[STEPS]
    assert len(collection) == 96
    for name in RECALLS:
        assert found[f"validation/{name}"] == pytest.approx(expected.numbers[name], abs=3.2), name
        assert found[f"validation/chance_{name}"] == pytest.approx(expected.chance[name])


@pytest.mark.slow
def test_masking_is_what_the_scores_of_the_checkpoint_come_to(watched: Path, data_set: Path) -> None:
    loaded = load_for_inference(watched)
    collection = Collection(data_set, loaded.config.model.image.image_size)
    images = torch.stack([collection.image(number) for number in range(len(collection))])
    own = [captions[0] for captions in collection.captions_of_image]
    other = [own[number] for number in wrong_captions(collection.captions_of_image)]
    length, scores = loaded.config.model.text.context_length, []
    for captions in (own, other):
        text_BL = torch.from_numpy(loaded.tokenizer.encode(captions, length))
        with torch.no_grad():
            scores.append(loaded.model("reconstruct", image_BCHW=images, text_BL=text_BL)["scores_BN"])
    found = records(watched, "masking/caption_overlap")[STEPS]
    for name, value in attending(*scores, loaded.config.model.masking).items():
        assert found[f"masking/{name}"] == pytest.approx(value, abs=1e-3), name


@pytest.mark.slow
def test_the_best_step_is_the_one_with_the_largest_recall_among_the_saved(watched: Path) -> None:
    recalls = {step: record["validation/t2i_r1"] for step, record in records(watched, "validation/t2i_r1").items() if step}
    assert set(recalls) == {2, 4}
    assert best_step(watched) == (2 if recalls[2] >= recalls[4] else 4)
    assert json.loads((watched / "best.json").read_text())["value"] == recalls[best_step(watched)]


@pytest.mark.slow
def test_what_masks_find_is_what_the_evaluation_finds_in_the_checkpoint(with_regions: Path) -> None:
    """By the task masking, which pads all captions alike and draws other random masks."""
    loaded = load_for_inference(with_regions)
    collection = Collection(loaded.config.data.validation, loaded.config.model.image.image_size)
    image, text = loaded.config.model.image, loaded.config.model.text
    regions = read_regions(loaded.config.data.regions, collection, loaded.tokenizer, image.patch_size, text.context_length)
    assert regions.counts["annotated"] == 24
    bench = Bench(loaded.model, loaded.config, loaded.tokenizer, collection, torch.device("cpu"), Inputs(regions=regions))
    expected, found = run_masking(bench), records(with_regions, "masking/named_over_rest")
    assert list(found) == [0, 4]
    same = [name for name in expected.numbers if f"masking/{name}" in found[STEPS]]
    model = loaded.config.model
    missing = {"gap_named", "random_gap_unnamed"} if model.family == "coca" else set()
    missing |= {"no_text_word_iou", "pointing"} if model.masking.similarity == "global" else set()
    asked = {"named_over_unnamed", "no_text_word_iou", "pointing", "gap_named", "random_gap_unnamed", "caption_overlap"}
    assert asked & set(same) == asked - missing
    for name in same:
        if not name.startswith("random_"):
            assert found[STEPS][f"masking/{name}"] == pytest.approx(expected.numbers[name], abs=0.02), name
    curves = board(with_regions)
    pages = Layout.FromString(curves.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]).category
    shown = {
        tag.removesuffix("$") for page in pages if page.title == OF_REGIONS for chart in page.chart for tag in chart.multiline.tag
    }
    keys = {key for keys in CHARTS[OF_REGIONS].values() for key in keys} & found[STEPS].keys()
    assert shown == {TAGS[key] for key in keys}
    for key in keys:
        assert [event.value for event in curves.Scalars(TAGS[key])] == pytest.approx([record[key] for record in found.values()]), (
            key
        )


def test_regions_need_the_pictures_they_are_of(data_set: Path, tmp_path: Path) -> None:
    config = TrainConfig(data=DataConfig(regions="regions.json"))
    with pytest.raises(UserError, match="data.regions = regions.json without data.validation"):
        Validation.of(config, Tokenizer(data_set / "tokenizer.json"), Runtime(0, 0, 1, torch.device("cpu"), 1), 4)


def test_a_warm_up_that_these_pictures_cannot_end_is_refused(data_set: Path, tmp_path: Path) -> None:
    tokenizer, runtime = Tokenizer(data_set / "tokenizer.json"), Runtime(0, 0, 1, torch.device("cpu"), 1)
    held = write_data_set(tmp_path / "held", [6], seed=4)
    regions = write_regions(held, tmp_path / "held_regions/all_regions.json")
    model = dataclasses.replace(PRESETS["tiny"].model, masking=MaskingConfig(warmup_until=0.6, warmup_metric="named_over_unnamed"))
    config = TrainConfig(model=model, data=DataConfig(validation=str(held), regions=str(regions)))
    assert Validation.of(config, tokenizer, runtime, 4).regions.shows(UNNAMED)
    content = json.loads(regions.read_text())
    for record in content["pictures"].values():
        del record["objects"][1]
    regions.write_text(json.dumps(content))
    with pytest.raises(UserError, match="warmup-metric = named_over_unnamed: the captions leave out no object that their pictures"):
        Validation.of(config, tokenizer, runtime, 4)
    by_default = dataclasses.replace(config, model=dataclasses.replace(model, masking=MaskingConfig(warmup_until=0.6)))
    found = Validation.of(by_default, tokenizer, runtime, 4)
    found.collection.captions_of_image = [["a picture"]] * 6
    found.other_I = found._other_captions()
    with pytest.raises(UserError, match="no validation could end it, since nearly all captions of data.validation = .* are equal"):
        found._check_warmup()


@pytest.mark.slow
def test_texts_tell_the_configuration_and_the_environment(watched: Path) -> None:
    curves = board(watched)

    def text(tag: str) -> str:
        return curves.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()

    config = json.loads(text("run/configuration").strip("`\n"))
    assert config == json.loads((watched / "config.json").read_text())
    assert json.loads(text("run/deepspeed").strip("`\n"))["train_batch_size"] == 16
    environment = dict(line.strip("| ").split(" | ") for line in text("run/environment").splitlines()[2:])
    assert environment["deepspeed"] == "0.19.8" and environment["ranks"] == "2"
    assert environment["peak TFLOP/s of a device"] == str(PEAK)
    assert text("captions").splitlines()[0] == "| picture | caption | generated |" and len(text("captions").splitlines()) == 5


@pytest.mark.slow
def test_pictures_are_large_enough_to_read(watched: Path) -> None:
    """Two panels of at least 300 pixels a row, four panels, words below."""
    curves = board(watched)
    assert curves.Tags()["images"] == ["pictures/00", "pictures/01", "pictures/02"]
    shown = Image.open(io.BytesIO(curves.Images("pictures/00")[-1].encoded_image_string))
    assert 600 < shown.width < 800 and 680 < shown.height < 1000


def test_masks_that_ignore_the_caption_are_told_once_after_the_warm_up(data_set: Path, tmp_path: Path) -> None:
    """Captions that differ in letters and are the same ids: "&amp;" is cleaned to "&"."""
    captions = ["a red & a blue square", "a red &amp; a blue square"]
    members = []
    for number in range(16):
        facts = {"uid": f"{number:016x}", "url": f"http://example.org/same/{number}.jpg", "width": 24, "height": 16}
        members += parts(f"{number:09d}", jpg=picture(), txt=captions[number % 2].encode(), json=json.dumps(facts).encode())
    write_tar(tmp_path / "same/shards/00000.tar", members)
    verify(tmp_path / "same", processes=1)
    options = ["--data.train", str(data_set), "--run.out", str(tmp_path / "run"), "--run.ds-config", "ds_configs/zero0.json"]
    options += ["--data.validation", str(tmp_path / "same"), "--run.picture-every", "1", "--run.pictures", "1"]
    status, output = finish(start_warm([*SMALL, *options], ranks=0))
    assert status == 0, output[-3000:]
    told = [line for line in output.splitlines() if "the masks do not know the caption: they ignore it" in line]
    assert len(told) == 1 and told[0].startswith("step 2: "), "two steps of warm-up"
    assert [record["masking/caption_ignored"] for record in records(tmp_path / "run", "masking/caption_ignored").values()] == [
        1.0
    ] * 5


def test_a_family_without_masks_is_not_measured_and_the_smaller_loss_is_the_better(data_set: Path, tmp_path: Path) -> None:
    options = ["--data.train", str(data_set), "--run.out", str(tmp_path / "run"), "--run.ds-config", "ds_configs/zero0.json"]
    options += ["--data.validation", str(data_set), "--run.validation-samples", "20", "--model.family", "clip"]
    options += ["--run.pictures", "0", "--run.picture-every", "2", "--run.best-metric", "validation/itc"]
    status, output = finish(start_warm([*SMALL, *options], ranks=0))
    assert status == 0, output[-3000:]
    last = records(tmp_path / "run", "validation/t2i_r1")[STEPS]
    assert not [name for name in last if name.startswith("masking/")] and last["validation/chance_t2i_r1"] == 5.0
    curves = board(tmp_path / "run")
    assert not curves.Tags()["images"] and "mfu" not in records(tmp_path / "run", "loss")[1]
    saved = {
        step: record["validation/itc"] for step, record in records(tmp_path / "run", "validation/itc").items() if step in (2, 4)
    }
    assert best_step(tmp_path / "run") == min(saved, key=saved.get)

"""Real runs of `sycoca_ds/train.py` in real processes: parity of ranks and ZeRO stages, kill and resume, refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.checkpoint.restoring import check_same_model
from sycoca_ds.engine.checkpoint.seal import damage, newest_whole, sealed
from sycoca_ds.engine.checkpoint.weights import load_for_inference
from sycoca_ds.engine.preparation import check_before_start
from sycoca_ds.engine.ranks.runtime import Runtime
from sycoca_ds.model import decoders
from sycoca_ds.model.sycoca import SyCoCa
from sycoca_ds.options import parse_options
from sycoca_ds.presets import PRESETS
from tests.worlds import REPOSITORY
from tests.worlds.processes.launching import LIMIT, finish, run_on_ranks, start, start_warm
from tests.worlds.processes.today import wanting
from tests.worlds.trainings.training import (
    SMALL,
    STEPS,
    assert_same_run,
    average,
    in_turn,
    losses,
    run,
    train_here,
    weights,
    with_validation,
)

pytestmark = pytest.mark.timeout(900)  # the first test of a kind waits for several runs
AVERAGED = ["--optim.ema-decay", "0.9"]
ZERO_3 = ["--run.ds-config", "ds_configs/zero3.json"]


@pytest.fixture(scope="module")
def alone(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, no ZeRO: the reference."""
    return run(tmp_path_factory.mktemp("runs") / "alone", data_set, "--run.ds-config", "ds_configs/zero0.json", ranks=0)


@pytest.fixture(scope="module")
def two_ranks(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, ZeRO-3, with a moving average of the weights."""
    return run(tmp_path_factory.mktemp("runs") / "two", data_set, *ZERO_3, *AVERAGED, ranks=2)


def test_two_ranks_with_zero_3_equal_one_rank_without(two_ranks: Path, alone: Path) -> None:
    assert_same_run(two_ranks, alone)


@pytest.mark.full
def test_a_run_whose_blocks_are_compiled_is_the_same(alone: Path, data_set: Path, tmp_path: Path) -> None:
    words = [*SMALL, *ZERO_3, "--data.train", str(data_set), "--run.out", str(tmp_path / "run"), "--run.compile", "blocks"]
    status, output = finish(start_warm(words, 1))
    assert status == 0 and " blocks, at their first use: the first step takes longer" in output, output[-3000:]
    assert_same_run(tmp_path / "run", alone)


def on_a_rank(runtime: Runtime, folder: str, data: str, *stages: str) -> None:
    """Runs with the captioning loss in pieces whose number differs from rank to rank."""
    decoders.LOGITS_AT_ONCE = 10 * 512
    for stage in stages:
        options = ["--run.ds-config", f"ds_configs/{stage}.json", "--optim.accumulation-steps", "2"]
        train_here(runtime, [*SMALL, "--data.train", data, "--run.out", f"{folder}/{stage}", *options])


@pytest.fixture(scope="module")
def in_pieces(data_set: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("in_pieces")
    run_on_ranks(
        folder, __name__, str(folder), str(data_set), *(item.callspec.params["stage"] for item in wanting(request, "in_pieces"))
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", pytest.param("zero3_offload", marks=pytest.mark.full)])
def test_two_micro_batches_on_two_ranks_equal_one_batch_on_one(stage: str, in_pieces: Path, alone: Path) -> None:
    """The contrast is over all pairs, the mean over all tokens of captions of different lengths. The guard stands before an
    optimizer on the device, and before one on the host; all stages of the engine: test_exactness.py."""
    assert_same_run(in_pieces / stage, alone)


def test_masks_are_random_during_mask_warmup(data_set: Path, tmp_path: Path) -> None:
    """The first step has the same weights and the same contrast, but other masks than without the warm-up. At a learning rate of 0
    every step has them: the first two are those of `mask_by = random`, the others those of attention."""
    options = ["--optim.lr", "0", "--run.ds-config", "ds_configs/zero0.json"]
    ways = {"warm": ["--model.masking.mask-warmup", "2"], "random": ["--model.masking.mask-by", "random"], "attention": []}
    in_turn(tmp_path, data_set, [(tmp_path / way, [*options, *more]) for way, more in ways.items()], ranks=0)
    warm, random, attention = (losses(tmp_path / way) for way in ways)
    for name in ("ic", "mim"):
        found, noise, scores = ([record[name] for record in records] for records in (warm, random, attention))
        assert found == noise[:2] + scores[2:] and not set(noise) & set(scores)
    assert [record["itc"] for record in warm] == [record["itc"] for record in attention]


def test_masks_are_random_until_a_validation_finds_that_scores_know_the_caption(data_set: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 every validation finds the same number: a bound there lets masks be attentive from the first step,
    one above it never. Training on from there with another bound, it is remembered that it was reached."""
    options = ["--optim.lr", "0", "--run.ds-config", "ds_configs/zero0.json", "--run.seed", "99", *with_validation(data_set)]
    options += ["--run.validation-samples", "96"]
    ways = {"attention": [], "random": ["--model.masking.mask-by", "random"]}
    in_turn(tmp_path, data_set, [(tmp_path / way, [*options, *more]) for way, more in ways.items()], ranks=0)
    numbers = json.loads((tmp_path / "attention" / "metrics.jsonl").read_text().splitlines()[0])
    found = numbers["masking/own_caption_higher"]
    assert found > numbers["masking/chance_higher"] + 0.05, "chance has made it so with this seed: of the first 100 two are as far"
    reached, never = (["--model.masking.warmup-until", str(bound)] for bound in (found, found + 0.01))
    ways = {"reached": reached, "never": never, "remembered": ["--optim.steps", "2", *reached]}
    in_turn(tmp_path / "more", data_set, [(tmp_path / way, [*options, *more]) for way, more in ways.items()], ranks=0)
    in_turn(tmp_path / "on", data_set, [(tmp_path / "remembered", [*options, *never])], ranks=0)
    for way, same in {"reached": "attention", "never": "random", "remembered": "attention"}.items():
        assert [record["mim"] for record in losses(tmp_path / way)] == [record["mim"] for record in losses(tmp_path / same)], way
    ways = {"two_attention": [], "two_reached": reached}
    runs = [(tmp_path / way, [*options, "--optim.steps", "2", *more]) for way, more in ways.items()]
    in_turn(tmp_path / "two", data_set, runs, ranks=2)
    first, second = ([record["mim"] for record in losses(tmp_path / way, 2)] for way in ways)
    assert first == second, "on two ranks, of which one has the numbers"


def test_a_warm_up_that_no_validation_can_end_is_refused(data_set: Path, tmp_path: Path) -> None:
    ways = {
        "expected data.validation with it": ["--model.masking.warmup-until", "0.6"],
        "expected model.masking.mask-by = attention": [
            *("--model.masking.warmup-until", "0.6", "--model.masking.mask-by", "random"),
            *with_validation(data_set),
        ],
        "warmup-metric = named_over_unnamed without data.regions: it is not known": [
            *("--model.masking.warmup-until", "0.6", "--model.masking.warmup-metric", "named_over_unnamed"),
            *with_validation(data_set),
        ],
        "expected 0.5, which is chance, to below 1": ["--model.masking.warmup-until", "1.5", *with_validation(data_set)],
    }
    for said, options in ways.items():
        with pytest.raises(UserError, match=said):
            check_before_start(parse_options([*SMALL, "--data.train", str(data_set), "--run.out", str(tmp_path), *options]))


@pytest.mark.parametrize(
    "stage, ranks, broken, ends, said",
    [
        ("zero0", 0, [2], 0, "completed at step 4"),
        ("zero0", 2, [3], 0, "completed at step 4"),  # the first of two micro-batches, on one rank
        ("zero1", 0, [2], 0, "completed at step 4"),
        ("zero1", 0, [2, 3, 4], 1, "2 steps in a row to step 3 were skipped for gradients that are not finite"),
    ],
)
def test_gradients_that_are_not_finite_never_reach_the_weights(
    stage: str, ranks: int, broken: list[int], ends: int, said: str, data_set: Path, tmp_path: Path
) -> None:
    """One such step is skipped and counted, without ZeRO as with it, several in a row end the run; meanwhile nothing is saved."""
    script, out = tmp_path / "broken.py", tmp_path / "run"
    script.write_text(
        f"import os, sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom sycoca_ds.model.sycoca import SyCoCa\n"
        "from sycoca_ds.train import end_process, on_every_rank, run_command\nplain, calls = SyCoCa._train, []\n"
        "def train(self, **inputs):\n    report = plain(self, **inputs)\n    calls.append(1)\n"
        f"    bad = len(calls) in {broken} and os.environ.get('RANK', '0') == '0'\n"
        "    return report | {'loss': report['loss'] * (float('nan') if bad else 1)}\n"
        "SyCoCa._train = train\nend_process(run_command(on_every_rank))\n"
    )
    options = ["--run.ds-config", f"ds_configs/{stage}.json", "--run.max-skipped-steps", "2", "--run.checkpoint-every", "1"]
    options += ["--guard.rewind-after", "0"]
    options += ["--optim.accumulation-steps", "2"] if ranks else []
    words = [*SMALL, "--data.train", str(data_set), "--run.out", str(out), *options]
    status, output = finish(start_warm(words, ranks=ranks, script=script))
    assert (status == 0) == (ends == 0) and said in output, output[-3000:]
    assert json.loads((out / "run_status.json").read_text())["status"] == ("failed" if ends else "completed")
    assert all(torch.isfinite(value).all() for value in weights(out).values())
    saved = [int(folder.name[5:]) for folder in sealed(out / "checkpoints")]
    assert saved == ([1] if ends else [4, 3, 1])
    if not ends:
        assert [record["skipped_steps"] for record in losses(out)] == [0, 1, 1, 1]


def test_a_run_starts_from_given_weights(data_set: Path, alone: Path, tmp_path: Path) -> None:
    """At a learning rate of 0 they are what comes out; a model without image decoder takes the parts it has."""
    out = tmp_path / "from"
    options = ["--run.weights", str(alone), "--model.family", "coca", "--optim.lr", "0", "--run.ds-config", "ds_configs/zero0.json"]
    status, output = finish(start_warm([*SMALL, "--data.train", str(data_set), "--run.out", str(out), *options], ranks=0))
    assert status == 0 and "text_decoder taken" in output and "image_decoder not used" in output, output[-3000:]
    mine, theirs = weights(out), weights(alone)
    assert {name.split(".")[0] for name in theirs} - {name.split(".")[0] for name in mine} == {"image_decoder"}
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("stage, ranks", [("zero1", 0), pytest.param("zero3", 2, marks=pytest.mark.full)])
def test_a_run_leaves_checkpoint_curves_pictures_and_captions(
    stage: str, ranks: int, data_set: Path, two_ranks: Path, tmp_path: Path
) -> None:
    """And a validation changes no number of the training."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["--run.ds-config", f"ds_configs/{stage}.json", *AVERAGED, *with_validation(data_set)]
    left = run(tmp_path / "run", data_set, *options, ranks=ranks)
    if stage == "zero3":
        assert losses(left) == losses(two_ranks)
    board = EventAccumulator(str(left / "tensorboard"), size_guidance={"images": 0, "tensors": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    wanted = {
        "loss/total",
        "loss/itc",
        "loss/ic",
        "loss/mim",
        "optimizer/lr",
        "optimizer/grad_norm",
        "optimizer/logit_scale",
        "speed/samples_per_second",
        "speed/data_wait_share",
        "loss_validation/itc",
    }
    assert wanted <= set(tags["scalars"])
    groups = sorted({tag.split("/")[0] for kind in ("scalars", "images") for tag in tags[kind]})
    assert groups[:2] == ["loss", "loss_validation"], "the groups that TensorBoard opens"
    assert [event.step for event in board.Scalars("loss/total")] == [1, 2, 3, 4]
    assert [event.value for event in board.Scalars("loss/itc")] == pytest.approx([r["itc"] for r in losses(left)])
    assert tags["images"] == ["pictures/00", "pictures/01"] and "captions/text_summary" in tags["tensors"]
    assert [folder.name for folder in sealed(left / "checkpoints")] == ["step_00000004", "step_00000002"]
    assert newest_whole(left / "checkpoints") == (left / "checkpoints/step_00000004", [])


def test_a_run_killed_in_the_middle_resumes_to_the_same_bits(two_ranks: Path, data_set: Path, tmp_path: Path) -> None:
    """kill -9 of the whole group right after the first checkpoint; the same command again ends with the same weights, average of
    them and losses, bit for bit, as the run that nobody killed."""
    out = tmp_path / "killed"
    options = ["--data.train", str(data_set), *ZERO_3, *AVERAGED, "--run.out", str(out)]
    process = start_warm([*SMALL, *options], ranks=2)
    seal, deadline = out / "checkpoints/step_00000002/state.json", time.monotonic() + LIMIT
    while not seal.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert seal.exists(), output[-3000:]
    shutil.rmtree(out / "checkpoints/step_00000004", ignore_errors=True)  # in case it got that far
    (out / "checkpoints/step_00000004").mkdir()  # an interrupted save must not be taken for a checkpoint
    with open(out / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "loss": 1')  # killed in the middle of a line
    run(out, data_set, *ZERO_3, *AVERAGED, ranks=2)
    assert losses(out) == losses(two_ranks)
    for read in (weights, average):
        mine, theirs = read(out), read(two_ranks)
        assert list(mine) == list(theirs) and all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def bf16(data_set: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Runs that went through, and copies of them that resumed at step 2 in other processes."""
    folder = tmp_path_factory.mktemp("bf16")
    bf16, stages = ["--run.precision", "bf16", *AVERAGED], [item.callspec.params["stage"] for item in wanting(request, "bf16")]
    options = {stage: ["--run.ds-config", f"ds_configs/{stage}.json", *bf16] for stage in stages}
    for way in ("through", "resumed"):
        if way == "resumed":
            for stage in options:
                shutil.copytree(folder / "through" / stage, folder / way / stage)
                shutil.rmtree(folder / way / stage / "checkpoints/step_00000004")
        refused = in_turn(folder, data_set, [(folder / way / stage, words) for stage, words in options.items()], ranks=2)
        assert refused == [""] * len(options)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero1", pytest.param("zero3", marks=pytest.mark.full)])
def test_bf16_runs_resume_to_the_same_bits_and_open_in_float32(stage: str, bf16: Path) -> None:
    """What GPUs train in. The float32 weights behind the bf16 ones are what is opened: rounded, they are those of the model."""
    through, resumed = bf16 / "through" / stage, bf16 / "resumed" / stage
    assert losses(resumed) == losses(through)
    mine, theirs = average(resumed), average(through)
    assert all(value.dtype == torch.float32 and torch.equal(value, mine[name]) for name, value in theirs.items())
    mine, theirs = weights(resumed), weights(through)
    assert all(value.dtype == torch.float32 and torch.equal(value, mine[name]) for name, value in theirs.items())
    assert any(not torch.equal(value, value.bfloat16().float()) for value in theirs.values()), "not the rounded ones"
    if stage == "zero1":
        file = through / "checkpoints/step_00000004/mp_rank_00_model_states.pt"
        module = torch.load(file, weights_only=False)["module"]
        assert list(module) == list(SyCoCa(load_for_inference(through).config.model, seed=None).state_dict())
        assert all(torch.equal(theirs[name].bfloat16(), value) for name, value in module.items())


def test_sigterm_saves_and_the_next_start_goes_on(data_set: Path, alone: Path, tmp_path: Path) -> None:
    out = tmp_path / "stopped"
    options = [
        *SMALL,
        "--data.train",
        str(data_set),
        "--run.out",
        str(out),
        "--run.ds-config",
        "ds_configs/zero0.json",
        "--run.checkpoint-every",
        "100",
    ]
    process = start_warm(options, ranks=0)
    deadline = time.monotonic() + LIMIT
    while not (out / "run_status.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process)
    assert status == 75, output[-3000:]
    stopped = json.loads((out / "run_status.json").read_text())
    assert stopped["status"] == "preempted" and 0 < stopped["step"] < STEPS, output[-3000:]
    run(out, data_set, "--run.ds-config", "ds_configs/zero0.json", ranks=0)
    assert losses(out) == losses(alone)


@pytest.mark.full
def test_sigterm_to_the_whole_job_saves(data_set: Path, tmp_path: Path) -> None:
    """As Slurm sends it: launchers, ranks and loader workers get it at once, and a dead worker would end the run unsaved."""
    out = tmp_path / "stopped"
    options = ["--data.train", str(data_set), "--run.out", str(out), "--run.ds-config", "ds_configs/zero0.json"]
    process = start([*SMALL, *options, "--optim.steps", "5000", "--run.checkpoint-every", "5000", "--data.workers", "2"], ranks=1)
    deadline = time.monotonic() + LIMIT
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():  # until batches come from workers
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0][-3000:]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGTERM)
    output = finish(process)[1]
    stopped = json.loads((out / "run_status.json").read_text())
    assert stopped["status"] == "preempted" and 0 < stopped["step"] < 5000, output[-3000:]
    assert [folder.name for folder in sealed(out / "checkpoints")] == [f"step_{stopped['step']:08d}"]


def refusal(data: Path, out: Path, *options: str) -> str:
    """The one error line of a run that must be refused."""
    status, output = finish(start_warm([*SMALL, "--data.train", str(data), "--run.out", str(out), *options], ranks=0))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in output, output[-3000:]
    return lines[0]


def test_checkpoints_that_do_not_fit_are_refused(alone: Path, data_set: Path, tmp_path: Path) -> None:
    assert "saved with model.image.layers = 2, this run has 3" in refusal(
        data_set, alone, "--run.ds-config", "ds_configs/zero0.json", "--model.image.layers", "3"
    )
    assert "0 as ZeRO stage, this run has 3: resume with 0" in refusal(data_set, alone, *ZERO_3)
    others = (("weights", "2", "()"), ("lanes", "8", "4"), ("window", "9", "512"))
    zero0 = ["--run.ds-config", "ds_configs/zero0.json"]
    runs = [(alone, [*zero0, f"--data.{option}", value]) for option, value, _ in others]
    for said, (option, _, was) in zip(in_turn(tmp_path, data_set, runs, ranks=0), others, strict=True):
        assert f"has data.{option} = {was}, this run" in said and "the sample order depends on it" in said


def test_fields_younger_than_a_checkpoint_are_no_reason_to_refuse_it() -> None:
    model = PRESETS["tiny"].model
    saved = {"config": {"model": dataclasses.asdict(model)}}
    del saved["config"]["model"]["text"]["eot_id"], saved["config"]["model"]["masking"]["mask_warmup"]
    check_same_model(saved, model, Path("step"))
    masking = dataclasses.replace(model.masking, mask_by="random", mask_warmup=5)
    check_same_model(saved, dataclasses.replace(model, masking=masking), Path("step"))
    for change, field in (
        ({"text": dataclasses.replace(model.text, eot_id=5)}, "model.text.eot-id = 2, this run has 5"),
        ({"masking": dataclasses.replace(masking, mim="plain")}, "model.masking.mim = text_guided, this run has plain"),
    ):
        with pytest.raises(UserError, match=field):
            check_same_model(saved, dataclasses.replace(model, **change), Path("step"))


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(alone: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(alone, copy)
    newest, before = sealed(copy / "checkpoints")
    victim = newest / "mp_rank_00_model_states.pt"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    assert f"{victim} is damaged" in damage(newest)
    folder, problems = newest_whole(copy / "checkpoints")
    assert folder == before and len(problems) == 1 and str(victim) in problems[0]
    with pytest.raises(UserError, match="is damaged"):
        load_for_inference(newest)
    (before / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        newest_whole(copy / "checkpoints")
    with pytest.raises(UserError, match="no finished checkpoint"):
        load_for_inference(tmp_path)


def test_without_data_the_default_command_stops_at_once_and_says_what_builds_it() -> None:
    """`deepspeed sycoca_ds/train.py` with nothing else: the 930M preset, refused before any process group or weight."""
    status, output = finish(start_warm([], ranks=2))
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert status != 0 and len(lines) == 1, output[-3000:]
    assert "data.train is not set" in lines[0] and "python -m data_pipeline build" in lines[0]

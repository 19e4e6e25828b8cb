"""`train.py --task vqa` on a small world of questions: pieces, ZeRO stages, ranks, kill and resume, order, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.config import DataConfig
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.question_sources import QuestionSet, QuestionSources
from sycoca_ds.data.questions import picture_number
from sycoca_ds.data.tokenizer import Tokenizer
from sycoca_ds.data.transforms import Augmentation
from sycoca_ds.engine.batches import plan_batches
from sycoca_ds.engine.preparation import check_before_start, make_plan
from sycoca_ds.options import parse_options
from tests.worlds import REPOSITORY
from tests.worlds.data.data_sets import write_data_set
from tests.worlds.processes.launching import finish, start_warm
from tests.worlds.published.questions import ask
from tests.worlds.trainings.training import SMALL, in_turn, losses, run, weights

pytestmark = pytest.mark.timeout(900)
ZERO_0 = ["--run.ds-config", "ds_configs/zero0.json"]


@pytest.fixture(scope="module")
def questions(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return ask(data_set, tmp_path_factory.mktemp("questions") / "questions.json")


@pytest.fixture(scope="module")
def pretrained(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    assert in_turn(folder / "turn", data_set, [(folder / "run", ZERO_0)], ranks=0) == [""]
    return folder / "run"


def vqa(pretrained: Path, questions: str) -> list[str]:
    words = ["--task", "vqa", "--run.weights", str(pretrained), "--data.questions", questions, "--optim.epochs", "None"]
    return [*words, "--optim.lr", "1e-3"]


@pytest.fixture(scope="module")
def runs(data_set: Path, pretrained: Path, questions: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tune = tmp_path_factory.mktemp("vqa"), vqa(pretrained, questions)
    validated = ["--data.validation", str(data_set), "--data.validation-questions", questions, "--run.validation-samples", "8"]
    ways = {
        "plain": ZERO_0,
        "pieces": [*ZERO_0, "--optim.accumulation-steps", "4"],
        "zero1": ["--run.ds-config", "ds_configs/zero1.json", "--optim.ema-decay", "0.9"],
        "zero2": ["--run.ds-config", "ds_configs/zero2.json"],
        "zero3": ["--run.ds-config", "ds_configs/zero3.json", "--run.activation-checkpointing", "full"],
        "validated": [*ZERO_0, *validated],
        "folders": [*ZERO_0, "--data.train", str(data_set), str(write_data_set(folder / "more", [9, 4]))],
    }
    assert not any(in_turn(folder / "turn", data_set, [(folder / way, [*tune, *more]) for way, more in ways.items()], ranks=0))
    two = {"two-zero1": ["--run.ds-config", "ds_configs/zero1.json"], "two-zero3": ["--run.ds-config", "ds_configs/zero3.json"]}
    assert not any(in_turn(folder / "turns", data_set, [(folder / way, [*tune, *more]) for way, more in two.items()], ranks=2))
    return folder


@pytest.mark.parametrize("way", ["pieces", "zero1", "zero2", "zero3", "two-zero1", "two-zero3", "validated"])
def test_pieces_stages_and_ranks_change_nothing(way: str, runs: Path) -> None:
    for record, expected in zip(losses(runs / way), losses(runs / "plain"), strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5) and record["loss"] == pytest.approx(record["vqa"])
        assert record["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    mine, theirs = weights(runs / way), weights(runs / "plain")
    assert list(mine) == list(theirs)
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=3e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_pictures_may_lie_in_several_folders(runs: Path, data_set: Path, questions: str) -> None:
    """Nothing is asked about those of the second."""
    found = [record["vqa"] for record in losses(runs / "folders")]
    assert len(found) == len(losses(runs / "plain")) and found[-1] < 0.9 * found[0]
    words = ["--preset", "tiny", "--task", "vqa", "--data.train", str(data_set), str(runs / "more"), "--data.weights", "1", "2"]
    config = parse_options([*words, "--data.questions", questions])
    with pytest.raises(UserError, match="data.weights with --task vqa: .* leave it out"):
        make_plan(config, QuestionSources.of(config.data), plan_batches(config, 1))


def test_it_learns_from_the_pretrained_weights_and_the_fusion_starts_fresh(runs: Path, pretrained: Path) -> None:
    found = [record["vqa"] for record in losses(runs / "plain")]
    assert found[-1] < 0.9 * found[0]
    before, after = weights(pretrained), weights(runs / "plain")
    assert {name.split(".")[0] for name in after} - {name.split(".")[0] for name in before} == {"fusion"}
    assert torch.equal(before["logit_scale"], after["logit_scale"])
    for part in ("image_encoder", "text_encoder", "text_decoder"):
        name = next(name for name in after if name.startswith(f"{part}.") and name.endswith("mlp.fc.weight"))
        moved = (after[name] - before[name]).norm() / before[name].norm()
        assert 0 < moved < 0.2, name


def test_a_validation_tells_answers_beside_those_of_who_knows_too_little(runs: Path) -> None:
    record = json.loads((runs / "validated/metrics.jsonl").read_text().splitlines()[0])
    assert {"validation/vqa", "validation/vqa_accuracy", "validation/vqa_other_picture", "validation/vqa_majority"} <= set(record)
    assert 0 < record["validation/vqa_majority"] < 100


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero0", "zero3"])
def test_a_run_that_stopped_goes_on_to_the_same_bits(
    stage: str, data_set: Path, pretrained: Path, questions: str, tmp_path: Path
) -> None:
    """At the checkpoint of step 2, of which nobody knew that it would be the last; another epoch has begun by then. The weights
    from which it started are gone, as where the pretraining keeps its last checkpoints only."""
    shutil.copytree(pretrained, tmp_path / "pretrained")
    tune = [
        *vqa(tmp_path / "pretrained", questions),
        "--run.ds-config",
        f"ds_configs/{stage}.json",
        "--optim.global-batch-size",
        "100",
    ]
    tune += ["--data.lanes", "4", "--data.workers", "1"]
    whole = run(tmp_path / "whole", data_set, *tune, ranks=0)
    script = tmp_path / "killed.py"
    script.write_text(
        f"import os, signal, sys\nsys.path[0] = {str(REPOSITORY)!r}\nfrom sycoca_ds.model.sycoca import SyCoCa\n"
        "from sycoca_ds.train import end_process, on_every_rank, run_command\nplain, calls = SyCoCa._train_answers, []\n"
        "def train(self, **inputs):\n    calls.append(1)\n"
        "    if len(calls) == 4:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return plain(self, **inputs)\n"
        "SyCoCa._train_answers = train\nend_process(run_command(on_every_rank))\n"
    )
    out = tmp_path / "stopped"
    status, _ = finish(start_warm([*SMALL, "--data.train", str(data_set), "--run.out", str(out), *tune], ranks=0, script=script))
    assert status != 0 and (out / "checkpoints/step_00000002/state.json").is_file()
    shutil.rmtree(tmp_path / "pretrained")
    again = run(out, data_set, *tune, ranks=0)
    assert losses(again) == losses(whole)
    mine, theirs = weights(again), weights(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_every_question_comes_once_an_epoch_with_its_own_picture(data_set: Path, questions: str) -> None:
    """At any number of ranks the same global batches; the picture's bytes are those of the question's url."""
    sources = QuestionSources.of(DataConfig(train=(str(data_set),), questions=(questions,)))
    asked = json.loads(Path(questions.split(",")[0]).read_text())["questions"]
    assert sources.samples == len(asked) - sources.left_out and sources.left_out == 2
    plan = Plan(sources.kept, global_batch_size=8, lanes=4, window=16, seed=3)
    urls = [url for n in range(len(sources.manifests[0].shards)) for url in sources.index(n, ["url"])["url"].to_pylist()]
    first = np.cumsum([0, *sources.manifests[0].kept_per_shard])
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        seen = np.concatenate([plan.batch(step)[1] for step in steps])
        assert len(set(seen.tolist())) == len(seen) == plan.steps_per_epoch * 8 and sources.samples - len(seen) < 8 + 4
    for step in range(3):
        halves = [plan.batch(step, 2, rank)[1] for rank in range(2)]
        assert np.array_equal(np.concatenate(halves), plan.batch(step)[1])
    shards, positions = plan.locate(np.arange(sources.samples))
    for sample in range(sources.samples):
        tar, place = sources.place_P2[shards[sample]]
        row = sources.table.slice(sample, 1).to_pylist()[0]
        assert picture_number(urls[first[tar] + place]) == row["picture"]
        assert int(plan.first_id[shards[sample]]) + positions[sample] == sample
    tokenizer = Tokenizer(data_set / "tokenizer.json")
    batch = QuestionSet(sources, plan, tokenizer, augmentation=Augmentation(24, (1.0, 1.0)), context_length=40).__getitems__(
        [(0, 5), (0, 0)]
    )
    for place, sample in enumerate((5, 0)):
        row = sources.table.slice(sample, 1).to_pylist()[0]
        assert batch.text_BL[place].tolist() == tokenizer.encode([row["question"]], 40)[0, : batch.text_BL.shape[1]].tolist()
        own = (batch.question_of_A == place).nonzero().flatten().tolist()
        said = {tokenizer.decode(batch.answer_AL[n].tolist()): round(batch.weight_A[n].item(), 6) for n in own}
        assert said == {answer: row["answers"].count(answer) / 10 for answer in row["answers"]}


def test_what_does_not_fit_is_refused(data_set: Path, questions: str, tmp_path: Path) -> None:
    words = ["--preset", "tiny", "--data.train", str(data_set), "--run.weights", str(tmp_path)]
    with pytest.raises(UserError, match="data.questions = None with --task vqa: expected files with the questions"):
        check_before_start(parse_options([*words, "--task", "vqa"]))
    with pytest.raises(UserError, match="they belong to --task vqa"):
        check_before_start(parse_options([*words, "--task", "caption", "--data.questions", questions]))
    foreign = {"questions": [{"url": "http://x/1.jpg", "kind": "k", "question": "q", "answer": "a"}]}
    (tmp_path / "foreign.json").write_text(json.dumps(foreign))
    with pytest.raises(UserError, match="none of the 1 questions is on a picture of"):
        QuestionSources.of(DataConfig(train=(str(data_set),), questions=(str(tmp_path / "foreign.json"),)))

"""`train.py --task caption`: the recipe, and a run of it from a pretraining's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.engine.preparation import check_before_start
from sycoca_ds.options import parse_options, to_json
from sycoca_ds.presets import PRESETS
from tests.worlds.trainings.training import STEPS, in_turn, losses, weights

pytestmark = pytest.mark.timeout(900)
ZERO_0 = ["--run.ds-config", "ds_configs/zero0.json"]
CAPTION = ["--task", "caption", "--optim.epochs", "None", "--optim.lr", "1e-3"]


def test_a_task_brings_its_recipe_and_options_still_override_it(tmp_path: Path) -> None:
    config = parse_options(["--preset", "base", "--task", "caption", "--run.weights", "W", "--optim.lr", "3e-5"])
    base = PRESETS["base"]
    assert (config.task, config.model.family, config.loss.itc, config.loss.ic, config.optim.lr) == ("caption", "coca", 0, 1, 3e-5)
    assert config.run.out == f"{base.run.out}_caption" and config.model.image == base.model.image
    (tmp_path / "pretraining.json").write_text(to_json(base))
    (tmp_path / "own.json").write_text(to_json(config))
    from_file = ["--config", str(tmp_path / "pretraining.json"), "--task", "caption"]
    assert parse_options([*from_file, "--run.weights", "W", "--optim.lr", "3e-5"]) == config
    assert parse_options(["--config", str(tmp_path / "own.json"), "--task", "caption"]) == config, "not applied twice"


def test_fine_tuning_without_weights_or_of_no_task_is_refused(data_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--task captoin: no such task; did you mean caption"):
        parse_options(["--task", "captoin"])
    words = ["--preset", "tiny", "--data.train", str(data_set), "--task", "caption"]
    with pytest.raises(UserError, match="--task caption without run.weights: give the pretraining's run"):
        check_before_start(parse_options(words))
    (tmp_path / "own.json").write_text(to_json(parse_options(words)))
    with pytest.raises(UserError, match="is a run of --task caption"):
        parse_options(["--config", str(tmp_path / "own.json"), "--task", "pretrain"])


@pytest.fixture(scope="module")
def runs(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining, and captioning from its weights under several stages of ZeRO."""
    folder = tmp_path_factory.mktemp("caption")
    tune = [*CAPTION, "--run.weights", str(folder / "pretrained"), "--optim.global-batch-size", "16", "--optim.warmup-steps", "2"]
    ways = {
        "plain": ZERO_0,
        "pieces": [*ZERO_0, "--optim.accumulation-steps", "2"],
        "zero1": ["--run.ds-config", "ds_configs/zero1.json"],
        "zero3": ["--run.ds-config", "ds_configs/zero3.json"],
        "stopped": [*ZERO_0, "--optim.steps", "2"],
    }
    first = [(folder / "pretrained", ZERO_0)]
    assert (
        in_turn(folder / "turn", data_set, first + [(folder / way, [*tune, *more]) for way, more in ways.items()], ranks=0)
        == [""] * 6
    )
    return folder


@pytest.mark.parametrize("way", ["pieces", "zero1", "zero3"])
def test_captioning_is_the_same_in_pieces_and_under_every_stage(way: str, runs: Path) -> None:
    for record, expected in zip(losses(runs / way), losses(runs / "plain"), strict=True):
        assert record["loss"] == pytest.approx(expected["loss"], rel=1e-5) and record["loss"] == pytest.approx(
            record["ic"], rel=1e-6
        )
        assert "mim" not in record
    mine, theirs = weights(runs / way), weights(runs / "plain")
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_captioning_learns_and_leaves_what_the_caption_does_not_need_but_for_its_decay(runs: Path) -> None:
    found = [record["ic"] for record in losses(runs / "plain")]
    assert found[-1] < found[0] and len(found) == STEPS
    before, after = weights(runs / "pretrained"), weights(runs / "plain")
    assert "image_decoder.head.weight" not in after
    for name in ("logit_scale", "text_encoder.ln_final.weight"):
        assert torch.equal(before[name], after[name]), name
    for name in ("text_encoder.proj.weight", "image_encoder.proj.weight"):
        torch.testing.assert_close(after[name], before[name] * (after[name].norm() / before[name].norm()))
    assert not torch.equal(before["text_decoder.head.weight"], after["text_decoder.head.weight"])

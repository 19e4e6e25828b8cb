"""Which checkpoint is the best: by the named number, larger or smaller as its name says, and only what was validated and saved."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.config import RunConfig, TrainConfig
from sycoca_ds.engine.monitoring.best import FILE, Best, best_step, check_best_metric


def goes(run: Path, metric: str, values: list[float], step: int = 0) -> list[int | None]:
    """best_step after each of steps 1, 2, .., validated and then saved."""
    best, found = Best(run, metric, step), []
    for number, value in enumerate(values, 1):
        best.validated(number, {metric: value})
        best.saved(number)
        found.append(best_step(run))
    return found


def test_the_larger_recall_and_the_smaller_loss_are_better_and_the_first_of_equals_stays(tmp_path: Path) -> None:
    assert goes(tmp_path / "recall", "validation/t2i_r1", [3.0, 5.0, 4.0, 5.0, 6.0]) == [1, 2, 2, 2, 5]
    assert json.loads((tmp_path / "recall" / FILE).read_text()) == {"step": 5, "metric": "validation/t2i_r1", "value": 6.0}
    assert goes(tmp_path / "loss", "validation/loss", [3.0, float("nan"), 2.0, 2.5]) == [1, 1, 3, 3]


def test_only_steps_that_are_validated_and_saved_count(tmp_path: Path) -> None:
    best = Best(tmp_path, "validation/t2i_r1", 0)
    best.validated(1, {"validation/t2i_r1": 90.0})  # never saved
    assert not best.saved(2) and best_step(tmp_path) is None
    best.validated(3, {"validation/loss": 1.0})  # another number
    assert not best.saved(3) and best_step(tmp_path) is None
    best.validated(4, {"validation/t2i_r1": 10.0})
    best.validated(5, {"validation/t2i_r1": 8.0})  # before the save of step 4 is sealed
    assert best.saved(4) and not best.saved(5) and best_step(tmp_path) == 4


def test_what_came_after_the_step_that_a_run_goes_back_to_is_forgotten(tmp_path: Path) -> None:
    metric = "validation/t2i_r1"
    assert goes(tmp_path, metric, [1.0, 2.0, 3.0])[-1] == 3
    best = Best(tmp_path, metric, 3)
    assert best_step(tmp_path) == 3, "resumed at the best one"
    best.validated(4, {metric: 9.0})
    best.go_back(2)
    assert best_step(tmp_path) is None and not best.saved(4)
    best.validated(3, {metric: 1.0})
    assert best.saved(3)
    Best(tmp_path, metric, 2)
    assert best_step(tmp_path) is None, "resumed before the best one, whose checkpoint was damaged"


def test_a_run_that_was_killed_after_its_save_learns_that_it_is_the_best(tmp_path: Path) -> None:
    metric = "validation/t2i_r1"
    goes(tmp_path, metric, [1.0])
    Best(tmp_path, metric, 2, {metric: None, "loss": 3.0})  # not finite, null in metrics.jsonl
    assert best_step(tmp_path) == 1
    Best(tmp_path, metric, 2, {metric: 2.0, "loss": 3.0})
    assert best_step(tmp_path) == 2
    Best(tmp_path, metric, 3, {metric: 1.5})
    assert best_step(tmp_path) == 2


def test_a_full_disk_costs_the_name_of_the_best_and_not_the_run(tmp_path: Path) -> None:
    metric = "validation/t2i_r1"
    best = Best(tmp_path, metric, 0)
    best.validated(1, {metric: 1.0})
    assert best.saved(1)
    (tmp_path / f".{FILE}.{os.getpid()}.tmp").symlink_to("/dev/full")
    best.validated(2, {metric: 2.0})
    assert not best.saved(2) and best_step(tmp_path) == 1
    best.validated(3, {metric: 3.0})
    assert best.saved(3) and best_step(tmp_path) == 3


def test_another_metric_begins_anew_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    goes(tmp_path, "validation/t2i_r1", [1.0])
    assert goes(tmp_path, "validation/loss", [7.0], step=1) == [1]
    for content in ("", "[]", "null", '{"step": "1", "metric": "x", "value": 1}', '{"step": 1}'):
        (tmp_path / FILE).write_text(content)
        assert best_step(tmp_path) is None
        assert goes(tmp_path, "validation/loss", [7.0]) == [1]


@pytest.mark.parametrize(
    "metric, said",
    [
        ("validation/t2i_acuracy", "did you mean validation/t2i_accuracy?"),
        ("t2i_r1", "did you mean validation/t2i_r1?"),
        ("loss", "expected one of validation/i2t_r1"),
    ],
)
def test_a_metric_that_no_validation_has_is_refused(metric: str, said: str) -> None:
    with pytest.raises(UserError, match="run.best-metric") as error:
        check_best_metric(TrainConfig(run=RunConfig(best_metric=metric)))
    assert said in str(error.value)


def test_losses_that_a_model_lacks_are_refused() -> None:
    config = TrainConfig(run=RunConfig(best_metric="validation/mim"))
    check_best_metric(config)
    with pytest.raises(UserError, match="no validation of this model has it"):
        check_best_metric(dataclasses.replace(config, model=dataclasses.replace(config.model, family="coca")))
    check_best_metric(TrainConfig(run=RunConfig(best_metric=None)))

"""Trainings that go on from a run's weights, short ones, and what is measured after them: the paper fine-tunes on captions before
it scores captions, and on questions before it scores answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sycoca_ds.config import TrainConfig

WHOLE_RATE = 0.25
"""Share of the run's learning rate at which captioning goes on."""
ALONE = ("--loss.itc", "0", "--loss.late-interaction", "0")


@dataclass(frozen=True)
class Following:
    """A training from the weights of every run that captions."""

    name: str
    """In front of its columns' names."""
    folder: str
    """Inside the run's folder."""
    task: str
    """Of evaluate.py, measured after it."""
    steps: int
    rate: float
    """Its learning rate, as a share of the run's."""
    options: tuple[str, ...]
    """What it gives train.py beside the run's own options."""

    def words(self, run: Path, config: TrainConfig) -> list[str]:
        """Its options of train.py, behind those of the run whose folder and configuration these are."""
        steps = ["--optim.epochs", "None", "--optim.steps", str(self.steps), "--optim.warmup-steps", str(self.steps // 10)]
        pace = ["--optim.lr", str(self.rate * config.optim.lr), "--optim.global-batch-size", str(config.optim.global_batch_size)]
        return [*self.options, "--model.family", "coca", *ALONE, "--run.weights", str(run), *steps, *pace]


def whole_pictures(steps: int) -> Following:
    """Captioning alone, on whole pictures: masked training shows the text decoder half of the patches."""
    return Following("whole-picture", "whole_pictures", "captioning", steps, WHOLE_RATE, ())


def answering(steps: int, files: Sequence[str]) -> Following:
    """Answers to questions on the training's pictures, at the run's own rate, for the fusion's weights are new.

    Args:
        files: as `data.questions` takes them.
    """
    words = ("--task", "vqa", "--data.questions", *files, "--data.validation", "None")
    words += ("--loss.ic", "0", "--loss.mim", "0", "--run.best-metric", "None")
    return Following("after questions", "questions", "vqa", steps, 1.0, words)

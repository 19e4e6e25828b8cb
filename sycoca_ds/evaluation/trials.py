"""What tasks of several passes take (`--dry-run`): they are run on a few of the data set's own pictures, and on twice as many.

How often such a task asks, for every score, condition and benchmark, of trained and of untrained weights, is its own affair. What
the second trial takes longer is what its additional pictures take; what is left of the first is what the task takes anyway.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sycoca_ds.eval.collection import PictureSet
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.runner.cache import Cache
from sycoca_ds.eval.task import NotApplicable

TRIED = ("reconstruction", "masking", "alignment", "compositionality")
FEWEST = 8
"""Pictures of the smaller trial."""
SHARE = 40
"""It has one of so many of the data set's pictures, and at most one batch of each rank."""


class Few(PictureSet):
    """Some pictures of another set, with all their captions."""

    def __init__(self, data: PictureSet, numbers: list[int]):
        captions = [(place, caption) for place, number in enumerate(numbers) for caption in data.captions_of_image[number]]
        pictures, digest = [data.pictures[number] for number in numbers], f"{data.digest} {numbers}"
        texts, image_of_text = [caption for _, caption in captions], [place for place, _ in captions]
        super().__init__(data.folder, data.image_size, digest, pictures, texts, image_of_text)
        self._data, self._numbers = data, numbers

    def pixels(self, number: int) -> np.ndarray:
        return self._data.pixels(self._numbers[number])


@dataclass(frozen=True)
class Trial:
    """A task, or one benchmark of it."""

    task: str
    name: str
    """Of the benchmark; empty where there are none."""
    samples: int
    """Of the whole."""
    seconds: float
    """That the whole will take."""

    @property
    def counted(self) -> str:
        return f"{self.samples:,} items of {self.name}" if self.name else f"{self.samples:,} images"


def spread(total: int, count: int) -> list[int]:
    """So many of the numbers below `total`, or all, at even distances."""
    return (np.arange(min(count, total)) * total // min(count, total)).tolist()


def few(data: PictureSet, inputs: Inputs, task: str, count: int) -> tuple[PictureSet, Inputs]:
    """So many samples of a task."""
    if task == "compositionality":
        (benchmark,) = inputs.compositions
        items = tuple(benchmark.items[number] for number in spread(len(benchmark.items), count))
        return data, replace(inputs, compositions=(replace(benchmark, items=items),))
    numbers, regions, segments = spread(len(data), count), inputs.regions, inputs.segments
    if regions is not None:
        regions = replace(regions, pictures=tuple(regions.pictures[number] for number in numbers))
    if segments is not None:
        segments = replace(segments, packed=[segments.packed[number] for number in numbers])
    return Few(data, numbers), replace(inputs, regions=regions, segments=segments)


def whole(seconds: tuple[float, float], samples: tuple[int, int], total: int) -> float:
    """What `total` samples take, of which these trials are known. Where more took no longer, as long as the longer one."""
    first, second = samples
    each = max(0.0, seconds[1] - seconds[0]) / (second - first) if second > first else 0.0
    return max(seconds) + each * (total - second)


def trials(loaded: Any, data: PictureSet, inputs: Inputs, device: Any, resources: Resources) -> Iterator[Trial]:
    """Each task of `TRIED` that is asked for and can be run. All ranks take part; rank 0 is told."""
    team, tasks = resources.team, [task for task in TRIED if task in inputs.options.tasks]
    quiet = replace(resources, cache=Cache(), told=False)
    untrained = None
    if {"masking", "alignment"} & set(tasks):
        untrained = Bench(loaded.model, loaded.config, loaded.tokenizer, data, device, inputs, quiet).untrained
    for task in tasks:
        for benchmark in inputs.compositions if task == "compositionality" else (None,):
            given = inputs if benchmark is None else replace(inputs, compositions=(benchmark,))
            total, name = (len(data), "") if benchmark is None else (len(benchmark.items), benchmark.name)
            smaller = max(FEWEST, min(inputs.options.batch_size * team.size, total // SHARE))
            taken: list[tuple[int, float]] = []
            for count in (smaller, smaller, 2 * smaller):  # the first one pays for what is done once
                some, its = few(data, given, task, count)
                bench = Bench(loaded.model, loaded.config, loaded.tokenizer, some, device, its, quiet)
                if untrained is not None:
                    bench.untrained = untrained
                if not team.leads:
                    team.serve(bench)
                    continue
                start = time.perf_counter()
                try:
                    with team.conducting():
                        TASKS[task].run(bench)
                except NotApplicable:
                    continue
                taken.append((min(count, total), time.perf_counter() - start))
            if len(taken) == 3:
                (_, _), (first, shorter), (second, longer) = taken
                yield Trial(task, name, total, whole((shorter, longer), (first, second), total))

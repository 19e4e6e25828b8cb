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
from sycoca_ds.eval.regions.patches import Regions
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.runner.cache import Cache
from sycoca_ds.eval.task import NotApplicable

TRIED = ("reconstruction", "masking", "alignment", "compositionality")
FEWEST = 8
"""Pictures of the smaller trial."""
SHARE = 40
"""It has one of so many of the data set's pictures, and at most one batch of each rank."""
LARGER = 3
"""How often it is doubled where the task cannot be asked of so few."""


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
    reason: str = ""
    """Why there is no time; empty where there is."""

    @property
    def counted(self) -> str:
        return f"{self.samples:,} items of {self.name}" if self.name else f"{self.samples:,} images"


def spread(total: int, count: int) -> list[int]:
    """So many of the numbers below `total`, or all, at even distances."""
    count = min(count, total)
    return (np.arange(count) * total // max(1, count)).tolist()


def numbers_of(total: int, regions: Regions | None, count: int) -> list[int]:
    """So many of the pictures; where regions are known as large a share of them has some as of all, and at least one."""
    if regions is None:
        return spread(total, count)
    there = [number for number, _ in regions.there]
    others = sorted(set(range(total)) - set(there))
    count = min(count, total)
    own = max(1, round(count * len(there) / total), count - len(others))
    return sorted([there[n] for n in spread(len(there), own)] + [others[n] for n in spread(len(others), count - own)])


def few(data: PictureSet, inputs: Inputs, task: str, count: int) -> tuple[PictureSet, Inputs]:
    """So many samples of a task."""
    if task == "compositionality":
        (benchmark,) = inputs.compositions
        items = tuple(benchmark.items[number] for number in spread(len(benchmark.items), count))
        return data, replace(inputs, compositions=(replace(benchmark, items=items),))
    regions, segments = inputs.regions, inputs.segments
    numbers = numbers_of(len(data), regions, count)
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
    """Each task of `TRIED` that is asked for. All ranks take part, and are told.

    Raises:
        UserError: as of the tasks, of what cannot be read.
    """
    team, tasks = resources.team, [task for task in TRIED if task in inputs.options.tasks]
    quiet = replace(resources, cache=Cache(), told=False)
    untrained = None
    if {"masking", "alignment"} & set(tasks):
        untrained = Bench(loaded.model, loaded.config, loaded.tokenizer, data, device, inputs, quiet).untrained

    def tried(task: str, given: Inputs, count: int) -> float | str:
        """Seconds of so many samples, or why there are none."""
        some, its = few(data, given, task, count)
        bench = Bench(loaded.model, loaded.config, loaded.tokenizer, some, device, its, quiet)
        if untrained is not None:
            bench.untrained = untrained
        if not team.leads:
            team.serve(bench)
            return team.agree(lambda: None)
        start = time.perf_counter()
        try:
            with team.conducting():
                TASKS[task].run(bench)
            taken: float | str = time.perf_counter() - start
        except NotApplicable as reason:
            taken = str(reason)
        return team.agree(lambda: taken)

    for task in tasks:
        for benchmark in inputs.compositions if task == "compositionality" else (None,):
            given = inputs if benchmark is None else replace(inputs, compositions=(benchmark,))
            total, name = (len(data), "") if benchmark is None else (len(benchmark.items), benchmark.name)
            smaller = max(FEWEST, min(inputs.options.batch_size * team.size, total // SHARE))
            for enough in (smaller << more for more in range(LARGER + 1)):  # a few may have one caption in common
                seconds = [tried(task, given, count) for count in (enough, enough, 2 * enough)]
                reason = next((taken for taken in seconds if isinstance(taken, str)), "")
                if not reason or enough >= total:
                    break
            if reason:
                yield Trial(task, name, total, 0.0, reason)
            else:
                _, first, second = seconds  # the first one of all pays for what is done once
                counts = min(enough, total), min(2 * enough, total)
                yield Trial(task, name, total, whole((first, second), counts, total))

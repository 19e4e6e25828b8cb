"""Trials of tasks that ask in passes of their own: what they say of the whole, and of which pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.compositions.items import CompositionSet, Item, View
from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.regions.patches import PictureRegions, Regions
from sycoca_ds.eval.regions.segments import Segments
from sycoca_ds.eval.registry import TASKS
from sycoca_ds.eval.runner.bench import Bench, Inputs, Resources
from sycoca_ds.eval.task import NotApplicable, Outcome
from sycoca_ds.evaluation.trials import FEWEST, LARGER, SHARE, Few, few, numbers_of, spread, trials, whole
from tests.worlds.trainings.eval_world import make_data

ITEMS = tuple(Item(f"{n}", "swap_att", (View(Path(f"{n}.jpg")),), (f"{n}", f"no {n}")) for n in range(100))
SWAPPED = CompositionSet("sugarcrepe", "SugarCrepe", Path("."), ITEMS, ("swap_att",), "digest")


def test_what_the_whole_takes() -> None:
    assert whole((3.0, 4.0), (10, 20), 100) == pytest.approx(2 + 100 * 0.1)
    assert whole((3.0, 4.0), (10, 10), 10) == 4, "both were the whole"
    assert whole((3.0, 2.5), (10, 20), 100) == 3, "no time a picture to be seen"


def test_pictures_at_even_distances() -> None:
    assert spread(100, 4) == [0, 25, 50, 75] and spread(3, 8) == [0, 1, 2]


def test_pictures_with_regions_are_among_them_in_their_share() -> None:
    some = PictureRegions(np.zeros(4, np.int8), ())

    def numbers(there: set[int], total: int, count: int) -> list[int]:
        return numbers_of(total, Regions("drawn", tuple(some if n in there else None for n in range(total)), {}), count)

    assert numbers({7}, 100, 4) == [0, 7, 34, 67]
    assert numbers({0, 1, 2, 3}, 8, 4) == [0, 2, 4, 6] and numbers(set(range(8)), 8, 3) == [0, 2, 5]
    assert numbers({3}, 4, 9) == [0, 1, 2, 3]


def test_a_few_are_those_of_the_whole_with_all_that_is_theirs(tmp_path: Path) -> None:
    data = Collection(make_data(tmp_path / "data", images=12, captions=3), 32)
    region_I = tuple(PictureRegions(np.full(4, n, np.int8), ()) for n in range(12))
    given = Inputs(regions=Regions("drawn", region_I, {}), segments=Segments("drawn", ("a",), [(n, b"") for n in range(12)]))
    some, its = few(data, given, "masking", 4)
    numbers = [0, 3, 6, 9]
    assert [picture.url for picture in some.pictures] == [data.pictures[n].url for n in numbers] and isinstance(some, Few)
    assert some.captions_of_image == [data.captions_of_image[n] for n in numbers] and len(some.captions) == 12
    assert all(torch.equal(some.image(place), data.image(n)) for place, n in enumerate(numbers))
    assert its.regions.pictures == tuple(region_I[n] for n in numbers) and its.segments.packed == [(n, b"") for n in numbers]
    assert len({data.digest, some.digest, few(data, given, "masking", 3)[0].digest}) == 3
    same, its = few(data, replace(given, compositions=(SWAPPED,)), "compositionality", 4)
    assert same is data and its.compositions[0].items == tuple(ITEMS[n] for n in (0, 25, 50, 75))


def test_each_task_and_benchmark_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that take a known time by a clock of their own: what the whole takes, without what is done once."""
    asked: list[tuple[str, int]] = []
    clock = [0.0]

    def slow(name: str, start: float, each: float):
        def run(bench: Bench) -> Outcome:
            count = len(bench.inputs.compositions[0].items) if name == "compositionality" else len(bench.collection)
            clock[0] += start + each * count + (0 if any(name == before for before, _ in asked) else 1000)
            asked.append((name, count))
            return Outcome({})

        return replace(TASKS[name], run=run)

    def unfit(bench: Bench) -> Outcome:
        raise NotApplicable("nothing to ask")

    def large(bench: Bench) -> Outcome:
        if len(bench.collection) < 32:
            raise NotApplicable("too few")
        clock[0] += len(bench.collection)
        return Outcome({})

    changed = {"reconstruction": slow("reconstruction", 0.2, 0.02), "compositionality": slow("compositionality", 0.1, 0.03)}
    changed |= {"masking": replace(TASKS["masking"], run=unfit), "alignment": replace(TASKS["alignment"], run=large)}
    monkeypatch.setattr("sycoca_ds.evaluation.trials.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    for name, task in changed.items():
        monkeypatch.setitem(TASKS, name, task)
    data = Collection(make_data(tmp_path / "data", images=40, captions=1), 32)
    loaded = SimpleNamespace(model=None, config=SimpleNamespace(model=None), tokenizer=None)
    resources = Resources(fresh=lambda config, seed: torch.nn.Identity())
    inputs = Inputs(SuiteOptions(batch_size=64), compositions=(SWAPPED, replace(SWAPPED, name="aro")))
    first, none, late, second, third = trials(loaded, data, inputs, torch.device("cpu"), resources)
    assert asked == [(name, count) for name in ("reconstruction", *2 * ("compositionality",)) for count in (8, 8, 16)]
    assert FEWEST == 8 > 100 // SHARE and FEWEST << LARGER > 40
    assert (none.task, none.reason, none.seconds) == ("masking", "nothing to ask", 0) and not first.reason
    assert (late.task, late.reason, late.seconds) == ("alignment", "", 40), "of 32 and all 40 pictures"
    assert (first.task, first.counted) == ("reconstruction", "40 images")
    assert first.seconds == pytest.approx(0.2 + 40 * 0.02)
    assert [(trial.task, trial.counted) for trial in (second, third)] == [
        ("compositionality", f"100 items of {name}") for name in ("sugarcrepe", "aro")
    ]
    assert third.seconds == pytest.approx(0.1 + 100 * 0.03)
    only = replace(inputs, options=replace(inputs.options, tasks=("retrieval",)))
    assert list(trials(loaded, data, only, torch.device("cpu"), resources)) == []

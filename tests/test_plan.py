"""The sample order: exactly once, the same sequence at every world size, resumable anywhere, over a grid of shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.data.loader import PlannedBatches
from sycoca_ds.data.plan import Plan


def sizes(shards: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 40, shards)


GRID = [  # shards, lanes, window, samples a lane and step
    (57, 16, 13, 2),
    (57, 8, 1, 1),
    (3, 4, 100, 3),
    (40, 16, 5, 1),
    (200, 48, 64, 2),
    (1, 2, 7, 1),
]


def make(shards: int, lanes: int, window: int, per_step: int, seed: int = 7) -> Plan:
    return Plan(sizes(shards, shards), global_batch_size=lanes * per_step, lanes=lanes, window=window, seed=seed)


@pytest.mark.parametrize("shape", GRID)
def test_an_epoch_uses_no_sample_twice_and_leaves_out_less_than_a_global_batch_and_a_lane_remainder(shape: tuple) -> None:
    plan = make(*shape)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        used = np.concatenate([plan.batch(step)[1] for step in steps])
        assert {plan.batch(step)[0] for step in steps} == {epoch}
        assert len(np.unique(used)) == len(used) and used.min() >= 0 and used.max() < plan.samples
        assert plan.samples - len(used) < plan.global_batch_size + plan.lanes


@pytest.mark.parametrize("shape", GRID)
def test_every_world_size_sees_the_same_global_batches_in_the_same_order(shape: tuple) -> None:
    plan = make(*shape)
    steps = range(2 * plan.steps_per_epoch + 1)
    alone = [plan.batch(step)[1] for step in steps]
    for world in (w for w in (2, 3, 4, 8, 16) if plan.lanes % w == 0):
        for step in steps:
            together = np.concatenate([plan.batch(step, world, rank)[1] for rank in range(world)])
            assert np.array_equal(together, alone[step])


def test_a_lane_read_in_pieces_is_the_lane_read_at_once() -> None:
    """Any position is computable without its past: this is what makes resuming a matter of one integer."""
    plan = make(57, 4, 13, 1)
    for lane, start in itertools.product(range(4), (0, 1, 12, 13, 14, 30)):
        whole = plan.lane(5, lane, 0, plan.lane_length)
        assert np.array_equal(plan.lane(5, lane, start, 20), whole[start : start + 20])


def test_a_resumed_reader_goes_on_with_the_same_micro_batches_at_another_world_size() -> None:
    plan = make(57, 16, 13, 2)
    end = 2 * plan.steps_per_epoch + 3

    def read(first: int, world: int) -> list[list[tuple[int, int]]]:
        ranks = [list(PlannedBatches(plan, first, end, world, rank, 1)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1
        return [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)]

    whole = read(0, 1)
    for first, world in ((1, 2), (plan.steps_per_epoch - 1, 4), (plan.steps_per_epoch + 2, 16)):
        assert read(first, world) == whole[first:]


def test_accumulation_cuts_the_same_global_batch() -> None:
    plan = make(57, 16, 13, 2)
    whole = list(PlannedBatches(plan, 0, 4, 2, 1, 1))
    pieces = list(PlannedBatches(plan, 0, 4, 2, 1, 4))
    assert len(pieces) == len(PlannedBatches(plan, 0, 4, 2, 1, 4)) == 16
    assert [list(itertools.chain(*pieces[4 * step : 4 * step + 4])) for step in range(4)] == whole


def test_epochs_and_seeds_differ_and_neighbours_are_pulled_apart() -> None:
    """With windows as long as lanes, consecutive samples must be as far apart as in a full shuffle: mean |a - b| = n / 3."""
    plan = Plan(np.full(50, 40), global_batch_size=40, lanes=4, window=500, seed=1)
    first, second = (np.concatenate([plan.batch(s)[1] for s in range(e * 50, e * 50 + 50)]) for e in (0, 1))
    other = Plan(np.full(50, 40), global_batch_size=40, lanes=4, window=500, seed=2)
    third = np.concatenate([other.batch(s)[1] for s in range(50)])
    for a, b in ((first, second), (first, third)):
        assert (a == b).mean() < 0.01
    assert abs(np.abs(np.diff(first)).mean() / (2000 / 3) - 1) < 0.2


def test_locate_is_the_inverse_of_counting() -> None:
    plan = make(57, 4, 13, 1)
    shard, position = plan.locate(np.arange(plan.samples))
    expected = [(s, p) for s, size in enumerate(plan.sizes) for p in range(size)]
    assert list(zip(shard.tolist(), position.tolist(), strict=True)) == expected


def test_too_few_samples_and_lanes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="keeps 30 samples: expected at least one global batch"):
        Plan(np.array([30]), global_batch_size=32, lanes=4, window=8, seed=0)
    with pytest.raises(UserError, match="data.lanes = 5 does not divide"):
        Plan(np.array([300]), global_batch_size=32, lanes=5, window=8, seed=0)

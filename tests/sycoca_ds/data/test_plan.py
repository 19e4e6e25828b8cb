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
    return Plan([sizes(shards, shards)], global_batch_size=lanes * per_step, lanes=lanes, window=window, seed=seed)


@pytest.mark.parametrize("shape", GRID)
def test_an_epoch_uses_no_sample_twice_and_leaves_out_less_than_a_global_batch_and_a_lane_remainder(shape: tuple) -> None:
    plan = make(*shape)
    for epoch in range(3):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        used = np.concatenate([plan.batch(step)[1] for step in steps])
        assert all((plan.batch(step)[0] == epoch).all() for step in steps)
        assert len(np.unique(used)) == len(used) and used.min() >= 0 and used.max() < plan.samples
        assert plan.samples - len(used) < plan.global_batch_size + plan.lanes


@pytest.mark.parametrize("shape", GRID)
def test_every_world_size_sees_the_same_global_batches_in_the_same_order(shape: tuple) -> None:
    plan = make(*shape)
    steps = range(2 * plan.steps_per_epoch + 1)
    alone = [plan.batch(step)[1] for step in steps]
    for world in (w for w in (1, 2, 3, 4, 8, 16) if plan.lanes % w == 0):
        for step in steps:
            together = np.concatenate([plan.batch(step, world, rank)[1] for rank in range(world)])
            assert np.array_equal(together, alone[step])


def test_a_lane_read_in_pieces_is_the_lane_read_at_once() -> None:
    """Any position is computable without its past: this is what makes resuming a matter of one integer."""
    plan = make(57, 4, 13, 1).sources[0]
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
    plan = Plan([np.full(50, 40)], global_batch_size=40, lanes=4, window=500, seed=1)
    first, second = (np.concatenate([plan.batch(s)[1] for s in range(e * 50, e * 50 + 50)]) for e in (0, 1))
    other = Plan([np.full(50, 40)], global_batch_size=40, lanes=4, window=500, seed=2)
    third = np.concatenate([other.batch(s)[1] for s in range(50)])
    for a, b in ((first, second), (first, third)):
        assert (a == b).mean() < 0.01
    assert abs(np.abs(np.diff(first)).mean() / (2000 / 3) - 1) < 0.2


def test_locate_is_the_inverse_of_counting() -> None:
    plan = Plan([sizes(57, 57), sizes(3, 1)], weights=(1, 1), global_batch_size=4, lanes=4, window=13, seed=7)
    shard, position = plan.locate(np.arange(plan.samples))
    expected = [(s, p) for s, size in enumerate([*sizes(57, 57), *sizes(3, 1)]) for p in range(size)]
    assert list(zip(shard.tolist(), position.tolist(), strict=True)) == expected


def test_too_few_samples_and_lanes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UserError, match="keeps 30 samples: expected at least one global batch"):
        Plan([np.array([30])], global_batch_size=32, lanes=4, window=8, seed=0)
    with pytest.raises(UserError, match="data.lanes = 5 does not divide"):
        Plan([np.array([300])], global_batch_size=32, lanes=5, window=8, seed=0)


# ---- several sources -----------------------------------------------------------------------------------------------------------

MIXES = [  # shards of each source, weights, lanes, samples a lane and step
    ((57, 9), (3.0, 1.0), 16, 2),
    ((57, 9, 30), (0.5, 0.2, 0.3), 48, 1),
    ((20, 40), None, 24, 2),
    ((30, 30, 30, 30), (1, 1, 1, 1), 12, 3),
]


def mixed(shards: tuple, weights: tuple | None, lanes: int, per_step: int, seed: int = 7) -> Plan:
    kept = [sizes(count, number) for number, count in enumerate(shards)]
    return Plan(kept, weights=weights, global_batch_size=lanes * per_step, lanes=lanes, window=11, seed=seed)


def source_of(plan: Plan, samples: np.ndarray) -> np.ndarray:
    return np.searchsorted(plan.first_of, samples, side="right") - 1


@pytest.mark.parametrize("mix", MIXES)
def test_every_global_batch_holds_the_sources_in_their_proportion(mix: tuple) -> None:
    """By samples, not by shards, in every step; what lanes can say of the weights is off by less than one lane."""
    plan = mixed(*mix)
    shares = np.array(plan.lanes_of) / plan.lanes
    weights = np.array(mix[1] if mix[1] else [source.samples for source in plan.sources], dtype=float)
    assert (np.abs(shares - weights / weights.sum()) < 1 / plan.lanes).all() and sum(plan.lanes_of) == plan.lanes
    for step in range(40):
        counts = np.bincount(source_of(plan, plan.batch(step)[1]), minlength=len(mix[0]))
        assert counts.tolist() == [own * plan.per_step for own in plan.lanes_of]


@pytest.mark.parametrize("mix", MIXES)
def test_each_source_is_gone_through_once_before_it_begins_again(mix: tuple) -> None:
    plan = mixed(*mix)
    epochs, samples = (np.concatenate(parts) for parts in zip(*(plan.batch(step) for step in range(200)), strict=True))
    of = source_of(plan, samples)
    for number, source in enumerate(plan.sources):
        mine, when = samples[of == number], epochs[of == number]
        assert (np.diff(when) >= 0).all() and when[-1] == 199 // source.steps_per_epoch
        for epoch in range(when[-1]):
            used = mine[when == epoch]
            assert len(np.unique(used)) == len(used) == source.steps_per_epoch * source.lanes * source.per_step
            assert source.samples - len(used) < source.lanes * (source.per_step + 1)
    assert plan.epochs(200) == [200 / source.steps_per_epoch for source in plan.sources]


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixture_is_the_same_sequence_at_every_world_size(mix: tuple) -> None:
    plan = mixed(*mix)
    for world in (w for w in (2, 3, 4, 8, 16) if plan.lanes % w == 0):
        for step in range(30):
            parts = zip(*(plan.batch(step, world, rank) for rank in range(world)), strict=True)
            for together, alone in zip(map(np.concatenate, parts), plan.batch(step), strict=True):
                assert np.array_equal(together, alone)
        for number, own in enumerate(plan.lanes_of):  # no rank is without a source that has lanes enough
            counts = [np.sum(source_of(plan, plan.batch(0, world, rank)[1]) == number) for rank in range(world)]
            assert max(counts) - min(counts) <= plan.per_step * (1 if own % world == 0 else 2)


def test_equal_sources_are_shuffled_apart() -> None:
    plan = Plan([np.full(20, 20)] * 2, global_batch_size=8, lanes=8, window=50, seed=3)
    drawn = np.concatenate([plan.batch(step)[1] for step in range(90)])
    of = source_of(plan, drawn)
    first, second = drawn[of == 0], drawn[of == 1] - 400
    assert len(first) == len(second) and (first == second).mean() < 0.05


def test_weights_that_mean_nothing_are_refused() -> None:
    two = [np.array([300]), np.array([300])]
    for weights, message in (
        ((1.0,), "data.weights has 1 numbers for 2 folders"),
        ((1.0, -1.0), "data.weights = 1.0 -1.0: expected positive"),
        ((1.0, float("nan")), "expected positive"),
        ((1.0, 1e-6), "source 2 has 0.00% of the weight, less than one of data.lanes = 8"),
    ):
        with pytest.raises(UserError, match=message):
            Plan(two, weights=weights, global_batch_size=8, lanes=8, window=4, seed=0)
    with pytest.raises(
        UserError, match="folder 2 of data.train keeps 3 samples: expected at least one global batch .8, of which 4"
    ):
        Plan([np.array([300]), np.array([3])], weights=(1, 1), global_batch_size=8, lanes=8, window=4, seed=0)


def test_shuffling_is_close_to_a_full_shuffle() -> None:
    """40,000 samples in 40 shards, windows of two shards, 16 lanes. A global batch should hold samples of as many shards as one
    drawn from everywhere, as far apart, and neighbours of one shard should not stay together; a full shuffle is the measure."""
    plan = Plan([np.full(40, 1000)], global_batch_size=256, lanes=16, window=2000, seed=5)
    steps = plan.steps_per_epoch
    ours = np.stack([plan.batch(step)[1] for step in range(steps)])
    full = np.random.default_rng(0).permutation(plan.samples)[: ours.size].reshape(ours.shape)

    def shards_in_a_batch(ids: np.ndarray) -> float:
        return float(np.mean([len(np.unique(batch // 1000)) for batch in ids]))

    def kept_together(ids: np.ndarray) -> float:
        """Share of neighbouring ids (n, n + 1) that come in one batch; 1 / steps by chance."""
        batch_of = np.full(plan.samples + 1, -1)
        batch_of[ids.ravel()] = np.repeat(np.arange(len(ids)), ids.shape[1])
        both = (batch_of[:-1] >= 0) & (batch_of[1:] >= 0)
        return float((batch_of[:-1] == batch_of[1:])[both].mean())

    assert shards_in_a_batch(full) > 39 and shards_in_a_batch(ours) > 25
    assert kept_together(full) < 1.5 / steps and kept_together(ours) < 0.02, "windows of 2,000 give a batch 16 at a time: 0.8 %"
    spread = [np.abs(np.diff(np.sort(batch))).mean() for batch in (ours[steps // 2], full[0])]
    assert abs(spread[0] / spread[1] - 1) < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_shards_ahead_are_those_that_come(seed: int) -> None:
    """Whatever a rank reads in the coming steps, over epoch ends and from several sources, and no more than its windows hold."""
    random = np.random.default_rng(seed)
    sizes = [random.integers(0, 40, random.integers(5, 30)) for _ in range(1 + seed % 2)]
    lanes, per_step, window = 4, int(random.integers(1, 4)), int(random.integers(4, 40))
    plan = Plan(sizes, global_batch_size=lanes * per_step, lanes=lanes, window=window, seed=seed)
    for step in random.integers(0, 3 * plan.sources[0].steps_per_epoch, 12).tolist():
        steps = int(random.integers(1, 60))
        for rank in range(2):
            ahead = plan.shards_ahead(step, steps, 2, rank)
            assert len(ahead) == len(set(ahead))
            come = [set(plan.locate(plan.batch(s, 2, rank)[1])[0].tolist()) for s in range(step, step + steps)]
            assert set().union(*come) <= set(ahead) and come[0] <= set(ahead[: len(plan.shards_ahead(step, 1, 2, rank))])
            # none that the windows of these steps are not made of
            windows = {
                (number, epoch, own, place // window)
                for s in range(step, step + steps)
                for number, own in plan._lane_of[rank * 2 : rank * 2 + 2]
                for epoch, at in [divmod(s, plan.sources[number].steps_per_epoch)]
                for place in range(at * per_step, (at + 1) * per_step)
            }
            made_of = set()
            for number, epoch, own, index in windows:
                source = plan.sources[number]
                whole = source.lane(epoch, own, index * window, min(window, source.lane_length - index * window))
                made_of |= set(plan.locate(whole + plan.first_of[number])[0].tolist())
            assert set(ahead) == made_of
    assert plan.shards_at_once(10_000) == len(plan.sizes)

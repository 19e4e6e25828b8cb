"""Which sample comes when: a pure function of (manifests, seed, step), the same at every world size.

A source's epoch is one permutation of its shards, read as one long sequence, rotated by a random offset and cut into lanes of equal
length at sample granularity. Inside a lane, windows of K samples are shuffled by a counter-based generator, so that any position
can be computed without its past. Every step takes the next m = global_batch / L samples of each of the L lanes; rank r of W owns
lanes r*L/W to (r+1)*L/W. So every W that divides L sees the same global batches in the same order, all ranks have the same number
of steps, and the state of the data is one integer: the step.

Several sources share the L lanes by their weights, so every global batch holds them in the same proportion, and each source has
epochs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_pipeline.errors import UserError


@dataclass(frozen=True)
class EpochOrder:
    """One epoch's shard permutation: `cumulative[i]` samples stand before the i-th shard of `shards`."""

    shards: np.ndarray
    cumulative: np.ndarray
    rotation: int


class SourceOrder:
    """The sample order of one source, lane by lane. Samples are counted through its shards: 0 to `samples` - 1.

    Args:
        kept_per_shard: int64, kept samples of each shard.
        number: which source it is; others of the same run are shuffled otherwise.
        per_step: samples of each lane a step.
    """

    def __init__(self, kept_per_shard: np.ndarray, *, number: int, lanes: int, per_step: int, window: int, seed: int):
        self.sizes = np.asarray(kept_per_shard, dtype=np.int64)
        self.first_id = np.concatenate([[0], np.cumsum(self.sizes)])
        self.samples = int(self.first_id[-1])
        self.number, self.lanes, self.per_step, self.window, self.seed = number, lanes, per_step, window, seed
        self.lane_length = self.samples // lanes
        self.steps_per_epoch = self.lane_length // per_step
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch_order)
        self._window = lru_cache(maxsize=512)(self._shuffle)  # a lane's stays the same for many steps; 32 KiB each

    def _random(self, *counter: int) -> np.random.Generator:
        """A generator that depends on seed, source and counter alone (Philox: keyed, no state to carry)."""
        key, words = np.array([self.seed, self.number], dtype=np.uint64), np.array([0, *counter], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=words))

    def _make_epoch_order(self, epoch: int) -> EpochOrder:
        random = self._random(epoch, 0, 0)
        shards = random.permutation(len(self.sizes))
        return EpochOrder(shards, np.concatenate([[0], np.cumsum(self.sizes[shards])]), int(random.integers(self.samples)))

    def _shuffle(self, epoch: int, lane: int, window: int, size: int) -> np.ndarray:
        return self._random(epoch, lane + 1, window).permutation(size)

    def lane(self, epoch: int, lane: int, start: int, count: int) -> np.ndarray:
        """`count` samples of one lane from position `start`: int64 (count,). Touches only their windows."""
        order, out, at, end = self._epoch_order(epoch), [], start, start + count
        while at < end:
            window = at // self.window
            low = window * self.window
            high = min(low + self.window, self.lane_length)
            take = self._window(epoch, lane, window, high - low)[at - low : min(high, end) - low]
            position = (lane * self.lane_length + low + take + order.rotation) % self.samples
            place = np.searchsorted(order.cumulative, position, side="right") - 1
            out.append(self.first_id[order.shards[place]] + position - order.cumulative[place])
            at += len(take)
        return np.concatenate(out)

    def shards(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """Shards that a window of a lane is made of, in their order."""
        order = self._epoch_order(epoch)
        low = window * self.window
        first = (lane * self.lane_length + low + order.rotation) % self.samples
        places = first + np.array([0, min(self.window, self.lane_length - low) - 1])
        if places[1] >= self.samples:  # around the end of the sequence
            places = np.array([places[0], self.samples - 1, 0, places[1] - self.samples])
        at = np.searchsorted(order.cumulative, places, side="right") - 1
        ranges = [np.arange(low, high + 1) for low, high in at.reshape(-1, 2)]
        return order.shards[np.concatenate(ranges)]

    def step(self, step: int, lane: int) -> tuple[int, np.ndarray]:
        """(epoch, samples) that a lane gives to a step of the whole run."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return epoch, self.lane(epoch, lane, at * self.per_step, self.per_step)


def allot(lanes: int, weights: Sequence[float]) -> list[int]:
    """Lanes of each source: `lanes * weight / sum of weights`, by largest remainders, ties to the earlier source.

    Raises:
        UserError: a weight that is no positive number, or too small for a lane.
    """
    total = sum(weights)
    if any(not 0 < weight < float("inf") for weight in weights):
        raise UserError(f"data.weights = {' '.join(map(str, weights))}: expected positive numbers")
    exact = [lanes * weight / total for weight in weights]
    given = [int(value) for value in exact]
    rest = sorted(range(len(exact)), key=lambda number: (given[number] - exact[number], number))
    for number in rest[: lanes - sum(given)]:
        given[number] += 1
    if 0 in given:
        small = given.index(0)
        raise UserError(
            f"data.weights: source {small + 1} has {weights[small] / total:.2%} of the weight, less than one of data.lanes = "
            f"{lanes}: raise its weight or data.lanes"
        )
    return given


class Plan:
    """Sample order over the shards of all sources; their samples and shards are counted through, source after source.

    Args:
        sources: for each source the kept samples of its shards, int64.
        weights: the share of each source in every global batch, up to a common factor; None: by samples. What is possible are whole
            lanes: `lanes_of` says what it came to.
        lanes, window, seed, global_batch_size: see the module's text.

    Raises:
        UserError: weights that do not fit, fewer samples than a step needs, or lanes that do not divide the global batch.
    """

    def __init__(
        self,
        sources: Sequence[np.ndarray],
        *,
        weights: Sequence[float] | None = None,
        global_batch_size: int,
        lanes: int,
        window: int,
        seed: int,
    ):
        if global_batch_size % lanes:
            raise UserError(f"data.lanes = {lanes} does not divide optim.global-batch-size = {global_batch_size}")
        sizes = [np.asarray(kept, dtype=np.int64) for kept in sources]
        if weights is not None and len(weights) != len(sizes):
            raise UserError(
                f"data.weights has {len(weights)} numbers for {len(sizes)} folders in data.train: expected one for each"
            )
        samples = [int(kept.sum()) for kept in sizes]
        self.sizes = np.concatenate(sizes)
        self.samples, self.first_id = sum(samples), np.concatenate([[0], np.cumsum(self.sizes)])
        self.first_shard = np.concatenate([[0], np.cumsum([len(kept) for kept in sizes])])
        self.global_batch_size, self.lanes, self.window, self.seed = global_batch_size, lanes, window, seed
        self.per_step = global_batch_size // lanes
        self.lanes_of = [lanes] if len(sizes) == 1 else allot(lanes, samples if weights is None else weights)
        self.sources = [
            SourceOrder(kept, number=number, lanes=own, per_step=self.per_step, window=window, seed=seed)
            for number, (kept, own) in enumerate(zip(sizes, self.lanes_of, strict=True))
        ]
        self.first_of = np.concatenate([[0], np.cumsum(samples)])
        for number, source in enumerate(self.sources):
            if source.steps_per_epoch < 1:
                which = "the training manifest" if len(sizes) == 1 else f"folder {number + 1} of data.train"
                part = "" if len(sizes) == 1 else f", of which {source.lanes * self.per_step} are its own"
                raise UserError(
                    f"{which} keeps {source.samples} samples: expected at least one global batch "
                    f"({global_batch_size}{part}); build more data or lower optim.global-batch-size"
                )
        # Spread evenly, so that each rank has nearly the same proportions: lane j of k stands at (j + 1/2) / k of the whole.
        places = [((own + 0.5) / source.lanes, n, own) for n, source in enumerate(self.sources) for own in range(source.lanes)]
        self._lane_of = [(number, own) for _, number, own in sorted(places)]

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which as many samples are used as there are. Of one source: until all but a remainder were used."""
        return self.sources[0].steps_per_epoch if len(self.sources) == 1 else max(1, self.samples // self.global_batch_size)

    def epochs(self, step: int) -> list[float]:
        """How often each source has been gone through before a step."""
        return [step / source.steps_per_epoch for source in self.sources]

    def batch(self, step: int, world_size: int = 1, rank: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """This rank's share of the global batch of a step, steps counted over the whole run.

        Returns:
            (epoch of each sample in its source, sample), int64 (global_batch / W,) each.
        """
        share, epochs, samples = self.lanes // world_size, [], []
        for number, own in self._lane_of[rank * share : (rank + 1) * share]:
            epoch, taken = self.sources[number].step(step, own)
            epochs.append(np.full(len(taken), epoch))
            samples.append(taken + self.first_of[number])
        return np.concatenate(epochs), np.concatenate(samples)

    def shards_ahead(self, step: int, steps: int, world_size: int = 1, rank: int = 0) -> list[int]:
        """Shards of all windows that a rank's lanes touch from `step` to before `step + steps`, each lane's first ones first."""
        share, found, ahead, more = self.lanes // world_size, {}, 0, True
        while more:
            more = False
            for number, own in self._lane_of[rank * share : (rank + 1) * share]:
                source = self.sources[number]
                used = source.steps_per_epoch * self.per_step
                each = -(-used // self.window)  # windows an epoch
                epoch, at = divmod(step, source.steps_per_epoch)
                epoch, window = divmod(epoch * each + at * self.per_step // self.window + ahead, each)
                if epoch * used + window * self.window < (step + steps) * self.per_step:
                    found |= dict.fromkeys((source.shards(epoch, own, window) + self.first_shard[number]).tolist())
                    more = True
            ahead += 1
        return [shard for shard in found if self.sizes[shard]]

    def shards_at_once(self, lanes: int) -> int:
        """About as many shards hold the windows that so many lanes are in, and the next ones."""
        each = max(1 + self.window / source.sizes.mean() for source in self.sources)
        return min(len(self.sizes), round(2 * lanes * each))

    def locate(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard numbers, positions among that shard's kept samples)."""
        shard = np.searchsorted(self.first_id, samples, side="right") - 1
        return shard, samples - self.first_id[shard]

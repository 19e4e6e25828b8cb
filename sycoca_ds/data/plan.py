"""Which sample comes when: a pure function of (manifest, seed, epoch, step), the same at every world size.

An epoch is one permutation of the shards, read as one long sequence, rotated by a random offset and cut into L lanes of equal
length at sample granularity. Inside a lane, windows of K samples are shuffled by a counter-based generator, so that any
position can be computed without its past. Step t takes the next m = global_batch / L samples of every lane; rank r of W owns
lanes r*L/W to (r+1)*L/W. So every W that divides L sees the same global batches in the same order, all ranks have the same
number of steps, and the state of the data is one integer: the step.
"""

from __future__ import annotations

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


class Plan:
    """Sample order over shards of unequal size.

    Args:
        kept_per_shard: int64, kept samples of each shard; a sample's global id counts kept samples in shard order.
        lanes, window, seed, global_batch_size: see the module's text.

    Raises:
        UserError: fewer samples than one global batch, or lanes that do not divide the global batch.
    """

    def __init__(self, kept_per_shard: np.ndarray, *, global_batch_size: int, lanes: int, window: int, seed: int):
        self.sizes = np.asarray(kept_per_shard, dtype=np.int64)
        self.first_id = np.concatenate([[0], np.cumsum(self.sizes)])
        self.samples = int(self.first_id[-1])
        self.global_batch_size, self.lanes, self.window, self.seed = global_batch_size, lanes, window, seed
        if global_batch_size % lanes:
            raise UserError(f"data.lanes = {lanes} does not divide optim.global-batch-size = {global_batch_size}")
        self.per_step = global_batch_size // lanes
        self.lane_length = self.samples // lanes
        self.steps_per_epoch = self.lane_length // self.per_step
        if self.steps_per_epoch < 1:
            raise UserError(
                f"the training manifest keeps {self.samples} samples: expected at least one global batch "
                f"({global_batch_size}); build more data or lower optim.global-batch-size"
            )
        self._epoch_order = lru_cache(maxsize=2)(self._make_epoch_order)

    def _random(self, *counter: int) -> np.random.Generator:
        """A generator that depends on the seed and the counter alone (Philox: keyed, no state to carry)."""
        return np.random.Generator(
            np.random.Philox(key=np.array([self.seed, 0], dtype=np.uint64), counter=np.array([0, *counter], dtype=np.uint64))
        )

    def _make_epoch_order(self, epoch: int) -> EpochOrder:
        random = self._random(epoch, 0, 0)
        shards = random.permutation(len(self.sizes))
        return EpochOrder(shards, np.concatenate([[0], np.cumsum(self.sizes[shards])]), int(random.integers(self.samples)))

    def lane(self, epoch: int, lane: int, start: int, count: int) -> np.ndarray:
        """Global ids of `count` samples of one lane from position `start`: int64 (count,). Touches only their windows."""
        order, out, at, end = self._epoch_order(epoch), [], start, start + count
        while at < end:
            window = at // self.window
            low = window * self.window
            high = min(low + self.window, self.lane_length)
            shuffled = self._random(epoch, lane + 1, window).permutation(high - low)
            take = shuffled[at - low : min(high, end) - low]
            position = (lane * self.lane_length + low + take + order.rotation) % self.samples
            place = np.searchsorted(order.cumulative, position, side="right") - 1
            out.append(self.first_id[order.shards[place]] + position - order.cumulative[place])
            at += len(take)
        return np.concatenate(out)

    def batch(self, step: int, world_size: int = 1, rank: int = 0) -> tuple[int, np.ndarray]:
        """(epoch, global ids int64 of this rank's share of the global batch of `step`), steps counted over the whole run."""
        epoch, at = divmod(step, self.steps_per_epoch)
        share = self.lanes // world_size
        ids = [self.lane(epoch, lane, at * self.per_step, self.per_step) for lane in range(rank * share, (rank + 1) * share)]
        return epoch, np.concatenate(ids)

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(shard numbers, positions among that shard's kept samples) of global ids."""
        shard = np.searchsorted(self.first_id, ids, side="right") - 1
        return shard, ids - self.first_id[shard]

"""Reads samples by place from tar shards: the index says where each member's bytes lie, so no tar is ever parsed here."""

from __future__ import annotations

import copy
import logging
import os
import signal
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from data_pipeline.catalogue.captions import lines_of
from data_pipeline.errors import UserError
from sycoca_ds.data.batch import AHEAD, Batch, Piece, Pixels, SharedPieces
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer, trim
from sycoca_ds.data.transforms import Augmentation, load_image
from sycoca_ds.model.text_encoder import label_places

log = logging.getLogger(__name__)

STAND_IN_TRIES = 8
UNREADABLE = (OSError, ValueError, UserError)


class ShardReader:
    """Bytes of single samples by (shard, position among its kept samples). Each loader process has its own.

    Args:
        keep_open: tars and their index columns that stay open, the most recently used; see `Plan.shards_at_once`.
    """

    def __init__(self, sources: Sources, keep_open: int = 64):
        self.sources, self.keep_open = sources, keep_open
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict:
        return {**vars(self), "_open": OrderedDict()}  # file descriptors do not travel to worker processes

    def read(self, shard: int, position: int, epoch: int = 0) -> tuple[bytes, str]:
        """(image bytes, caption). Of several captions each epoch takes the next.

        Raises:
            OSError: the tar cannot be read, ends before the member does, or holds other bytes than those that were verified.
            UnicodeDecodeError: the caption is not UTF-8.
            ManifestError: the shard's index is damaged.
        """
        descriptor, places = self._shard(shard)
        image_at, image_bytes, text_at, text_bytes, crc32, captions = places[position].tolist()
        image, text = self._bytes(descriptor, shard, image_at, image_bytes), self._bytes(descriptor, shard, text_at, text_bytes)
        if zlib.crc32(text, zlib.crc32(image)) != crc32:  # a flipped bit seldom stops a decoder; it paints something else
            self._forget(shard)
            raise OSError(f"sample {position} of {self.sources.name(shard)} is not what was verified (crc32)")
        caption = text.decode()
        return image, caption if captions == 1 else lines_of(caption)[epoch % captions]

    def _bytes(self, descriptor: int, shard: int, offset: int, count: int) -> bytes:
        data = os.pread(descriptor, count, offset)
        if len(data) != count:
            self._forget(shard)
            raise OSError(f"{self.sources.name(shard)} ends inside a member: {len(data)} of {count} bytes at {offset}")
        return data

    def _forget(self, shard: int) -> None:
        """Has a remote shard fetched anew next time: the copy is damaged."""
        if remote := self.sources.remote(shard):
            self.sources.cache.forget(remote[0])

    def _shard(self, shard: int) -> tuple[int, np.ndarray]:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            names = ["image_offset", "image_bytes", "text_offset", "text_bytes", "crc32", "captions"]
            table = self.sources.index(shard, names)
            places = np.stack([table[name].to_numpy() for name in names], axis=1)
            self._open[shard] = (self.sources.open(shard), places)
            if len(self._open) > self.keep_open:
                os.close(self._open.popitem(last=False)[1][0])
        return self._open[shard]


class SampleRandom:
    """Random numbers that depend on (seed, epoch, sample) alone: a counter-based generator, set instead of made for each sample."""

    def __init__(self, seed: int):
        self._bits = np.random.Philox(key=np.array([seed, 0], dtype=np.uint64))
        self._state, self._generator = self._bits.state, np.random.Generator(self._bits)
        self._start = {name: self._state[name] for name in ("buffer_pos", "has_uint32", "uinteger")}

    def at(self, epoch: int, sample: int) -> np.random.Generator:
        """The generator, at the beginning of this sample's numbers; the next call moves it."""
        self._state["state"]["key"][1] = epoch
        self._state["state"]["counter"][:] = (0, 0, 1, sample)
        self._bits.state = self._state | self._start
        return self._generator


class LostSample(Exception):
    """Neither a sample nor any of its stand-ins can be read."""


class TrainSet(Dataset):
    """(epoch, global id) -> augmented sample, not yet resized: a function of (seed, epoch, id) alone, not of the worker."""

    NOTHING: Any = ""
    """What is said of the black picture in the place of a lost sample."""

    def __init__(
        self,
        sources: Sources,
        plan: Plan,
        tokenizer: Tokenizer,
        *,
        augmentation: Augmentation,
        context_length: int,
        keep_open: int = 64,
    ):
        self.plan, self.reader, self.tokenizer_path = plan, ShardReader(sources, keep_open), tokenizer.path
        self.augmentation, self.context_length = augmentation, context_length
        self.random = SampleRandom(plan.seed)
        self.pieces: SharedPieces | None = None
        self._room = 0
        self._tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.plan.samples

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Batch:
        if self._tokenizer is None:  # built where it is used: the Rust object is not worth pickling
            self._tokenizer = Tokenizer(self.tokenizer_path)
        piece = self._piece()
        pixels = Pixels(np.empty(max(self._room, 1 << 20), np.uint8) if piece is None else piece.memory.numpy())
        sizes, said, stand_ins, lost = [], [], 0, None
        shards, positions = (values.tolist() for values in self.plan.locate(np.array([sample for _, sample in wanted])))
        for (epoch, sample), shard, position in zip(wanted, shards, positions, strict=True):
            random = self.random.at(epoch, sample)
            try:
                if lost:  # this step will not be saved: nothing more is read for it
                    raise LostSample(lost)
                image, words, replaced = self._read_or_stand_in(epoch, sample, shard, position)
            except LostSample as reason:
                # not raised: this rank would leave, and the others would wait for it in a collective; the loop stops all
                size = self.augmentation.size
                image, words, replaced, lost = np.zeros((size, size, 3), np.uint8), self.NOTHING, 1, str(reason)
            stand_ins += replaced
            crop = self.augmentation(image, random)
            pixels.append(crop)
            sizes.append(crop.shape[:2])
            said.append(words)
        if piece is not None and pixels.grew:
            self.pieces.take(piece)
            piece = None
        self._room = max(self._room, pixels.used * 9 // 8)  # crops differ, and so do batches
        keys = [((self.plan.seed * 1_000_003 + epoch) * 1_000_000_007 + sample) % (1 << 62) for epoch, sample in wanted]
        more = {"key_B": torch.tensor(keys), "stand_ins": stand_ins, "lost": lost, "piece": piece}
        return self._batch(pixels.tensor(), torch.tensor(sizes), said, **more)

    def _piece(self) -> Piece | None:
        """Shared memory for the next batch, in a loader process that knows how much that takes."""
        worker = get_worker_info()
        return self.pieces.lend(worker.id, self._room) if self.pieces and worker and self._room else None

    def _batch(self, pixels: Tensor, size_B2: Tensor, said: Sequence[Any], **more: Any) -> Batch:
        """What `_read` gave of each sample, as a micro-batch."""
        text_BL = torch.from_numpy(trim(self._tokenizer.encode(said, self.context_length)))
        return Batch(pixels, size_B2, text_BL, label_places(text_BL, self._tokenizer.eot_id), **more)

    def _tar(self, shard: int) -> int:
        """The tar that a shard of the plan is read from."""
        return shard

    def _read(self, epoch: int, shard: int, position: int) -> tuple[np.ndarray, Any]:
        data, caption = self.reader.read(shard, position, epoch)
        return load_image(data, at_least=self.augmentation.size), caption

    def _read_or_stand_in(self, epoch: int, sample: int, shard: int, position: int) -> tuple[np.ndarray, Any, int]:
        """(picture, caption, 0), or the next readable sample in its place, the same one on every run, and 1.

        Raises:
            LostSample: no stand-in can be read either; or the shard is behind a URL and cannot be had, which may pass: then there
                are no stand-ins, which would make another run of this one.
        """
        for number in range(sample, sample + STAND_IN_TRIES):
            if number > sample:
                number %= self.plan.samples
                shard, position = (int(value) for value in self.plan.locate(np.int64(number)))
            try:
                return *self._read(epoch, shard, position), int(number != sample)
            except UNREADABLE as error:
                tar, reason = self._tar(shard), error
                name = self.reader.sources.name(tar)
                if isinstance(error, OSError) and self.reader.sources.remote(tar):
                    raise LostSample(f"{error}; look at the store, the credentials and data.cache") from error
            log.warning("sample %d (position %d of %s) replaced by the next one: %s", number, position, name, reason)
        raise LostSample(
            f"samples {sample} to {sample + STAND_IN_TRIES - 1} cannot be read ({reason}); run `python -m data_pipeline verify` on "
            f"the folder of {name}, and restore the shard as it was verified"
        )


class PlannedBatches:
    """Micro-batches of one rank as lists of (epoch, global id), from `first_step` to `last_step`.

    Args:
        on_step: called with each step before its batches are handed out, in the process that asks for them.
    """

    def __init__(
        self,
        plan: Plan,
        first_step: int,
        last_step: int,
        world_size: int,
        rank: int,
        accumulation_steps: int,
        on_step: Callable[[int], None] | None = None,
    ):
        self.plan, self.first_step, self.last_step = plan, first_step, last_step
        self.world_size, self.rank, self.accumulation_steps, self.on_step = world_size, rank, accumulation_steps, on_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.last_step):
            if self.on_step is not None:
                self.on_step(step)
            epochs, samples = self.plan.batch(step, self.world_size, self.rank)
            pairs = list(zip(epochs.tolist(), samples.tolist(), strict=True))
            size = len(pairs) // self.accumulation_steps
            for first in range(0, len(pairs), size):
                yield pairs[first : first + size]


def _as_is(batch: Batch) -> Batch:
    return batch


LOOK_SECONDS = 2.0
"""Between two looks of a loader process at its trainer."""


def _live_as_long_as_the_trainer(worker: int) -> None:
    """A stop signal reaches every process of a job, from Slurm as from DeepSpeed's launcher. A worker that died of it would end
    the run with an error before the trainer has saved. It ends when the trainer does, however that ends: torch's own look at it
    comes between two batches, and a worker whose batches fill the pipe would wait on it for ever."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    trainer = os.getppid()

    def look() -> None:
        while os.getppid() == trainer:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=look, daemon=True, name="trainer").start()


def train_loader(dataset: TrainSet, batches: PlannedBatches, workers: int, pin: bool) -> Iterator[Batch]:
    """Starts the loader processes; micro-batches in the plan's order, whatever their number."""
    dataset = copy.copy(dataset)  # of two loaders of one each has its own pieces, and keeps them
    dataset.pieces = SharedPieces(workers) if workers else None
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        prefetch_factor=AHEAD if workers else None,
        worker_init_fn=_live_as_long_as_the_trainer,
    )
    return iter(loader)

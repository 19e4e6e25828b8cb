"""Reads samples by place from tar shards: the index says where each member's bytes lie, so no tar is ever parsed here."""

from __future__ import annotations

import logging
import os
import signal
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data_pipeline.errors import UserError
from sycoca_ds.data.plan import Plan
from sycoca_ds.data.sources import Sources
from sycoca_ds.data.tokenizer import Tokenizer, trim
from sycoca_ds.data.transforms import Augmentation, load_image

log = logging.getLogger(__name__)

OPEN_SHARDS = 64
"""Tars and indices a process keeps open; the lanes of a rank walk through few shards at a time."""
STAND_IN_TRIES = 8


class ShardReader:
    """Bytes of single samples by (shard, position among its kept samples). Each loader process has its own.

    Opened tars and their index columns are kept in a bounded least-recently-used cache.
    """

    def __init__(self, sources: Sources):
        self.sources = sources
        self._open: OrderedDict[int, tuple[int, np.ndarray]] = OrderedDict()

    def __getstate__(self) -> dict:
        return {"sources": self.sources, "_open": OrderedDict()}  # file descriptors do not travel to worker processes

    def read(self, shard: int, position: int) -> tuple[bytes, str]:
        """(image bytes, caption).

        Raises:
            OSError: the tar cannot be read, or ends before the member does.
            UnicodeDecodeError: the caption is not UTF-8.
            ManifestError: the shard's index is damaged.
        """
        descriptor, places = self._shard(shard)
        image_at, image_bytes, text_at, text_bytes = (int(value) for value in places[position])
        return self._bytes(descriptor, shard, image_at, image_bytes), self._bytes(descriptor, shard, text_at, text_bytes).decode()

    def _bytes(self, descriptor: int, shard: int, offset: int, count: int) -> bytes:
        data = os.pread(descriptor, count, offset)
        if len(data) != count:
            raise OSError(f"{self.sources.shard(shard).path} ends inside a member: {len(data)} of {count} bytes at {offset}")
        return data

    def _shard(self, shard: int) -> tuple[int, np.ndarray]:
        if shard in self._open:
            self._open.move_to_end(shard)
        else:
            names = ["image_offset", "image_bytes", "text_offset", "text_bytes"]
            manifest, own = self.sources.place(shard)
            table = manifest.index(own, columns=names)
            places = np.stack([table[name].to_numpy() for name in names], axis=1)
            self._open[shard] = (os.open(manifest.shards[own].path, os.O_RDONLY), places)
            if len(self._open) > OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1][0])
        return self._open[shard]


class LostSample(Exception):
    """Neither a sample nor any of its stand-ins can be read."""


@dataclass
class Batch:
    """One micro-batch on the host.

    image_BCHW: uint8; text_BL: int64, trimmed to the longest caption; key_B: int64, the key of each sample's random masks;
    stand_ins: samples that could not be read and were replaced; lost: those for which no stand-in could be read either, which are
    black pictures without words, and why.
    """

    image_BCHW: Tensor
    text_BL: Tensor
    key_B: Tensor
    stand_ins: int
    lost: str | None = None

    def pin_memory(self) -> Batch:
        tensors = (self.image_BCHW.pin_memory(), self.text_BL.pin_memory(), self.key_B.pin_memory())
        return Batch(*tensors, self.stand_ins, self.lost)


class TrainSet(Dataset):
    """(epoch, global id) -> augmented sample. Augmentation depends on (seed, epoch, id) alone, not on the worker."""

    def __init__(
        self,
        sources: Sources,
        plan: Plan,
        tokenizer: Tokenizer,
        *,
        augmentation: Augmentation,
        context_length: int,
    ):
        self.plan, self.reader, self.tokenizer_path = plan, ShardReader(sources), tokenizer.path
        self.augmentation, self.context_length = augmentation, context_length
        self._tokenizer: Tokenizer | None = None

    def __len__(self) -> int:
        return self.plan.samples

    def __getitems__(self, wanted: list[tuple[int, int]]) -> Batch:
        if self._tokenizer is None:  # built where it is used: the Rust object is not worth pickling
            self._tokenizer = Tokenizer(self.tokenizer_path)
        images, captions, keys, stand_ins, lost = [], [], [], 0, None
        for epoch, sample in wanted:
            keys.append((self.plan.seed * 1_000_003 + epoch) * 1_000_000_007 + sample)
            try:
                image, caption, replaced = self._sample(epoch, sample)
            except LostSample as error:
                # not raised: this rank would leave, and the others would wait for it in a collective; the loop stops them all
                size = self.augmentation.size
                image, caption, replaced, lost = np.zeros((size, size, 3), np.uint8), "", 1, str(error)
            images.append(image)
            captions.append(caption)
            stand_ins += replaced
        text_BL = trim(self._tokenizer.encode(captions, self.context_length))
        image_BHWC = torch.from_numpy(np.stack(images))
        key_B = torch.tensor([key % (1 << 62) for key in keys], dtype=torch.int64)
        return Batch(image_BHWC.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(text_BL), key_B, stand_ins, lost)

    def _sample(self, epoch: int, sample: int) -> tuple[np.ndarray, str, int]:
        """(picture, caption, 0), or the next readable sample in its place (the same one on every run) and 1; or `LostSample`."""
        for tried in range(STAND_IN_TRIES):
            number = (sample + tried) % self.plan.samples
            shard, position = (int(value) for value in self.plan.locate(np.int64(number)))
            try:
                data, caption = self.reader.read(shard, position)
                image = load_image(data, at_least=self.augmentation.size)
            except (OSError, ValueError, UserError) as error:
                path = self.reader.sources.shard(shard).path
                log.warning("sample %d (position %d of %s) replaced by the next one: %s", number, position, path, error)
                continue
            random = np.random.Generator(
                np.random.Philox(
                    key=np.array([self.plan.seed, epoch], dtype=np.uint64), counter=np.array([0, 0, 1, sample], dtype=np.uint64)
                )
            )
            return self.augmentation(image, random), caption, int(tried > 0)
        raise LostSample(
            f"samples {sample} to {sample + STAND_IN_TRIES - 1} cannot be read; run `python -m data_pipeline verify` on the folder "
            f"of {path}"
        )


class PlannedBatches:
    """Micro-batches of one rank as lists of (epoch, global id), from `first_step` to `last_step`."""

    def __init__(self, plan: Plan, first_step: int, last_step: int, world_size: int, rank: int, accumulation_steps: int):
        self.plan, self.first_step, self.last_step = plan, first_step, last_step
        self.world_size, self.rank, self.accumulation_steps = world_size, rank, accumulation_steps

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.last_step):
            epochs, samples = self.plan.batch(step, self.world_size, self.rank)
            pairs = list(zip(epochs.tolist(), samples.tolist(), strict=True))
            size = len(pairs) // self.accumulation_steps
            for first in range(0, len(pairs), size):
                yield pairs[first : first + size]


def _as_is(batch: Batch) -> Batch:
    return batch


def _leave_signals_to_the_trainer(worker: int) -> None:
    """A stop signal reaches every process of a job, from Slurm as from DeepSpeed's launcher. A worker that died of it would end
    the run with an error before the trainer has saved; workers end when the trainer does."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def train_loader(dataset: TrainSet, batches: PlannedBatches, workers: int, pin: bool) -> DataLoader:
    """Micro-batches in the plan's order, whatever the number of workers."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_is,
        pin_memory=pin,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_trainer,
    )

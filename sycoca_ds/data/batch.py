"""A micro-batch on its way from a loader process to the device, its pictures in shared memory that is used again.

torch's DataLoader puts each batch into new shared memory: pages to be made and copied to in the loader process, and to be found
again by the trainer. Here a loader process keeps a few pieces of it. A batch says in which it lies; the trainer keeps each piece it
has met and says when it is done with a batch, and only then is that piece written again. A batch that nobody gives back keeps its
piece, and where all are away a batch goes torch's way.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from multiprocessing import SimpleQueue
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from sycoca_ds.data.resampling import resize_crops

AHEAD = 4
"""Batches that a loader process may be ahead."""
PIECES = AHEAD + 2
"""Of a loader process: one more that it fills, and one that the trainer reads."""
_counter = itertools.count()


class SharedPieces:
    """Pieces of shared memory of some loader processes, as the trainer and each of them have it.

    Args:
        workers: how many loader processes there are.
    """

    met: WeakValueDictionary[tuple[int, int], SharedPieces] = WeakValueDictionary()
    """In the trainer, by `name`: batches come through a pipe, and have to find theirs."""

    def __init__(self, workers: int):
        self.name = (os.getpid(), next(_counter))
        self.back_W = [SimpleQueue() for _ in range(workers)]
        """Numbers of a process's pieces that may be written again."""
        self.known: dict[tuple[int, int], Tensor] = {}
        """In the trainer: the memory of (process, piece)."""
        self._own: list[Tensor] = []
        self._free: list[int] = []
        self.met[self.name] = self

    def lend(self, worker: int, room: int) -> Piece | None:
        """A piece that nobody reads, of at least `room` bytes. None where all are away."""
        while not self.back_W[worker].empty():
            self._free.append(self.back_W[worker].get())
        if self._free:
            number = self._free.pop()
        elif len(self._own) < PIECES:
            number = len(self._own)
            self._own.append(torch.empty(0, dtype=torch.uint8))
        else:
            return None
        fresh = len(self._own[number]) < room
        if fresh:
            self._own[number] = torch.empty(room, dtype=torch.uint8).share_memory_()
        return Piece(self.name, worker, number, self._own[number], fresh)

    def take(self, piece: Piece) -> None:
        """In the loader process: it was not needed."""
        self._own[piece.number] = torch.empty(0, dtype=torch.uint8)  # the trainer may not know it
        self._free.append(piece.number)


@dataclass
class Piece:
    """A piece of shared memory that a batch lies in."""

    pieces: tuple[int, int]
    worker: int
    number: int
    memory: Tensor
    """uint8."""
    fresh: bool
    """The trainer has not met it."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "memory": self.memory if self.fresh else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        pieces = SharedPieces.met.get(self.pieces)
        if pieces is not None and self.fresh:
            pieces.known[self.worker, self.number] = self.memory
        elif pieces is not None:
            self.memory = pieces.known[self.worker, self.number]
        elif not self.fresh:  # its loader has ended, and nobody will read it
            self.memory = torch.empty(0, dtype=torch.uint8)

    def give_back(self) -> None:
        if pieces := SharedPieces.met.get(self.pieces):  # else its loader has ended
            pieces.back_W[self.worker].put(self.number)


class Pixels:
    """Pictures one after another in one piece of memory, each copied at once: its own memory is then free for the next, which
    spares the allocator fresh pages."""

    def __init__(self, memory: np.ndarray):
        self.memory, self.used, self.grew = memory, 0, False

    def append(self, image: np.ndarray) -> None:
        end = self.used + image.size
        if end > len(self.memory):
            self.memory, self.grew = np.concatenate([self.memory[: self.used], np.empty(end, np.uint8)]), True
        self.memory[self.used : end].reshape(image.shape)[:] = image
        self.used = end

    def tensor(self) -> Tensor:
        return torch.from_numpy(self.memory[: self.used])


@dataclass
class Batch:
    """One micro-batch on the host.

    pixels: uint8, RGB crops (h, w, 3) one after another; size_B2: int64, height and width of each; text_BL: int64, trimmed to the
    longest caption; label_at_M: int64, `label_places` of it; key_B: int64, the key of each sample's random masks; stand_ins:
    samples that could not be read and were replaced; lost: those for which no stand-in could be read either, which are black
    pictures without words, and why; piece: what `pixels` lies in, until it is given back.
    """

    pixels: Tensor
    size_B2: Tensor
    text_BL: Tensor
    label_at_M: Tensor
    key_B: Tensor
    stand_ins: int
    lost: str | None = None
    piece: Piece | None = None

    SENT = ("pixels", "text_BL", "label_at_M", "key_B")
    """Tensors that go to the device."""

    def __getstate__(self) -> dict[str, Any]:
        """Small tensors as arrays, in the pipe itself: each tensor would be a file in shared memory."""
        state = {name: x.numpy() if isinstance(x, Tensor) and name != "pixels" else x for name, x in vars(self).items()}
        return state if self.piece is None else {**state, "pixels": len(self.pixels)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update({name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in state.items()})
        if self.piece is not None:
            self.pixels = self.piece.memory[: state["pixels"]]

    def pin_memory(self) -> Batch:
        pinned = replace(self, piece=None, **{name: getattr(self, name).pin_memory() for name in self.SENT})
        self._give_back()
        return pinned

    def to_device(self, device: torch.device, size: int) -> dict[str, Tensor]:
        """What the model's `train` takes: image_BCHW (uint8, size x size, which it normalises itself), text_BL, label_at_M and
        key_B. The host waits for no copy of pinned memory. Once: shared memory is given back."""
        there = {name: getattr(self, name).to(device, non_blocking=True) for name in self.SENT}
        found = {"image_BCHW": resize_crops(there.pop("pixels"), self.size_B2, size), **there}
        self._give_back()
        return found

    def _give_back(self) -> None:
        if self.piece is not None:
            self.piece.give_back()
            self.piece, self.pixels = None, self.pixels[:0]  # whoever reads it later must not read another batch

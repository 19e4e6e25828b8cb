"""A checkpoint's files in this host's memory: what the training waits for; writing them to disk is another process's work."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

TAG = "step"


class WholeFile(io.FileIO):
    """A file without a buffer whose `write` writes all it is given. The system writes at most 2 GiB at a time, and `torch.save`
    does not look how much that was: a larger tensor would end there, and all that come after it stand in the wrong place."""

    def write(self, data) -> int:
        left = memoryview(data).cast("B")
        count = len(left)
        while left:
            left = left[super().write(left) :]
        return count


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """`torch.save` without the checksums of its own, which take as long as the copy: the writer's are of every byte."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class Snapshot(CheckpointEngine):
    """Takes the place of DeepSpeed's checkpoint engine for one call of `save_checkpoint`: what it would write to disk goes into
    anonymous memory, which is kept from save to save (touching new pages takes longer than copying).

    Attributes:
        sizes: file name -> bytes of this snapshot.
    """

    def __init__(self) -> None:
        super().__init__()
        self.name, self.sizes = "memory", {}
        self._files: dict[str, WholeFile] = {}
        self._root = Path()

    def take(self, engine, extra: dict[str, Any], copies: dict[str, bytes]) -> None:
        """On all ranks: the engine's state, and more files of this rank.

        Args:
            engine: DeepSpeed engine.
            extra: file name -> what `torch.save` can save.
            copies: file name -> its bytes.
        """
        self.sizes = {}
        usual, engine.checkpoint_engine = engine.checkpoint_engine, self
        with tempfile.TemporaryDirectory(prefix="sycoca_ds_") as folder:  # for the script that DeepSpeed copies beside its files
            self._root = Path(folder) / TAG
            try:
                engine.save_checkpoint(folder, tag=TAG, save_latest=False, exclude_frozen_parameters=False)
            finally:
                engine.checkpoint_engine = usual
            written = {
                path.relative_to(self._root).as_posix(): path.read_bytes() for path in self._root.rglob("*") if path.is_file()
            }
        for name, value in extra.items():
            self.save(value, str(self._root / name))
        for name, data in {**written, **copies}.items():
            self._start(name).write(data)
            self.sizes[name] = len(data)

    def descriptors(self) -> list[int]:
        """Where the files are, in the order of `sizes`."""
        return [self._files[name].fileno() for name in self.sizes]

    def _start(self, name: str) -> WholeFile:
        if name not in self._files:
            self._files[name] = WholeFile(os.memfd_create(name), "r+b")
        self._files[name].seek(0)
        return self._files[name]

    # ---- what DeepSpeed calls ---------------------------------------------------------------------------------------------------

    def save(self, state_dict: Any, path: str) -> None:
        name = Path(path).relative_to(self._root).as_posix()
        file = self._start(name)
        with unchecked():
            torch.save(state_dict, file)
        self.sizes[name] = file.tell()

    def create(self, info: Any) -> None:
        pass

    def commit(self, info: Any) -> bool:
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("snapshots are written; DeepSpeed's own engine loads")

    def preserves_storage_sharing(self) -> bool:
        return True  # a view of a flat buffer would take the whole buffer with it

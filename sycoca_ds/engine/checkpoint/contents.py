"""What a rank has to save, by file: as it stands in the run, nothing copied, and how many bytes it will be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

ROOT, TAG = Path("/nowhere"), "step"
"""What DeepSpeed is told to write to. Nothing of it is made: a save needs no room but for the checkpoint itself."""
Files = dict[str, Any]
"""Name -> the file's bytes, or what `torch.save` makes them of."""


class Contents(CheckpointEngine):
    """Takes the place of DeepSpeed's checkpoint engine for one call of `save_checkpoint`, and keeps what it would write.

    Attributes:
        files: of this rank, with the run's own tensors in them: good until its next step.
    """

    def __init__(self, engine) -> None:
        """On all ranks.

        Args:
            engine: DeepSpeed engine.
        """
        super().__init__()
        self.name = "contents"
        self.files: Files = {}
        usual, engine.checkpoint_engine = engine.checkpoint_engine, self
        engine._copy_recovery_script = self._keep_scripts
        try:
            engine.save_checkpoint(str(ROOT), tag=TAG, save_latest=False, exclude_frozen_parameters=False)
        finally:
            engine.checkpoint_engine = usual
            del engine._copy_recovery_script

    # ---- what DeepSpeed calls ---------------------------------------------------------------------------------------------------

    def save(self, state_dict: Any, path: str) -> None:
        self.files[Path(path).relative_to(ROOT / TAG).as_posix()] = state_dict

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def _keep_scripts(self, path: str) -> None:
        """Of DeepSpeed: the two programs that people look for beside its files."""
        for script in sorted((Path(deepspeed.__file__).parent / "utils").glob("zero_to_*.py")):
            self.files[script.name] = script.read_bytes()

    def create(self, info: Any) -> None:
        pass

    def commit(self, info: Any) -> bool:
        return True

    def load(self, path: str, map_location: Any = None) -> Any:
        raise NotImplementedError("contents are written; DeepSpeed's own engine loads")

    def preserves_storage_sharing(self) -> bool:
        return True  # a view of a flat buffer would take the whole buffer with it


def put(content: Any, file: Any) -> None:
    """Writes a file's bytes, in order, to something with the methods `write` and `flush`. Tensors go in as they lie in memory; only
    what is on a device comes to this host first, one storage after another."""
    if isinstance(content, bytes):
        file.write(content)
        return
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)  # they take as long as a copy, and the writer's are of every byte
    try:
        torch.save(content, file)
    finally:
        torch.serialization.set_crc32_options(before)


def measure(content: Any) -> Measure:
    """What `put` would write, without a look at the numbers."""
    found = Measure()
    with torch.serialization.skip_data():
        put(content, found)
    return found


class Measure:
    """In place of a file.

    Attributes:
        size: bytes of all that was written; largest: of what was written at once.
    """

    def __init__(self) -> None:
        self.size = self.largest = 0

    def write(self, data: Any) -> None:
        self.seek(memoryview(data).nbytes, os.SEEK_CUR)

    def seek(self, count: int, whence: int) -> None:
        """What `torch.save` does instead where it leaves data out."""
        self.size, self.largest = self.size + count, max(self.largest, count)

    def flush(self) -> None:
        pass

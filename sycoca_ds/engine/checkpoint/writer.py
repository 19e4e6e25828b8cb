"""Writes one rank's part of a checkpoint to disk, in a process of its own, while the rank trains on.

    python -m sycoca_ds.engine.checkpoint.writer FILE_DESCRIPTOR...

The first line of standard input is the job, as `Job` in JSON; the files' contents come out of the descriptors, in the job's order:
memory that the rank has filled, or a pipe, the same for all files, that it fills meanwhile. Each is hashed while it is written, so
nothing is read back. A note beside the files says what was written; rank 0's
writer waits for the notes of all and then seals the checkpoint. Standard input stays open: when it closes before the end, the rank
is gone or gives this save up, and so does the writer. It says one line of JSON at its end. Needs neither torch nor DeepSpeed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.files import sync_folder, write_text
from sycoca_ds.engine.checkpoint.retention import Retention, retire
from sycoca_ds.engine.checkpoint.seal import BLOCK, Digests, write_seal

NOTE = ".written_by_rank_{:05d}.json"
GIVEN_UP = 3
"""Exit status when the rank is gone or gave the save up."""


@dataclass(frozen=True)
class Job:
    folder: str
    names: list[str]
    """Files to write, relative to the folder."""
    sizes: list[int]
    """Bytes of each."""
    rank: int
    world_size: int
    state: dict[str, Any] | None = None
    """Rank 0's: the seal but for `files`."""
    retention: Retention = field(default_factory=Retention)


def write_file(descriptor: int, path: Path, size: int) -> dict[str, Any]:
    """Copies the next `size` bytes of a descriptor to a new file and makes it durable; what the seal says of it."""
    digests, position = Digests(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb", buffering=0) as file:
        while position < size:
            block = os.read(descriptor, min(BLOCK, size - position))
            if not block:
                raise OSError(f"{path}: the rank gave {position} of {size} bytes")
            digests.update(block)
            view = memoryview(block)
            while view:
                view = view[file.write(view) :]
            position += len(block)
        try:
            os.fsync(file.fileno())
        except OSError as error:
            from data_pipeline.files import NO_SYNC

            if error.errno not in NO_SYNC:
                raise
    return digests.facts()


def collect_notes(folder: Path, world_size: int) -> dict[str, Any]:
    """What all ranks wrote, as soon as all have. Raises `OSError` with the reason if one could not."""
    files: dict[str, Any] = {}
    for rank in range(world_size):
        path = folder / NOTE.format(rank)
        while not path.is_file():
            time.sleep(0.05)
        note = json.loads(path.read_text())
        if note["error"]:
            raise OSError(f"rank {rank}: {note['error']}")
        files |= note["files"]
    for rank in range(world_size):
        (folder / NOTE.format(rank)).unlink()
    return dict(sorted(files.items()))


def write(job: Job, descriptors: list[int]) -> dict[str, Any]:
    """Writes the job's files; rank 0's also seals and deletes what is old. Raises `OSError`."""
    folder, began = Path(job.folder), time.monotonic()
    note = folder / NOTE.format(job.rank)
    try:
        parts = zip(descriptors, job.names, job.sizes, strict=True)
        files = {name: write_file(descriptor, folder / name, size) for descriptor, name, size in parts}
        sync_folder(folder)
        write_text(note, json.dumps({"error": "", "files": files}))
    except OSError as error:
        try:
            write_text(note, json.dumps({"error": str(error), "files": {}}))
        except OSError:
            pass  # the disk is full or gone: the rank itself says so to the others
        raise
    said = {"bytes": sum(job.sizes), "seconds": time.monotonic() - began}
    if job.state is not None:
        write_seal(folder, {**job.state, "files": collect_notes(folder, job.world_size)})
        said |= {"seconds": time.monotonic() - began, "deleted": retire(folder.parent, job.retention)}
    return said


def give_up_with(stream) -> None:
    """Ends this process when its starter's end of the pipe closes."""
    while stream.read(1):
        pass
    os._exit(GIVEN_UP)


def main(descriptors: list[int]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # meant for the rank, which saves on them
    values = json.loads(sys.stdin.buffer.readline())
    job = Job(**{**values, "retention": Retention(**values["retention"])})
    threading.Thread(target=give_up_with, args=(sys.stdin.buffer,), daemon=True).start()
    try:
        said = {"error": "", **write(job, descriptors)}
    except Exception as error:
        said = {"error": str(error) or repr(error)}
        if job.state is not None:
            shutil.rmtree(job.folder, ignore_errors=True)  # gives its room back; without a seal it is nothing
    print(json.dumps(said), flush=True)
    os._exit(0 if not said["error"] else 1)


def describe(job: Job) -> bytes:
    """The first line of a writer's standard input."""
    return json.dumps(dataclasses.asdict(job)).encode() + b"\n"


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])

"""A control group with little memory: whoever enters it and takes more is killed by the kernel."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def small_group(limit: int) -> Iterator[Path | None]:
    """Its folder, whose cgroup.procs takes process numbers; None where none can be made.

    Args:
        limit: bytes.
    """
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    above, name = (first, "memory.limit_in_bytes") if first.is_dir() else (second, "memory.max")
    group = above / f"sycoca_test_{os.getpid()}_{limit}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit))
    except OSError:
        yield None
        return
    try:
        yield group
    finally:
        time.sleep(0.2)
        with contextlib.suppress(OSError):
            group.rmdir()

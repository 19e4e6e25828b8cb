"""The lock that a killed compilation leaves behind must not stop the next one for ever."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from sycoca_ds.engine.operators import wait_for_lock


def test_a_left_over_lock_is_removed_and_a_live_one_is_waited_for(tmp_path: Path) -> None:
    assert wait_for_lock(tmp_path) is False
    lock = tmp_path / "lock"
    lock.touch()
    old = time.time() - 1000
    os.utime(lock, (old, old))
    assert wait_for_lock(tmp_path, stale_seconds=180) is True and not lock.exists()
    lock.touch()
    release = threading.Timer(1.0, lock.unlink)
    release.start()
    start = time.monotonic()
    assert wait_for_lock(tmp_path, stale_seconds=180) is False
    assert 0.9 < time.monotonic() - start < 10, "a live build holds its lock until it is done"

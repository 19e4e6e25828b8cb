"""How tests run side by side; fixtures lie beside the tests that use them, and what tests import in tests/worlds/."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

ROOT = Path(__file__).resolve().parent
LOCKED: list[TextIO] = []
"""The file whose lock this worker holds."""

for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]  # all servers of the tests are on loopback
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a suite in the background; what it starts would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one of them would keep a worker busy long after the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def is_alone(item: pytest.Item | None) -> bool:
    return item is not None and item.get_closest_marker("alone") is not None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Of the workers that `-n` starts, one has the machine for itself while it runs tests marked `alone`.

    Outermost, so that no test's time limit counts the wait. Locks are given back by hand: a process that a test left behind has
    the files open as well.
    """
    if not hasattr(item.config, "workerinput"):
        return (yield)
    if not LOCKED:
        room, door = open(ROOT / "conftest.py"), open(ROOT / "__init__.py")
        fcntl.flock(door, fcntl.LOCK_EX)  # held while waiting to be alone, or new tests would go in for ever
        fcntl.flock(room, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        door.close()
        LOCKED.append(room)
    try:
        return (yield)
    finally:
        if not (is_alone(item) and is_alone(nextitem)):  # between two of them nothing needs to be let in
            with LOCKED.pop() as room:
                fcntl.flock(room, fcntl.LOCK_UN)

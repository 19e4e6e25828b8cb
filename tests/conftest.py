"""How tests run side by side; fixtures lie beside the tests that use them, and what tests import in tests/worlds/."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one of them would keep a worker busy long after the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Of the workers that `-n` starts, one has the machine for itself while it runs a test marked `alone`.

    Outermost, so that no test's time limit counts the wait. Locks are given back by hand: a process that a test left behind has
    the files open as well.
    """
    if not hasattr(item.config, "workerinput"):
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with open(ROOT / "conftest.py") as room, open(ROOT / "__init__.py") as door:
        fcntl.flock(door, fcntl.LOCK_EX)  # held while waiting to be alone, or new tests would go in for ever
        fcntl.flock(room, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            return (yield)
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)

"""How tests run side by side; fixtures lie beside the tests that use them, and what tests import in tests/worlds/."""

from __future__ import annotations

import os
import signal

import pytest

for _name in [name for name in os.environ if name.lower().endswith("_proxy")]:
    del os.environ[_name]  # all servers of the tests are on loopback
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # of a suite in the background; what it starts would ignore Ctrl-C as well
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, one of them would keep a worker busy long after the others are done."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)

"""Shared by the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.worlds.data.data_sets import write_data_set

torch.set_num_threads(1)  # models this small lose time to thread hand-over, and test processes share the cores


@pytest.fixture(scope="session")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 samples in five unequal shards."""
    return write_data_set(tmp_path_factory.mktemp("data") / "train", [31, 7, 25, 1, 32])

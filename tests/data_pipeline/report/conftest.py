from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.shards.verify import verify
from tests.worlds.data.written_shards import rows_of, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, verified."""
    root = write_folder(tmp_path / "data", [rows_of(230, 1), rows_of(150, 2)])
    verify(root, processes=1)
    return root

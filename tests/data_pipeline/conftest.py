"""A drawn world and what a build makes of it, for all tests of the whole chain. They change neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.worlds.data.chain import SlowServer, build, start_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, SlowServer]]:
    """The folder and its server; who slows the server down or stops it sets it back."""
    folder = tmp_path_factory.mktemp("chain") / "world"
    with start_world(folder) as server:
        yield folder, server


@pytest.fixture(scope="session")
def built(world: tuple[Path, SlowServer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Under a name that DuckDB, fsspec and glob have other readings of."""
    return build(*world, tmp_path_factory.mktemp("chain") / "url=x [v1] a::b{c,d}?" / "train")

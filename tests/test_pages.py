"""Every command of the pages runs as it is written, small: in a stage that stands for the repository, in the page's order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.world.server import PictureServer
from tests.worlds import REPOSITORY
from tests.worlds.pages.stage import Stage
from tests.worlds.pages.taken_for_granted import Lacking, Shelf
from tests.worlds.pages.typed import PAGES, TYPED, Typed, python_in
from tests.worlds.processes.launching import free_port

NOT_RUN = {
    "make": "installs, tests, measures or trains for minutes; its targets are looked up by test_documents.py",
    "pip": "installs packages",
    "ssh": "another machine",
    "data_pipeline/jobs/spark.sh": "Spark; tests/data_pipeline/catalogue/test_engines.py runs it where that is installed",
    "python -m benchmarks": "measures for minutes; tests/benchmarks runs its parts",
    "python benchmarks/sharded_evaluation.py": "measures for minutes",
    "deepspeed --num_nodes": "a launcher's option in a sentence, no command",
    "deepspeed --num_accelerators N": "the same",
    "sycoca data COMMAND": "a pattern for many",
    "python -m data_pipeline COMMAND": "the same",
}
"""Beginnings of commands that are not run: why."""


def key(typed: Typed) -> str | None:
    """The entry of `NOT_RUN` that a command falls under."""
    line = " ".join(typed.words) + " "
    return next((entry for entry in NOT_RUN if line.startswith(f"{entry} ")), None)


RUN = [typed for typed in TYPED if key(typed) is None]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """Stand-ins, and the server whose pictures the catalogues name."""
    shelf = Shelf(tmp_path_factory.mktemp("shelf") / "shelf", free_port())
    with PictureServer(shelf.served, shelf.port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield shelf
        server.shutdown()


@pytest.fixture
def stage(shelf: Shelf, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "repository", shelf)
    try:
        yield stage
    finally:
        stage.close()


def commands_of(page: str) -> list[Typed]:
    """What runs, in order; what a line of text repeats runs once."""
    return list(dict.fromkeys(typed for typed in RUN if typed.page == page))


def test_what_is_not_run_is_there() -> None:
    assert {key(typed) for typed in TYPED} - {None} == set(NOT_RUN)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", sorted({typed.page for typed in RUN}))
def test_the_commands_of_a_page_run(page: str, stage: Stage) -> None:
    wrong, lacking = [], []
    for typed in commands_of(page):
        try:
            stage.run(typed)
        except AssertionError as error:
            wrong.append(str(error))
        except Lacking as error:
            lacking.append(str(error))
    print(*(f"{seconds:6.1f} s  {shell}" for seconds, shell in sorted(stage.seconds, reverse=True)), sep="\n")
    assert not wrong, f"{len(wrong)} commands\n\n" + "\n\n".join(wrong)
    if lacking:
        pytest.skip(f"ran but for what needs {lacking[0]}")

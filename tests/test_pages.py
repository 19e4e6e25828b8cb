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
from tests.worlds.pages.typed import PAGES, Python, Typed, steps_of
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
    "docs/open_clip.md: Python": "open_clip; tests/sycoca_ds/model/open_clip/test_peer.py loads there what was exported",
    "sycoca data COMMAND": "a pattern for many",
    "python -m data_pipeline COMMAND": "the same",
}
"""Beginnings of commands that are not run: why."""


def key(step: Typed | Python) -> str | None:
    """The entry of `NOT_RUN` that a step falls under."""
    line = f"{step.page}: Python" if isinstance(step, Python) else " ".join(step.words)
    return next((entry for entry in NOT_RUN if f"{line} ".startswith(f"{entry} ")), None)


STEPS = {page.relative_to(REPOSITORY).as_posix(): steps_of(page) for page in PAGES if page.exists()}
RUN = {page: [step for step in steps if key(step) is None] for page, steps in STEPS.items()}


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


def test_what_is_not_run_is_there() -> None:
    assert {key(step) for steps in STEPS.values() for step in steps} - {None} == set(NOT_RUN)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page, steps in RUN.items() if steps])
def test_the_commands_of_a_page_run(page: str, stage: Stage) -> None:
    wrong, lacking = [], []
    for step in RUN[page]:
        try:
            stage.run(step)
        except AssertionError as error:
            wrong.append(str(error))
        except Lacking as error:
            lacking.append(str(error))
    assert not wrong, f"{len(wrong)} commands\n\n" + "\n\n".join(wrong)
    if lacking:
        pytest.skip(f"ran but for what needs {lacking[0]}")

"""Every command of the pages runs as it is written, small: in a stage that stands for the repository, in the page's order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.world.server import PictureServer
from tests.worlds import REPOSITORY
from tests.worlds.pages.reducing import ROOTS, small, with_options
from tests.worlds.pages.stage import Stage
from tests.worlds.pages.taken_for_granted import Lacking, Shelf
from tests.worlds.pages.typed import PAGES, Python, Typed, entry_of, steps_of
from tests.worlds.processes.launching import free_port

NOT_RUN = {
    "make": "installs, tests, measures or trains for minutes; its targets are looked up by test_documents.py",
    "pip": "installs packages",
    "ssh": "another machine",
    "data_pipeline/jobs/spark.sh": "Spark; tests/data_pipeline/catalogue/test_engines.py runs it where that is installed",
    "python -m benchmarks": "measures for minutes; tests/benchmarks runs its parts",
    "python benchmarks/investigations/sharded_evaluation.py": "measures for minutes",
    "deepspeed --num_nodes": "a launcher's option in a sentence, no command",
    "deepspeed --num_accelerators N": "the same",
    "docs/open_clip.md: Python": "open_clip; tests/sycoca_ds/model/open_clip/test_peer.py types it in its environment",
    "python -m sycoca_ds.ablations --seeds 0 1 2 --against ROW": "two options in a sentence; docs/ablations.md has the command",
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
    """Every other step is run: a program that nobody knows fails there, and is not passed over."""
    assert {key(step) for steps in STEPS.values() for step in steps} - {None} == set(NOT_RUN)
    assert sum(map(len, RUN.values())) > 150 and sum(isinstance(step, Python) for steps in RUN.values() for step in steps) == 3


def test_commands_made_small_keep_their_program_and_their_options() -> None:
    for step in (step for steps in RUN.values() for step in steps if isinstance(step, Typed)):
        words = small(step, Path("/stage"), int, "127.0.0.1:1")
        lost = {word.split("=")[0] for word in step.words if word.startswith("-")} - {word.split("=")[0] for word in words}
        assert words[0] == step.words[0] and not lost, step
        assert not [word for word in words if ROOTS.search(word)], f"{step}: a folder of this machine's own"


def test_a_value_is_changed_where_it_stands() -> None:
    words = ["train.py", "--lr", "1", "--seeds", "0", "1", "2", "--out=a", "--nproc-per-node", "8", "eval.py"]
    values = {"--seeds": ["0"], "--out": "b", "--nproc-per-node": "1"}
    expected = ["train.py", "--lr", "1", "--seeds", "0", "--out=b", "--nproc-per-node", "1", "eval.py"]
    assert with_options(words, {**values, "--steps": "4"}) == [*expected, "--steps", "4"]
    assert with_options(words, {**values, "--steps": "4"}, only_given=True) == expected


def test_what_costs_no_start_of_torch(stage: Stage) -> None:
    """Completion and plans; a sweep of plans is for the night."""
    quick = [
        step
        for steps in RUN.values()
        for step in steps
        if isinstance(step, Typed) and not step.inline and "--sweep" not in step.words
        if step.words[0] == "mkdir" or entry_of(step.words)[0] in ("completion", "plan")
    ]
    assert len(quick) >= 6
    for step in quick:
        stage.run(step)


def test_what_goes_wrong_is_noticed(stage: Stage) -> None:
    for words, behind, said in (
        (("sycoca", "completion", "bsh"), (), "status 2"),
        (("sycoca", "completion", "bash"), (">", "~/no/such/folder"), "status 1"),
        (("sycoca", "plan", "--gpuss", "1"), (), "status 2"),
        (("no-such-program",), (), "status 127"),
    ):
        with pytest.raises(AssertionError, match=said):
            stage.run(Typed("here", words, behind))
    with pytest.raises(AssertionError, match="its Python"):
        stage.run(Python("here", "1 / 0"))


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.timeout(3600)
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

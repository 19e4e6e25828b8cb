"""What docs/inference.md prints when it is done as it is written; test_pages.py does all of it, and looks at statuses only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sycoca_ds.eval.collection import Collection
from tests.worlds import REPOSITORY
from tests.worlds.pages.typed import Python, Typed, steps_of
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run

STEPS = steps_of(REPOSITORY / "docs/inference.md")
RUN = "runs/demo/run"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo's run and photos, as the page has them."""
    folder = tmp_path_factory.mktemp("page")
    make_run(folder / RUN)
    collection = Collection(make_data(folder / "data", images=2), SMALL.image.image_size)
    (folder / "photos").mkdir()
    for number, name in enumerate(("a.jpg", "b.png")):
        Image.fromarray(collection.pixels(number)).save(folder / "photos" / name)
    return folder


def run(words: list[str], place: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(place / "cache")}
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def test_the_pages_python_runs_in_order(place: Path) -> None:
    (python,) = (step for step in STEPS if isinstance(step, Python))
    done = run([sys.executable, "-c", python.code], place)
    assert done.returncode == 0, done.stderr
    assert (place / "rebuilt.png").exists() and done.stdout.startswith(f"<sycoca, 0.1 M parameters, step 7, fp32 on cpu, {RUN}/")
    assert re.search(r"^circle \(6, 6\) ", done.stdout, re.M) and not done.stderr


def test_the_pages_commands_run(place: Path) -> None:
    commands = [step for step in STEPS if isinstance(step, Typed)]
    assert len(commands) == 4
    for command in commands[:1] + commands[2:3]:  # a start costs seconds; the others differ by options that test_commands.py tests
        program, *words = command.words
        assert program == "python"
        done = run([sys.executable, *words], place)
        assert done.returncode == 0 and "photos/b.png" in done.stdout, done.stderr
    assert (place / "found.html").exists() and (place / "cache/sycoca_ds/search").is_dir()

"""docs/inference.md as it is written: its Python in one go, its commands by the shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sycoca_ds.eval.collection import Collection
from tests.worlds import REPOSITORY
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run

PAGE = (REPOSITORY / "docs/inference.md").read_text()
pytestmark = pytest.mark.slow


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/demo and photos, as the page has them."""
    folder = tmp_path_factory.mktemp("page")
    make_run(folder / "runs/demo")
    collection = Collection(make_data(folder / "data", images=2), SMALL.image.image_size)
    (folder / "photos").mkdir()
    for number, name in enumerate(("a.jpg", "b.png")):
        Image.fromarray(collection.pixels(number)).save(folder / "photos" / name)
    return folder


def run(words: list[str], place: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XDG_CACHE_HOME": str(place / "cache")}
    return subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def test_the_pages_python_runs_in_order(place: Path) -> None:
    assert len(blocks("python")) == 3
    done = run([sys.executable, "-c", "\n".join(blocks("python"))], place)
    assert done.returncode == 0, done.stderr
    assert (place / "rebuilt.png").exists() and done.stdout.startswith("<sycoca, 0.1 M parameters, step 7, fp32 on cpu, runs/demo/")
    assert re.search(r"^circle \(6, 6\) ", done.stdout, re.M) and not done.stderr


def test_the_pages_commands_run(place: Path) -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 4
    for line in commands[:1] + commands[2:3]:  # a start costs seconds; the others differ by options that test_commands.py tests
        program, *words = shlex.split(line)
        assert program == "python"
        done = run([sys.executable, *words], place)
        assert done.returncode == 0 and "photos/b.png" in done.stdout, done.stderr
    assert (place / "found.html").exists() and (place / "cache/sycoca_ds/search").is_dir()

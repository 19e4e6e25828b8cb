"""TensorBoard in a browser: its first page shows the losses, Custom Scalars draws the layout's charts, Images shows the cards."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sycoca_ds.engine.monitoring.curves import CHARTS, TAGS
from sycoca_ds.engine.monitoring.journal import Journal
from sycoca_ds.engine.monitoring.pictures import card
from tests.worlds.processes.browser import find_browser, tensorboard, visit

BROWSER = find_browser()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome: apt-get install chromium")]

MAGENTA = (200, 0, 200)
LINE = (255, 112, 67)
"""Colour that Custom Scalars gives the first run."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A TensorBoard on a run that went to step 60, back to 30 and on to 50."""
    run = tmp_path_factory.mktemp("run")
    journal = Journal(run, 0, enabled=True)
    picture = np.full((48, 48, 3), MAGENTA, np.uint8)
    shown = card([(name, picture) for name in ("picture", "scores", "hidden", "rebuilt")], ["caption: a magenta square"])
    for first, last in ((0, 60), (40, 50)):
        if first:
            journal.go_back(30)
        for step in range(first, last + 1, 10):
            journal.scalars(step, {key: 5.0 / (number + step + 1) for number, key in enumerate(TAGS)})
        journal.show(last, {"pictures/00": shown}, {"captions": "| a | b |\n|---|---|\n| c | d |"})
    journal.close()
    with tensorboard(run / "tensorboard") as found:
        yield found


def pixels(path: Path, colour: tuple[int, int, int]) -> np.ndarray:
    """bool (H, W): pixels of nearly that colour."""
    return (np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - colour) <= 12).all(axis=-1)


def test_the_server_has_each_step_once(address: str) -> None:
    """What is shown goes through TensorBoard's own data server, not through its Python reader."""
    with urllib.request.urlopen(f"{address}/data/plugin/scalars/scalars?run=.&tag=loss/total", timeout=20) as answer:
        points = json.load(answer)
    assert [step for _, step, _ in points] == [0, 10, 20, 30, 40, 50]


def test_the_first_page_shows_the_losses(address: str, tmp_path: Path) -> None:
    page = visit(BROWSER, address, tmp_path / "profile")
    titles = list(dict.fromkeys(re.findall(r"(?:loss|loss_validation)/(?:total|itc|ic|mim)\b", page)))
    assert titles[:4] == ["loss/ic", "loss/itc", "loss/mim", "loss/total"]
    assert re.search(r">\s*50\s*<", page), "the table below a chart has the last step"
    assert not re.search(r">\s*60\s*<", page), "a step that the run went back before"


@pytest.mark.full
def test_custom_scalars_draws_the_first_page_of_the_layout(address: str, tmp_path: Path) -> None:
    picture = tmp_path / "custom.png"
    visit(BROWSER, f"{address}/#custom_scalars", tmp_path / "profile", picture=picture, size=(1400, 1100))
    drawn = pixels(picture, LINE)[100:, 360:]
    charts = len(CHARTS["Does it learn?"])
    rows = [drawn[top : top + 200].sum() for top in range(0, 900, 300)]  # two charts a row, 300 pixels high
    assert charts == 6 and min(rows) > 200, f"orange pixels in each row of charts: {rows}"


@pytest.mark.full
def test_images_shows_cards_that_can_be_read(address: str, tmp_path: Path) -> None:
    picture = tmp_path / "images.png"
    visit(BROWSER, f"{address}/#images", tmp_path / "profile", picture=picture)
    places = np.argwhere(pixels(picture, MAGENTA))
    height, width = places.max(0) - places.min(0)
    assert width > 300 and height > 300, "four panels of about 170 pixels, without a click"

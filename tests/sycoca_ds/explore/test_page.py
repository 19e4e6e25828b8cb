"""The page in a browser, by mouse, keys and files: what it shows, its errors, its widths; it asks nobody but its server."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

from sycoca_ds.engine.checkpoint.exported import new_folder, write_exported
from sycoca_ds.explore.keeper import Compared, Keeper
from sycoca_ds.explore.samples import find_samples
from sycoca_ds.explore.server import Settings
from tests.worlds.processes.browser import find_browser
from tests.worlds.processes.devtools import Tab, tab
from tests.worlds.trainings.eval_world import SMALL, make_data, make_run
from tests.worlds.trainings.explored import open_here, served

BROWSER = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium"),
    pytest.mark.filterwarnings("ignore:.* longer than this model"),
]
MOST = 100_000
SHIFT, TAB = 8, ("Tab", 9)
DONE = "document.querySelector('#bar').hidden && document.querySelector('#part-neighbours').innerText.length > 20"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_data(folder / "data", images=15)
    make_run(folder / "run")
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with tab(BROWSER, tmp_path_factory.mktemp("profile")) as one:
        one.send("Accessibility.enable")
        yield one


def keeper_of(run: Path, data: Path | None) -> Keeper:
    model = open_here(run)
    samples, why = find_samples(model, None if data is None else str(data), 0)
    return Keeper(run, model, open_here, Compared(samples, why), watch_seconds=0.05)


def begin(page: Tab, address: str, width: int) -> None:
    page.go("about:blank")  # the page before it would go on asking its server
    page.requests.clear()
    page.complaints.clear()
    page.size(width, 900)
    page.go(address)


def text(page: Tab, selector: str) -> str:
    return page.value(f"document.querySelector({json.dumps(selector)}).innerText").strip()


def check_layout(page: Tab, width: int) -> None:
    """Nothing is wider than the page, and nobody needs to scroll sideways."""
    assert page.value("document.documentElement.scrollWidth") <= width
    wide = page.value(
        "[...document.querySelectorAll('main *')].filter(it => it.offsetParent && !it.closest('.unseen, .scroll table') && "
        "it.getBoundingClientRect().right > innerWidth + 1).map(it => it.outerHTML.slice(0, 80))"
    )
    assert wide == []
    scrolls = page.value("[...document.querySelectorAll('.scroll')].every(it => it.scrollWidth <= it.clientWidth)")
    assert scrolls, "a table is wider than its place"


def check_names(page: Tab) -> None:
    """Everything that can be used, and every picture, has a name for those who do not see it."""
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    named = ("button", "textbox", "radio", "checkbox", "image", "link", "DisclosureTriangle", "progressbar", "form")
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] in named]
    assert {node["role"]["value"] for node in shown} >= {"button", "textbox", "radio", "checkbox", "image", "form"}
    assert not [node for node in shown if not node.get("name", {}).get("value")]


def check_requests(page: Tab, address: str) -> None:
    asked = [url for url in page.requests if urlsplit(url).scheme not in ("data", "blob")]
    assert len(asked) > 5 and {f"http://{urlsplit(url).netloc}" for url in asked} == {address}


@pytest.mark.parametrize("width", [1280, 390])
def test_a_look_by_mouse_and_keys(page: Tab, folder: Path, tmp_path: Path, width: int) -> None:
    keeper = keeper_of(folder / "run", folder / "data")
    samples, model = keeper.compared.samples, keeper.held.model
    with served(keeper, Settings(most_bytes=MOST)) as address:
        begin(page, address, width)
        page.wait(DONE)
        check_layout(page, width)
        check_names(page)
        assert text(page, "h1") == "A look inside run" and "sycoca, 0.1 M parameters; step 7" in text(page, "#facts")
        assert page.value("document.querySelector('#caption').value") == samples.caption(0)
        assert page.value("document.querySelector('#other').value") == samples.wrong_caption(0)
        page.wait("document.querySelectorAll('.rank')[0]?.innerText.match(/^[0-9]+$/)")
        cosines = model.similarity(samples.collection.picture(0), [samples.caption(0), samples.wrong_caption(0)])[0]
        shown = page.value("[...document.querySelectorAll('.fits .value')].map(it => it.innerText.trim())")
        assert [float(one.replace("\u2212", "-")) for one in shown] == pytest.approx(cosines, abs=6e-5)
        assert page.value("document.querySelectorAll('#part-masks img').length") == 4
        assert page.value("document.querySelectorAll('#part-reconstruction img').length") == 4
        assert page.value("document.querySelectorAll('#part-neighbours img').length") == 6
        assert "4 beams" in text(page, "#part-captions")

        # a word by mouse, the next one and single patches by keys
        page.click(".words label:nth-child(2)")
        named = page.value("document.querySelector('.heat canvas').getAttribute('aria-label')")
        word = page.value("document.querySelector('.words input:checked').parentElement.innerText")
        assert f"of the word {word} " in named
        painted = "document.querySelector('.heat canvas').toDataURL()"
        before = page.value(painted)
        page.key("ArrowRight", 39)
        page.wait(f"{painted} !== {json.dumps(before)}")
        after = page.value("document.querySelector('.words input:checked').parentElement.innerText")
        assert after == page.value("document.querySelector('.words label:nth-child(3)').innerText")
        page.key(*TAB)
        page.key(" ", 32, " ")
        assert page.value("document.activeElement.type === 'checkbox' && document.activeElement.checked")
        page.key(*TAB)
        assert page.value("document.activeElement.tagName") == "CANVAS"
        place = text(page, ".at")
        page.key("ArrowLeft", 37) if place.startswith("row 1, column 6") else page.key("ArrowRight", 39)
        assert text(page, ".at") != place and text(page, ".at").startswith("row ")

        # another caption by keys
        page.write("#caption", "a caption of mine")
        page.key("Enter", 13, "\r")
        page.wait(f"document.querySelector('#fits td').innerText.includes('a caption of mine') && {DONE}")
        check_layout(page, width)

        # a sample by keys
        page.value("document.querySelector('#pick').focus()")
        page.key("Enter", 13, "\r")
        assert page.value("document.activeElement.dataset.sample") == "0"
        page.key(*TAB)
        page.key("Enter", 13, "\r")
        page.wait(f"document.querySelector('#caption').value === {json.dumps(samples.caption(1))} && {DONE}")
        assert page.value("document.querySelector('[data-sample=\"1\"]').getAttribute('aria-pressed')") == "true"
        page.click("#after")
        page.wait("document.querySelector('[data-sample=\"12\"]')")
        assert text(page, "#pages") == "of 2, 15 pictures" and page.value("document.querySelector('#after').disabled")
        check_layout(page, width)
        check_names(page)

        # a picture of mine
        Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "mine.png")
        page.choose("#file", tmp_path / "mine.png")
        page.wait(f"document.querySelector('#preview').alt === 'The picture mine.png' && {DONE}")
        assert text(page, "#picture-problem") == "" and page.value("document.querySelector('[aria-pressed=true]')") is None
        check_requests(page, address)
        assert page.complaints == []
    page.wait("document.querySelector('#news').innerText.includes('does not answer any more')")


def test_errors_stand_beside_their_field(page: Tab, folder: Path, tmp_path: Path) -> None:
    with served(keeper_of(folder / "run", folder / "data"), Settings(most_bytes=MOST)) as address:
        begin(page, address, 390)
        page.wait(DONE)
        cut = text(page, "#caption-problem")
        assert cut.startswith("Too long: ") and "this model reads 40" in cut, "the world's captions are longer than 40 tokens"
        page.write("#caption", "a red ring")
        page.click("#go")
        page.wait(f"document.querySelector('#caption-problem').innerText === '' && {DONE}")
        page.write("#caption", "   ")
        page.click("#go")
        page.wait("document.querySelector('#caption-problem').innerText.startsWith('The caption is empty')")
        assert page.value("document.querySelector('#caption').hasAttribute('aria-invalid')")
        page.write("#caption", "a blue ring")
        (tmp_path / "notes.txt").write_text("no picture")
        page.choose("#file", tmp_path / "notes.txt")
        page.wait("document.querySelector('#picture-problem').innerText.startsWith('This is not a picture that can be read')")
        (tmp_path / "large.png").write_bytes(bytes(MOST + 1))
        page.choose("#file", tmp_path / "large.png")
        page.wait("document.querySelector('#picture-problem').innerText.startsWith('The picture is too large')")
        check_layout(page, 390)
        # one that is pasted, one that is dropped
        given = (
            "const canvas = document.createElement('canvas'); canvas.width = canvas.height = 30; "
            "const blob = await new Promise(done => canvas.toBlob(done)), data = new DataTransfer(); "
            "data.items.add(new File([blob], 'given.png', {type: 'image/png'}));"
        )
        for event in ("new ClipboardEvent('paste', {clipboardData: data})", "new DragEvent('drop', {dataTransfer: data})"):
            page.value("document.querySelector('#preview').alt = ''")
            page.value(f"(async () => {{ {given} document.dispatchEvent({event}); }})()")
            page.wait(f"document.querySelector('#preview').alt === 'The picture given.png' && {DONE}")
            assert text(page, "#picture-problem") == ""
        refusals = [line for line in page.complaints if "400 (BAD REQUEST)" in line]
        assert refusals and page.complaints == refusals


def test_a_run_that_goes_on_training(page: Tab, folder: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with served(keeper_of(tmp_path / "run", folder / "data")) as address:
        begin(page, address, 1280)
        page.wait(DONE)
        before = text(page, ".fits .value")
        make_run(tmp_path / "more", seed=4, step=9)
        (tmp_path / "more/checkpoints/step_00000009").rename(tmp_path / "run/checkpoints/step_00000009")
        page.wait(
            "document.querySelector('#news').innerText.includes('Step 9 is in use from now on; what stands here is of step 7.')"
        )
        assert text(page, ".fits .value") == before and "step 9" in text(page, "#facts")
        page.click("#again")
        page.wait(f"document.querySelector('#news').hidden && {DONE}")
        assert text(page, ".fits .value") != before
        assert page.complaints == []


def test_the_samples_row_is_there_before_the_folder(page: Tab, folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (50, 50), (80 * number, 100, 200)).save(tmp_path / f"{number}.png")
    model, gate = open_here(folder / "run"), threading.Event()
    samples, why = find_samples(model, str(folder / "data"), 0)
    encode = model.encode_image
    model.encode_image = lambda images, *more: (isinstance(images, list) and gate.wait(60), encode(images, *more))[1]
    keeper = Keeper(folder / "run", model, open_here, Compared(samples, why, tmp_path, batch_size=1), watch_seconds=0.05)
    pictures, words = (
        "document.querySelectorAll('#part-neighbours img').length",
        "document.querySelector('#part-neighbours').innerText",
    )
    with served(keeper) as address:
        begin(page, address, 390)
        page.wait(f"{pictures} === 6 && {words}.includes('The pictures in {tmp_path} are still being looked at (0 so far).')")
        page.wait(f"document.querySelector('#news').innerText === 'Looking at the pictures in {tmp_path}: 0 so far.'")
        check_layout(page, 390)
        gate.set()
        page.wait(f"{pictures} === 9 && document.querySelector('#news').hidden")
        (tmp_path / "1.png").unlink()
        page.click("#go")
        page.wait(f"{pictures} === 8 && {words}.includes('cannot be read any more: 1.png (No such file or directory).')")
        check_layout(page, 390)
        assert page.complaints == []


@pytest.mark.parametrize("family", ["clip", "coca"])
def test_what_is_lacking_is_said(page: Tab, folder: Path, tmp_path: Path, family: str) -> None:
    """An exported model of another family: no validation pictures, no decoders, no masks."""
    make_run(tmp_path / "run", dataclasses.replace(SMALL, family=family))
    loaded = open_here(tmp_path / "run").loaded
    with new_folder(tmp_path / "exported") as new:
        tokenizer = loaded.folder / "tokenizer.json"
        write_exported(new, loaded.config.model, loaded.model.state_dict(), tokenizer, {"kind": "test", "step": 7, "samples": 14})
    Image.new("RGB", (50, 60), (20, 130, 30)).save(tmp_path / "mine.png")
    with served(keeper_of(tmp_path / "exported", None)) as address:
        begin(page, address, 390)
        page.wait("document.querySelector('#part-masks').innerText.includes('Choose a picture and type a caption.')")
        assert page.value("document.querySelector('#pick').hidden")
        page.choose("#file", tmp_path / "mine.png")
        page.wait("document.querySelector('#caption-problem').innerText.startsWith('The caption is empty')")
        page.write("#caption", "a green square")
        page.key("Enter", 13, "\r")
        page.wait(DONE)
        assert f"This is a {family} model: it was trained without masks" in text(page, "#part-masks")
        assert f"This is a {family} model: it has no image decoder" in text(page, "#part-reconstruction")
        assert ("no text decoder" in text(page, "#part-captions")) == (family == "clip")
        assert "--data FOLDER" in text(page, "#part-neighbours") and "--data FOLDER" in text(page, "#places")
        assert page.value("document.querySelectorAll('.words label').length") == 3
        assert "undefined" not in text(page, "main") and "NaN" not in text(page, "main")
        check_layout(page, 390)
        check_names(page)
        assert page.complaints == []

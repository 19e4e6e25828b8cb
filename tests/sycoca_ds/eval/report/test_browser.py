"""The pages in a browser without a screen: nothing is asked for but the page, no script complains, and it fits wide windows and
narrow ones."""

from __future__ import annotations

import functools
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.worlds.processes.browser import find_browser, visit

BROWSER = find_browser()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine")]
SIZES = (1280, 390)
SMALLEST_TEXT = 11
"""CSS pixels."""
LOOK = """<!doctype html><body><iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe><pre id="found"></pre>
<script>
const errors = [];
window.onload = () => {{
  const view = document.querySelector('iframe').contentWindow, page = view.document, texts = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {{
    const parent = walker.currentNode.parentElement;
    if (walker.currentNode.textContent.trim() && parent.getClientRects().length)
      texts.push(parseFloat(view.getComputedStyle(parent).fontSize));
  }}
  const pictures = [...page.images].filter(image => !image.complete || !image.naturalWidth).length;
  document.getElementById('found').textContent = 'FOUND' + JSON.stringify({{
    requests: view.performance.getEntriesByType('resource').map(entry => entry.name).filter(name => !name.startsWith('data:')),
    scroll: page.documentElement.scrollWidth, smallest: Math.min(...texts), texts: texts.length, broken: pictures,
    images: page.images.length}}) + 'END';
}};
</script>"""


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(address of a folder, what was asked for)."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def look(page: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / page.name).write_bytes(page.read_bytes())
    with served(folder) as (address, asked):
        for width in SIZES:
            (folder / "look.html").write_text(LOOK.format(page=page.name, width=width))
            log = tmp_path / "console"
            dom = visit(BROWSER, f"{address}/look.html", tmp_path / f"profile{width}", log=log)
            found = json.loads(re.search("FOUND(.*)END", dom)[1])
            assert found["scroll"] <= width, f"{page.name} is {found['scroll']} pixels wide in a window of {width}"
            assert found["smallest"] >= SMALLEST_TEXT and found["texts"] > 50 and not found["broken"], found
            assert not [line for line in log.read_text().splitlines() if "CONSOLE" in line]
            assert found["requests"] == []
    assert set(asked) <= {"/look.html", f"/{page.name}", "/favicon.ico"} and f"/{page.name}" in asked


def test_a_report_in_a_browser(done, world: Path, tmp_path: Path) -> None:
    look(world / "out/report.html", tmp_path)


def test_the_paper_s_tables_in_a_browser(world: Path, tmp_path: Path) -> None:
    from sycoca_ds.eval.paper.page import write_paper

    (tmp_path / "out").mkdir()
    (tmp_path / "out/sets.json").write_text(json.dumps({"checkpoint": "runs/base", "trained_on": [], "sets": {}}))
    write_paper(tmp_path / "out")
    look(tmp_path / "out/paper.html", tmp_path)

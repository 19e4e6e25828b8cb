"""A browser without a screen, and TensorBoard for it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.worlds.processes.launching import free_port

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LIMIT = 60
"""Seconds until TensorBoard answers, and for one page."""


def find_browser() -> str | None:
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """A TensorBoard that has read the folder: its address."""
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address, until = f"http://127.0.0.1:{port}", time.monotonic() + LIMIT
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/data/runs", timeout=5) as answer:
                    if answer.read().strip() != b"[]":
                        break
            except OSError:
                assert process.poll() is None, "TensorBoard ended"
            assert time.monotonic() < until, "TensorBoard does not answer"
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(LIMIT)


def visit(
    browser: str,
    address: str,
    profile: Path,
    *,
    picture: Path | None = None,
    size: tuple[int, int] = (1400, 1000),
    log: Path | None = None,
) -> str:
    """The page's elements after its scripts have run, or, where there is a picture to write, nothing.

    Args:
        log: gets what scripts say, a line with CONSOLE each.
    """
    what = ["--dump-dom"] if picture is None else [f"--screenshot={picture}"]
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
    ]
    flags += [f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}", "--virtual-time-budget=20000"]
    flags += ["--enable-logging=stderr"] if log is not None else []
    done = subprocess.run([browser, *flags, *what, address], capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    if log is not None:
        log.write_text(done.stderr)
    return done.stdout

"""The process that is img2dataset. Started by download.py, never by hand."""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
import threading
from multiprocessing import forkserver, get_context

from data_pipeline.fetch import Limits

OPT_OUTS = ["noai", "noimageai", "noindex", "noimageindex", "noml"]


class QuietLogger:
    """Stands in for img2dataset's LoggerProcess, which costs a process and an import of 2.5 s to print what the stats
    files say; the supervisor reads those itself."""

    def __init__(self, *args: object):
        self.done_shards: set[int] = set()

    def start(self) -> None: ...

    def join(self) -> None: ...

    def terminate(self) -> None: ...


def _die_with_parent() -> None:
    """Ends the whole process group when the supervisor is gone, however it went: its end of our stdin closes."""
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    """Reads its settings from the JSON file named by argv[1]; runs until all shards are done."""
    with open(sys.argv[1]) as file:
        settings = json.load(file)
    # img2dataset spawns its workers anew every five shards, 2.5 s of imports each time. A fork server imports once,
    # while this process does the same; it is single-threaded, so forking it is safe.
    forkserver.set_forkserver_preload(["data_pipeline.safe_downloader", "img2dataset.main"])
    forkserver.ensure_running()
    threading.Thread(target=_die_with_parent, daemon=True).start()

    from data_pipeline.safe_downloader import SafeDownloader

    # By name: the package's attribute `main` is a function that hides the module.
    main_module = importlib.import_module("img2dataset.main")
    distributor = importlib.import_module("img2dataset.distributor")
    distributor.get_context = lambda kind: get_context("forkserver")
    limits = Limits(**settings["limits"] | {"allowed_hosts": frozenset(settings["limits"]["allowed_hosts"])})
    main_module.Downloader = functools.partial(SafeDownloader, limits=limits)
    main_module.LoggerProcess = QuietLogger
    main_module.download(disallowed_header_directives=OPT_OUTS, **settings["img2dataset"])

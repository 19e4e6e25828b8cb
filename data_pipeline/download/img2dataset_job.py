"""The process that is img2dataset. Started by supervise.py, never by hand."""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import shutil
import signal
import sys
import threading
from multiprocessing import forkserver, get_context
from pathlib import Path

from data_pipeline.download.lean import without_the_unused
from data_pipeline.download.options import chosen_proxies
from data_pipeline.fetch.limits import Limits
from data_pipeline.paths import PlainPaths, read_local_paths_literally

OPT_OUTS = ["noai", "noimageai", "noindex", "noimageindex", "noml"]


class QuietLogger:
    """Stands in for img2dataset's LoggerProcess, which costs a process and an import to print what the stats files say;
    the supervisor reads those itself."""

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
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if settings["img2dataset"]["distributor"] == "pyspark":
        _open_spark(settings)
    else:
        _share_one_import()
    read_local_paths_literally()
    with without_the_unused():
        main_module = importlib.import_module("img2dataset.main")  # by name: the package's attribute is a function that hides it
    from data_pipeline.download.safe_downloader import SafeDownloader

    limits = Limits(
        **settings["limits"]
        | {"allowed_hosts": frozenset(settings["limits"]["allowed_hosts"])}
        | {"proxies": chosen_proxies(settings["proxy"])}  # not out of a file: there may be a password in them
    )
    main_module.Downloader = functools.partial(SafeDownloader, limits=limits)
    main_module.LoggerProcess = QuietLogger
    main_module.download(disallowed_header_directives=OPT_OUTS, **settings["img2dataset"])


def _share_one_import() -> None:
    """img2dataset spawns its workers anew every five shards, with all imports each time. A fork server imports once, while this
    process does the same; it is single-threaded, so forking it is safe."""
    forkserver.set_forkserver_preload(["data_pipeline.download.safe_downloader", "img2dataset.main"])
    forkserver.ensure_running()
    with without_the_unused():
        distributor = importlib.import_module("img2dataset.distributor")
    distributor.get_context = lambda kind: get_context("forkserver")


def _open_spark(settings: dict) -> None:
    """img2dataset takes the session that is active."""
    from data_pipeline.catalogue.spark import open_session

    scratch = Path(settings["img2dataset"]["output_folder"]).parent / ".spark"
    shutil.rmtree(scratch, ignore_errors=True)  # of a download that was killed
    scratch.mkdir()
    executors = {f"spark.executorEnv.{name}": value for name, value in settings["environment"].items()}
    plain = PlainPaths()
    open_session(settings["spark_master"], plain(scratch), **executors)
    atexit.register(plain.close)
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)

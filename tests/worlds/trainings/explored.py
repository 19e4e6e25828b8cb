"""A model opened as `explore` opens it, served or asked directly."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import waitress

from sycoca_ds.explore.keeper import Compared, Held, Keeper
from sycoca_ds.explore.looking import Decoding, Looking, Question
from sycoca_ds.explore.samples import find_samples, look_at
from sycoca_ds.explore.server import Settings, make_app
from sycoca_ds.inference.model import open_model

open_here = partial(open_model, device="cpu", precision="fp32")


def opened(run: Path, data: Path | None = None, compared: int = 0) -> tuple[Held, Compared]:
    """A model that has looked at everything it is compared with."""
    model = open_here(run)
    samples, why = find_samples(model, None if data is None else str(data), compared)
    vectors = None if samples is None else look_at(model, samples, 5, lambda done: None)
    return Held(model, 1, vectors, stage="ready"), Compared(samples, why)


def asked(held: Held, compared: Compared, number: int, caption: str = "", other: str = "", beams: int = 3) -> Looking:
    """A sample, by default with its captions."""
    samples = compared.samples
    captions = (caption or samples.caption(number), other or samples.wrong_caption(number))
    question = Question(samples.collection.picture(number), number, *captions)
    return Looking(held, compared, question, Decoding(beams, max_tokens=12))


@contextmanager
def served(keeper: Keeper, settings: Settings | None = None) -> Iterator[str]:
    """The page on loopback: its address."""
    server = waitress.create_server(make_app(keeper, settings or Settings()), listen="127.0.0.1:0", threads=4)
    thread = threading.Thread(target=server.run, daemon=True)
    keeper.start()
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.effective_port}"
    finally:
        server.close()
        keeper.end()
        server.task_dispatcher.shutdown()


def state_of(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/api/state", timeout=30) as answer:
        return json.load(answer)


def until(address: str, **wanted: Any) -> dict[str, Any]:
    """The state when it has these values."""
    end = time.monotonic() + 120
    while any((state := state_of(address))[name] != value for name, value in wanted.items()):
        assert time.monotonic() < end, (wanted, state)
        time.sleep(0.05)
    return state

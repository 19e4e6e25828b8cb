"""`explore`: a page that looks inside a model.

python -m sycoca_ds.explore runs/base
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from data_pipeline.errors import UserError
from data_pipeline.files import no_folder
from sycoca_ds.eval.options import MOST_BEAMS
from sycoca_ds.inference.caption import AskedModel

if TYPE_CHECKING:
    from sycoca_ds.explore.keeper import Compared, Keeper
    from sycoca_ds.inference.model import Model

PORT = 8765
THREADS = 8
"""That serve requests; one of them at a time asks the model."""


@dataclass(frozen=True, kw_only=True)
class ExploreCommand(AskedModel):
    """Serves a page on this machine that shows what a model makes of a picture and a caption: similarity by patch and word, masks,
    the rebuilt picture, captions, neighbours. Of a run that trains it takes each newer checkpoint. Ctrl-C ends it."""

    checkpoint: Annotated[str, tyro.conf.Positional]
    """Run folder (its newest whole checkpoint, and each that follows), one step's folder, or a folder that sycoca_ds/export.py
    wrote."""
    data: str | None = None
    """Data set folder whose pictures are offered and compared with. Default: the run's data.validation."""
    samples: int = 1000
    """How many of its first pictures are compared with; 0 all."""
    index: str | None = None
    """Folder of pictures, in which neighbours are looked for as well."""
    cache: str | None = None
    """Folder in which the vectors of --index are kept; `off` keeps none. Default: sycoca_ds/search in XDG_CACHE_HOME, or
    ~/.cache."""
    port: int = PORT
    """Of the page; 0 takes a free one."""
    host: str = "127.0.0.1"
    """Address that is listened on. Anyone who reaches it may ask the model; for a model on another machine rather `ssh -L`."""
    beams: int = 4
    """Beams of the second caption, beside the greedy one."""
    max_tokens: int = 30
    """Longest caption in tokens."""

    def check(self) -> None:
        super().check()
        for name, least, most in (("samples", 0, None), ("port", 0, 65535), ("beams", 1, MOST_BEAMS), ("max_tokens", 1, None)):
            value = getattr(self, name)
            if value < least or most is not None and value > most:
                to = "" if most is None else f" and at most {most}"
                raise UserError(f"--{name.replace('_', '-')} {value}: expected at least {least}{to}")
        if self.index is not None and not Path(self.index).is_dir():
            raise UserError(f"--index {self.index}: {no_folder(self.index)}")
        self.hosts()

    def hosts(self) -> tuple[str, ...]:
        """The names by which a browser may call. Raises `UserError` for an address that stands for many."""
        try:
            address = ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        except ValueError:
            raise UserError(f"--host {self.host}: expected an address of this machine, such as 127.0.0.1") from None
        if address.is_unspecified:
            raise UserError(f"--host {self.host} stands for all addresses: expected one of this machine's, such as 127.0.0.1")
        own = f"[{address}]" if address.version == 6 else str(address)
        return (own, "localhost") if address.is_loopback else (own,)

    def listener(self) -> socket.socket:
        """Where requests come in. Raises `UserError`: the port is taken, or the address is no one's here."""
        address = ipaddress.ip_address("127.0.0.1" if self.host == "localhost" else self.host)
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        try:
            return socket.create_server((str(address), self.port), family=family)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise UserError(f"--port {self.port}: cannot listen on {self.host} ({why}); --port 0 takes a free one") from None

    def run(self) -> int:
        self.check()
        with self.listener() as listener:  # before the model is opened, which takes a while
            return self._serve(listener)

    def _serve(self, listener: socket.socket) -> int:
        import logging
        import warnings

        import waitress

        from sycoca_ds.explore.looking import Decoding
        from sycoca_ds.explore.server import FORM_BYTES, MOST_BYTES, Settings, make_app

        warnings.filterwarnings("ignore", ".* longer than this model", UserWarning)  # the page says so
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # that requests wait while the model answers is no news
        hosts, keeper = self.hosts(), self.keeper()
        most = MOST_BYTES + 2 * FORM_BYTES  # above the application's own limit, which answers in words
        app = make_app(keeper, Settings(hosts, Decoding(self.beams, self.max_tokens)))
        server = waitress.create_server(app, sockets=[listener], threads=THREADS, max_request_body_size=most, ident=None)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
        keeper.start()
        print(f"{keeper.held.model!r}\nhttp://{hosts[0]}:{server.effective_port}/  (Ctrl-C ends)", flush=True)
        server.run()  # returns after Ctrl-C
        keeper.end()
        print("ended", flush=True)
        return 0

    def keeper(self) -> Keeper:
        """The model, opened, and what it is compared with. Raises `UserError`."""
        from sycoca_ds.explore.keeper import Keeper
        from sycoca_ds.inference.index import cache_of

        cache = None if self.index is None else cache_of(self.cache)
        model = self.open()
        return Keeper(Path(self.checkpoint), model, self._opened, self._compared(model, cache))

    def _opened(self, folder: Path) -> Model:
        from sycoca_ds.inference.model import open_model

        return open_model(folder, self.device, self.precision, ema=self.ema)

    def _compared(self, model: Model, cache: Path | None) -> Compared:
        from sycoca_ds.explore.keeper import Compared
        from sycoca_ds.explore.samples import find_samples

        samples, why = find_samples(model, self.data, self.samples)
        return Compared(samples, why, None if self.index is None else Path(self.index), cache, self.batch_size)


def main() -> int:
    from data_pipeline.command_line import parse_command

    kind = Annotated[ExploreCommand, tyro.conf.OmitArgPrefixes]
    return parse_command(kind, sys.argv[1:], "python -m sycoca_ds.explore").run()

"""A picture server on loopback: static pictures of one folder and, for the drawn world, the troubles of the real
web."""

from __future__ import annotations

import functools
import io
import signal
import struct
import sys
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data_pipeline.errors import UserError

HOST = "127.0.0.1"
TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
BOMB_SIDE = 20_000
LONG_BYTES = 256 << 20
DRIP_SECONDS = 120
TROUBLES = ("dead", "slow", "page", "corrupt", "bomb", "long")
"""First part of the path of a URL that goes wrong; world.py writes such URLs, this server answers them."""


@functools.cache
def bomb_png() -> bytes:
    """A valid one-bit PNG of 20,000 x 20,000 pixels: about 50 kB here, 1.2 GB decoded to RGB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, parts = zlib.compressobj(9), []
    row = b"\0" * (1 + BOMB_SIDE // 8)
    for _ in range(BOMB_SIDE // 100):
        parts.append(packer.compress(row * 100))
    header = struct.pack(">IIBBBBB", BOMB_SIDE, BOMB_SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"".join(parts) + packer.flush()) + chunk(b"IEND", b"")


@functools.cache
def corrupt_jpeg() -> bytes:
    """A JPEG cut in the middle of its data, sent with an honest length."""
    import numpy as np
    from PIL import Image

    picture = np.random.default_rng(7).integers(0, 256, (64, 64, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of pictures below the server's root; see `PictureServer`."""

    server: PictureServer
    timeout = 30

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).lstrip("/").split("/")
        try:
            if self.server.troubles and parts[0] in TROUBLES:
                self._trouble(parts[0])
            else:
                self._picture(parts, body)
        except (BrokenPipeError, ConnectionError, TimeoutError):
            pass  # the other side hung up, which is what it should do to a drip

    def _picture(self, parts: list[str], body: bool) -> None:
        path = self.server.find(parts)
        if path is None:
            self._send(404, "text/plain", b"not found\n")
            return
        data = path.read_bytes()
        self._send(200, TYPES[path.suffix.lower()], data if body else b"", length=len(data))

    def _trouble(self, kind: str) -> None:
        if kind == "dead":
            self._send(404, "text/html", b"<html><body>gone</body></html>")
        elif kind == "page":
            self._send(200, "text/html; charset=utf-8", b"<!doctype html><title>parked</title><p>This domain is for sale.</p>")
        elif kind == "corrupt":
            self._send(200, "image/jpeg", corrupt_jpeg())
        elif kind == "bomb":
            self._send(200, "image/png", bomb_png())
        elif kind == "long":
            # No length is announced: only counting the bytes as they come stops it.
            self._send(200, "image/jpeg", b"\xff\xd8\xff\xe0", length=None)  # the beginning of a JPEG
            block = b"\xff" * (1 << 16)
            for _ in range(LONG_BYTES // len(block)):
                self.wfile.write(block)
        else:
            self._send(200, "image/jpeg", b"", length=DRIP_SECONDS)
            for _ in range(DRIP_SECONDS):
                self.wfile.write(b"\xff")
                if self.server.stopping.wait(1.0):
                    return

    def _send(self, status: int, kind: str, data: bytes, length: int | None = -1) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(len(data) if length < 0 else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet: thousands of requests a minute."""


class PictureServer(ThreadingHTTPServer):
    """Serves `root`'s pictures as http://127.0.0.1:PORT/<prefix>/<path below root>.

    Regular files with a picture's suffix only; nothing outside the root, also not through links. Port 0 takes a free
    one. UserError when the port is taken.
    """

    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, root: Path, port: int, prefix: str = "images", troubles: bool = False):
        self.root, self.prefix, self.troubles = Path(root).resolve(), prefix, troubles
        self.stopping = threading.Event()
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot listen on {HOST}:{port} ({error}); choose another port") from None
        self.port = self.server_address[1]

    def find(self, parts: list[str]) -> Path | None:
        """The file behind the parts of a URL's path, or None."""
        if parts[:1] != [self.prefix] or len(parts) < 2 or "\0" in "".join(parts):
            return None
        path = self.root.joinpath(*parts[1:])
        if path.suffix.lower() not in TYPES or any(part in ("", ".", "..") or "\\" in part for part in parts[1:]):
            return None
        try:
            path = path.resolve(strict=True)
        except OSError:
            return None
        return path if path.is_relative_to(self.root) and path.is_file() else None

    def handle_error(self, request: object, client_address: object) -> None:
        """A broken connection is the client's business; anything else is a defect and is shown."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handle_error(request, client_address)

    def start(self) -> PictureServer:
        """Serves in a background thread (for tests and for callers that go on)."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def __enter__(self) -> PictureServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def serve_until_interrupted(server: PictureServer, what: str) -> int:
    """Serves until SIGINT (status 130 is not wanted for a server: 0) or SIGTERM, says so on stderr."""
    wake = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: wake.set())
    server.start()
    print(f"serving {what} at http://{HOST}:{server.port}/{server.prefix}/ until Ctrl-C", file=sys.stderr, flush=True)
    wake.wait()
    server.stop()
    return 0

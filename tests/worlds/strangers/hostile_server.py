"""A server on loopback that does what strangers' servers do, and worse. `/NAME` and `/NAME/anything` are answered as NAME says."""

from __future__ import annotations

import contextlib
import gzip
import socketserver
import threading
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from data_pipeline.world.server import bomb_png
from tests.worlds.strangers.hostile_pictures import encoded, scene

PICTURE = encoded(scene(), "JPEG", quality=95)
PAGE = b"<!doctype html><title>parked</title><p>This domain is for sale.</p>"
JPEG_START = PICTURE[:200]
DRIP_SECONDS = 0.2
LIE_BYTES = 10 << 30
BOMB_BYTES = 64 << 20


def answer(body: bytes, status: str = "200 OK", headers: str = "", length: int | None = -1) -> bytes:
    """A whole HTTP answer. Args: length: announced; -1: the body's own, None: none."""
    size = "" if length is None else f"Content-Length: {len(body) if length < 0 else length}\r\n"
    return f"HTTP/1.1 {status}\r\n{size}{headers}\r\n".encode() + body


def robots(*tags: str, name: str = "X-Robots-Tag") -> bytes:
    """The picture with a header for each tag."""
    return answer(PICTURE, headers="".join(f"{name}: {tag}\r\n" for tag in tags))


def moved(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", status, f"Location: {location}\r\n")


def chunked(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """Behind the headers, so that they are lost with what a broken line among them hides."""
    pieces = (body[place : place + 1000] for place in range(0, len(body), 1000))
    framed = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return answer(framed + b"0\r\n\r\n", status, f"{headers}Transfer-Encoding: chunked\r\n", length=None)


def labelled(coding: str, body: bytes = PICTURE) -> bytes:
    return answer(body, headers=f"Content-Encoding: {coding}\r\n")


def fixed_answers(port: int) -> dict[str, bytes]:
    """Answers that are always the same, by name."""
    one_byte_chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in PICTURE) + b"0\r\n\r\n"
    return {
        "ok": answer(PICTURE),
        "chunked": answer(
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE), headers="Transfer-Encoding: chunked\r\n", length=None
        ),
        "one-byte-chunks": answer(one_byte_chunks, headers="Transfer-Encoding: chunked\r\n", length=None),
        "no-length": answer(PICTURE, length=None),
        "called-html": answer(PICTURE, headers="Content-Type: text/html\r\n"),
        "short": answer(PICTURE, length=len(PICTURE) + 100),
        "short-chunked": answer(b"%x\r\n%s" % (len(PICTURE) + 100, PICTURE), headers="Transfer-Encoding: chunked\r\n", length=None),
        "lie": answer(PICTURE, length=LIE_BYTES),
        "truncated": answer(PICTURE[: len(PICTURE) // 2]),
        "page": answer(PAGE, headers="Content-Type: image/jpeg\r\n"),
        "empty": answer(b""),
        "bomb": answer(bomb_png()),
        "gzip": labelled("gzip"),
        "brotli": labelled("br"),
        "gzipped": labelled("gzip", gzip.compress(PICTURE)),
        "gzipped-unsaid": answer(gzip.compress(PICTURE)),
        "deflated": labelled("deflate", zlib.compress(PICTURE)),
        "gzip-bomb": labelled("gzip", gzip.compress(PICTURE + bytes(BOMB_BYTES))),
        "gzip-cut": labelled("gzip", gzip.compress(PICTURE)[:-20]),
        "brotlied": labelled("br", b"\x0b\x02\x80" + PAGE),
        "broken-line": chunked(PICTURE, headers="P3P CP=NOI\r\n"),
        "early-hints": b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + answer(PICTURE),
        "two-lengths": answer(PICTURE, headers="Content-Length: 7\r\n"),
        "203": answer(PICTURE, "203 Non-Authoritative Information"),
        "204": answer(b"", "204 No Content", length=None),
        "206-part": answer(PICTURE[:99], "206 Partial Content", f"Content-Range: bytes 0-98/{len(PICTURE)}\r\n"),
        "nothing": b"",
        "404": answer(b"", "404 Not Found"),
        "403": answer(b"", "403 Forbidden"),
        "429": answer(b"", "429 Too Many Requests", "Retry-After: 3600\r\n"),
        "500": answer(b"", "500 Internal Server Error"),
        "to-ok": moved("/ok"),
        "to-utf8": moved("/\u00fcber\u732b a.jpg?\u00fc"),
        "%C3%BCber%E7%8C%AB%20a.jpg?%C3%BC": answer(PICTURE),
        "to-file": moved("file:///etc/hostname"),
        "to-ftp": moved(f"ftp://127.0.0.1:{port}/x"),
        "to-data": moved("data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA="),
        "to-private": moved("http://169.254.169.254/latest", "301 Moved"),
        "to-neighbour": moved(f"http://127.0.0.1:{port + 1}/x", "307 Temporary"),
        "to-name": moved(f"http://localhost:{port}/ok"),
        "to-number": moved(f"http://2130706433:{port}/ok"),
        "to-mapped": moved(f"http://[::ffff:127.0.0.1]:{port}/ok", "308 Permanent"),
        "loop": moved("/loop"),
        "long-loop": moved("/long-loop/again"),
        "no-location": answer(b"", "302 Found"),
        "nowhere": moved("http://[broken/"),
        "nonsense": b"SMTP ready\r\n\r\n",
        "long-headers": answer(PICTURE, headers="".join(f"X-{number}: {'x' * 60000}\r\n" for number in range(90))),
        "many-headers": answer(PICTURE, headers="".join(f"X-{number}: x\r\n" for number in range(200))),
        "continues": b"HTTP/1.1 100 Continue\r\n\r\n" * 20000,
        "noai": robots("noai"),
        "noai-behind": answer(PICTURE, headers="P3P CP=NOI\r\nX-Robots-Tag: noai\r\n"),
    }


def drip(handler: Hostile) -> None:
    handler.request.sendall(answer(JPEG_START, length=1000))
    while not handler.server.ending.wait(DRIP_SECONDS):
        handler.request.sendall(b"x")


def header_drip(handler: Hostile) -> None:
    handler.request.sendall(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.ending.wait(DRIP_SECONDS):
        handler.request.sendall(b"X")


def silent(handler: Hostile) -> None:
    handler.server.ending.wait(60)


def endless(handler: Hostile) -> None:
    handler.request.sendall(answer(JPEG_START, length=None))
    while not handler.server.ending.is_set():
        handler.request.sendall(bytes(1 << 18))


def endless_chunks(handler: Hostile) -> None:
    handler.request.sendall(answer(b"%x\r\n%s\r\n" % (200, JPEG_START), headers="Transfer-Encoding: chunked\r\n", length=None))
    while not handler.server.ending.is_set():
        handler.request.sendall(b"40000\r\n%s\r\n" % bytes(1 << 18))


def stream(handler: Hostile) -> None:
    """What is no picture from its first byte, and does not end: a camera, a radio."""
    handler.request.sendall(answer(b"\0\0\0\x18ftypmp42", length=None))
    while not handler.server.ending.is_set():
        handler.request.sendall(bytes(1 << 18))


def flaky(handler: Hostile) -> None:
    """Busy every other time."""
    handler.server.count += 1
    handler.request.sendall(answer(PICTURE) if handler.server.count % 2 == 0 else answer(b"", "503 Busy"))


ACTIONS: dict[str, Callable[[Hostile], None]] = {
    "drip": drip,
    "header-drip": header_drip,
    "silent": silent,
    "endless": endless,
    "endless-chunks": endless_chunks,
    "stream": stream,
    "flaky": flaky,
}


def noise(size: int) -> bytes:
    """A body that is announced as a JPEG's size would be and starts like one, but holds noise."""
    return JPEG_START + np.random.default_rng(size).integers(0, 256, size - len(JPEG_START), np.uint8).tobytes()


class Hostile(socketserver.BaseRequestHandler):
    server: HostileServer

    def handle(self) -> None:
        try:
            request = self.request.recv(65536).decode("latin-1")
            self.server.note(request)
            name = request.split(" ")[1].split("/")[1]
            if name in self.server.answers:
                self.request.sendall(self.server.answers[name])
            elif name in ACTIONS:
                ACTIONS[name](self)
        except (OSError, IndexError):
            pass  # the other side hung up, which is what it should do


class HostileServer(socketserver.ThreadingTCPServer):
    """Answers by name: `answers` may be added to before the first request. `requests` records what arrived."""

    daemon_threads, allow_reuse_address, request_queue_size = True, True, 512

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Hostile)
        self.port: int = self.server_address[1]
        self.answers = fixed_answers(self.port)
        self.requests: list[str] = []
        self.count, self.ending, self.first = 0, threading.Event(), threading.Event()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, name: str) -> str:
        return f"http://{self.host}/{name}"

    def note(self, request: str) -> None:
        self.requests.append(request)
        self.first.set()

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet about broken connections."""


@contextlib.contextmanager
def running() -> Iterator[HostileServer]:
    with HostileServer() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield server
        finally:
            server.ending.set()
            server.shutdown()


ENDS = {
    "short": "body shorter than announced",
    "short-chunked": "body shorter than announced",
    "lie": "too many bytes",
    "endless": "too many bytes",
    "endless-chunks": "too many bytes",
    "stream": "not an image",
    "truncated": "truncated image",
    "page": "not an image",
    "empty": "not an image",
    "bomb": "too many pixels",
    "gzip-bomb": "too many bytes",
    "gzip-cut": "truncated image",
    "brotlied": "encoded body",
    "two-lengths": "bad http answer",
    "204": "http 204",
    "206-part": "http 206",
    "nothing": "connection failed",
    "404": "http 404",
    "403": "http 403",
    "429": "http 429",
    "500": "http 500",
    "to-ftp": "scheme refused",
    "to-data": "scheme refused",
    "to-private": "private address refused",
    "to-neighbour": "private address refused",
    "to-name": "private address refused",
    "to-number": "private address refused",
    "to-mapped": "private address refused",
    "loop": "too many redirects",
    "long-loop": "too many redirects",
    "no-location": "too many redirects",
    "nowhere": "malformed url",
    "nonsense": "bad http answer",
    "long-headers": "bad http answer",
    "continues": "bad http answer",
    "drip": "timeout",
    "header-drip": "timeout",
    "silent": "timeout",
}
"""The reason of each answer that gives no picture, whoever fetches it."""

"""The bounded fetch against a hostile server on loopback: each case ends in time, under its own reason."""

import io
import socket
import socketserver
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipeline import fetch
from data_pipeline.fetch import FetchError, Limits, check_image, fetch_bytes, fetch_image
from data_pipeline.server import bomb_png

pytestmark = pytest.mark.timeout(30)


def encoded(kind: str = "JPEG", size=(20, 10), mode: str = "RGB", **options) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURE = encoded(size=(64, 48))


def answer(body: bytes, status: str = "200 OK", headers: str = "", length: int | None = -1) -> bytes:
    size = "" if length is None else f"Content-Length: {len(body) if length < 0 else length}\r\n"
    return f"HTTP/1.1 {status}\r\n{size}{headers}\r\n".encode() + body


class Hostile(socketserver.BaseRequestHandler):
    def handle(self):
        request = self.request.recv(65536).decode("latin-1")
        path = request.split(" ")[1]
        self.server.requests.append(request)
        try:
            self.answer(path)
        except OSError:
            pass

    def answer(self, path: str) -> None:
        port = self.server.server_address[1]
        fixed = {
            "/ok": answer(PICTURE),
            "/chunked": answer(
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(PICTURE), PICTURE),
                headers="Transfer-Encoding: chunked\r\n",
                length=None,
            ),
            "/short": answer(PICTURE, length=len(PICTURE) + 100),
            "/lie": answer(PICTURE, length=10 << 30),
            "/truncated": answer(PICTURE[: len(PICTURE) // 2]),
            "/page": answer(b"<html>hello</html>"),
            "/empty": answer(b""),
            "/bomb": answer(bomb_png()),
            "/gzip": answer(PICTURE, headers="Content-Encoding: gzip\r\n"),
            "/404": answer(b"", "404 Not Found"),
            "/403": answer(b"", "403 Forbidden"),
            "/to-ok": answer(b"", "302 Found", "Location: /ok\r\n"),
            "/to-file": answer(b"", "302 Found", "Location: file:///etc/hostname\r\n"),
            "/to-private": answer(b"", "301 Moved", "Location: http://169.254.169.254/latest\r\n"),
            "/to-neighbour": answer(b"", "307 Temporary", f"Location: http://127.0.0.1:{port + 1}/x\r\n"),
            "/to-name": answer(b"", "302 Found", f"Location: http://localhost:{port}/ok\r\n"),
            "/loop": answer(b"", "302 Found", "Location: /loop\r\n"),
            "/nowhere": answer(b"", "302 Found", "Location: http://[broken/\r\n"),
            "/nonsense": b"SMTP ready\r\n\r\n",
            "/noai": answer(PICTURE, headers="X-Robots-Tag: noai\r\n"),
        }
        if path in fixed:
            self.request.sendall(fixed[path])
        elif path == "/flaky":
            self.server.count += 1
            self.request.sendall(answer(PICTURE) if self.server.count % 2 == 0 else answer(b"", "503 Busy"))
        elif path == "/drip":
            self.request.sendall(answer(b"", length=1000))
            while not self.server.ending.wait(0.2):
                self.request.sendall(b"x")
        elif path == "/header-drip":
            self.request.sendall(b"HTTP/1.1 200 OK\r\n")
            while not self.server.ending.wait(0.2):
                self.request.sendall(b"X")
        elif path == "/silent":
            self.server.ending.wait(20)
        elif path == "/endless":
            self.request.sendall(answer(b"", length=None))
            while not self.server.ending.is_set():
                self.request.sendall(b"x" * 65536)


class Server(socketserver.ThreadingTCPServer):
    daemon_threads, allow_reuse_address = True, True


@pytest.fixture(scope="module")
def server():
    with Server(("127.0.0.1", 0), Hostile) as server:
        server.requests, server.count, server.ending = [], 0, threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.ending.set()
        server.shutdown()


def limits(server, **changes) -> Limits:
    return Limits(
        **{
            "timeout": 1.5,
            "max_bytes": 1 << 20,
            "max_pixels": 10_000,
            "retries": 0,
            "allowed_hosts": frozenset({f"127.0.0.1:{server.server_address[1]}"}),
        }
        | changes
    )


CASES = {
    "/short": "body shorter than announced",
    "/lie": "too many bytes",
    "/endless": "too many bytes",
    "/truncated": "truncated image",
    "/page": "not an image",
    "/empty": "not an image",
    "/bomb": "too many pixels",
    "/gzip": "encoded body",
    "/404": "http 404",
    "/403": "http 403",
    "/to-file": "scheme refused",
    "/to-private": "private address refused",
    "/to-neighbour": "private address refused",
    "/to-name": "private address refused",
    "/loop": "too many redirects",
    "/nowhere": "malformed url",
    "/nonsense": "bad http answer",
    "/drip": "timeout",
    "/header-drip": "timeout",
    "/silent": "timeout",
}


@pytest.mark.parametrize("path", CASES)
def test_hostile(server, path):
    start = time.monotonic()
    data, reason = fetch_image(f"http://127.0.0.1:{server.server_address[1]}{path}", limits(server))
    assert (data, reason) == (None, CASES[path])
    assert time.monotonic() - start < 2.5, "the timeout is for everything together"


@pytest.mark.parametrize("path", ["/ok", "/chunked", "/to-ok"])
def test_good(server, path):
    assert fetch_image(f"http://127.0.0.1:{server.server_address[1]}{path}", limits(server)) == (PICTURE, None)


def test_address_is_checked_before_anything_is_sent(server):
    port, before = server.server_address[1], len(server.requests)
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433"):
        assert fetch_image(f"http://{host}:{port}/ok", limits(server, allowed_hosts=frozenset()))[1] == "private address refused"
    assert len(server.requests) == before


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/hostname", "scheme refused"),
        ("ftp://127.0.0.1/x", "scheme refused"),
        ("data:image/png;base64,AAAA", "scheme refused"),
        ("http:///x", "malformed url"),
        ("http://a.example:port/x", "malformed url"),
        ("http://no-such-name.invalid/x", "name not found"),
        ("http://bad\thost/x", "malformed url"),
        ("", "scheme refused"),
    ],
)
def test_urls_that_are_no_use(server, url, reason):
    # urlsplit drops tabs; such a host is then looked up and not found
    assert fetch_image(url, limits(server, timeout=8))[1] in (reason, "name not found")


def test_a_slow_name_server_does_not_outlast_the_timeout(server, monkeypatch):
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    start = time.monotonic()
    assert fetch_image("http://slow.example/x", limits(server, timeout=0.5))[1] == "timeout"
    assert time.monotonic() - start < 1.5


def test_one_private_address_among_public_ones_is_enough(server, monkeypatch):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *args, **kwargs: entries)
    assert fetch_image("http://rebinding.example/x", limits(server))[1] == "private address refused"


def test_passing_failures_are_tried_again_and_lasting_ones_not(server):
    url = f"http://127.0.0.1:{server.server_address[1]}"
    server.count = 0
    assert fetch_image(f"{url}/flaky", limits(server, retries=1, timeout=5)) == (PICTURE, None)
    server.count = 0
    assert fetch_image(f"{url}/flaky", limits(server, retries=0, timeout=5))[1] == "http 503"
    before = len(server.requests)
    fetch_image(f"{url}/404", limits(server, retries=3, timeout=5))
    assert len(server.requests) == before + 1


def test_headers_may_forbid(server):
    url = f"http://127.0.0.1:{server.server_address[1]}/noai"
    with pytest.raises(FetchError, match="forbidden by robots directive"):
        fetch_bytes(url, limits(server), lambda headers: "noai" in headers.get("X-Robots-Tag", ""))
    assert "sycoca-ds" in server.requests[-1]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_cut_pictures_are_refused_and_whole_ones_pass_unchanged(kind):
    data = encoded(kind, (64, 48))
    assert check_image(data, 64 * 48) == data
    for cut in (len(data) - 20, len(data) // 2):
        with pytest.raises(FetchError, match="truncated image|damaged image"):
            check_image(data[:cut], 64 * 48)
    with pytest.raises(FetchError, match="too many pixels"):
        check_image(data, 64 * 48 - 1)


def test_thumbnail_does_not_hide_a_cut():
    """A JPEG whose EXIF holds a whole little JPEG, cut after it: the little one's end mark is not the picture's."""
    thumbnail = encoded(size=(8, 8))
    whole = encoded(size=(64, 48))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Thumb\0" + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert check_image(with_thumbnail, 10_000) == with_thumbnail
    with pytest.raises(FetchError, match="truncated image"):
        check_image(with_thumbnail[:-100], 10_000)


def test_turned_and_sixteen_bit_pictures_are_put_right():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(check_image(encoded(size=(40, 20), exif=exif), 10_000)))
    assert turned.size == (20, 40)
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x4000, np.uint16)).save(buffer, "PNG")
    grey = np.asarray(Image.open(io.BytesIO(check_image(buffer.getvalue(), 10_000))))
    assert grey.dtype == np.uint8 and set(grey.reshape(-1)) == {0x40}


def test_a_bomb_is_refused_without_decoding_it():
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FetchError, match="too many pixels"):
        check_image(bomb_png(), 50_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert len(bomb_png()) < 100_000 and zlib.crc32(bomb_png()) == zlib.crc32(bomb_png())

"""The bounded fetch against a hostile server on loopback: each case ends in time, under its own reason."""

import gc
import socket
import time
import warnings

import pytest

from data_pipeline.fetch.body import ROOM_BYTES, SMALL_BYTES
from data_pipeline.fetch.image import fetch_bytes, fetch_image
from data_pipeline.fetch.limits import Limits
from data_pipeline.fetch.robots import forbidden
from data_pipeline.fetch.room import Room
from data_pipeline.pictures.headers import FetchError
from tests.worlds.strangers.hostile_server import ENDS, PICTURE, answer, running

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def limits(server, **changes) -> Limits:
    defaults = {"timeout": 1.5, "max_bytes": 1 << 20, "max_pixels": 10_000, "retries": 0, "allowed_hosts": frozenset({server.host})}
    return Limits(**defaults | changes)


def got(server, name: str, **changes) -> tuple[bytes | None, str | None]:
    body, reason = fetch_image(server.url(name), limits(server, **changes))
    if body is None:
        return None, reason
    data = bytes(body.read())
    body.close()
    return data, reason


CASES = {
    **ENDS,
    "to-file": "scheme refused",
}


@pytest.mark.parametrize("name", CASES)
def test_hostile(server, name):
    start = time.monotonic()
    assert got(server, name) == (None, CASES[name])
    assert time.monotonic() - start < 2.5, "the timeout is for everything together"


GOOD = ("ok", "chunked", "one-byte-chunks", "no-length", "called-html", "to-ok", "to-utf8", "gzip", "brotli", "gzipped")
GOOD += ("gzipped-unsaid", "deflated", "broken-line", "early-hints", "203", "many-headers")


@pytest.mark.parametrize("name", GOOD)
def test_good(server, name):
    assert got(server, name) == (PICTURE, None)


def test_connections_are_closed_not_forgotten(server):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ResourceWarning)
        for name in (*CASES, *GOOD):
            got(server, name, timeout=0.5)
        gc.collect()
    assert [str(warning.message) for warning in said] == []


def test_the_cap_on_bytes_is_one_of_the_body(server):
    server.answers["exactly"] = answer(PICTURE + bytes((1 << 20) - len(PICTURE)), headers="X-Long: " + "x" * 9000 + "\r\n")
    server.answers["one-more"] = answer(PICTURE + bytes((1 << 20) + 1 - len(PICTURE)))
    server.answers["one-more-unsaid"] = answer(PICTURE + bytes((1 << 20) + 1 - len(PICTURE)), length=None)
    assert len(got(server, "exactly", timeout=10)[0]) == 1 << 20
    assert got(server, "one-more", timeout=10) == (None, "too many bytes")
    assert got(server, "one-more-unsaid", timeout=10) == (None, "too many bytes")


def test_address_is_checked_before_anything_is_sent(server):
    before = len(server.requests)
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433"):
        url = f"http://{host}:{server.port}/ok"
        assert fetch_image(url, limits(server, allowed_hosts=frozenset()))[1] == "private address refused"
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
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    start = time.monotonic()
    assert fetch_image("http://slow.example/x", limits(server, timeout=0.5))[1] == "timeout"
    assert time.monotonic() - start < 2.5


def test_one_private_address_among_public_ones_is_enough(server, monkeypatch):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries)
    assert fetch_image("http://rebinding.example/x", limits(server))[1] == "private address refused"


def test_passing_failures_are_tried_again_and_lasting_ones_not(server):
    server.count = 0
    assert got(server, "flaky", retries=1, timeout=5) == (PICTURE, None)
    server.count = 0
    assert got(server, "flaky", retries=0, timeout=5) == (None, "http 503")
    before = len(server.requests)
    got(server, "404", retries=3, timeout=5)
    assert len(server.requests) == before + 1


@pytest.mark.parametrize(
    ("status", "headers", "reason"),
    [
        ("200 OK", "", None),
        ("201 Created", "", None),
        ("202 Accepted", "", None),
        ("226 IM Used", "", None),
        ("299 Fine", "", None),
        ("205 Reset Content", "", "http 205"),
        ("206 Partial Content", "", None),
        ("206 Partial Content", f"Content-Range: bytes 0-{len(PICTURE) - 1}/{len(PICTURE)}\r\n", None),
        ("206 Partial Content", f"Content-Range: bytes 0-{len(PICTURE) - 1}/{len(PICTURE) + 9}\r\n", "http 206"),
        ("206 Partial Content", f"Content-Range: bytes 9-{len(PICTURE) + 8}/{len(PICTURE) + 9}\r\n", "http 206"),
        ("206 Partial Content", f"Content-Range: bytes 0-{len(PICTURE) - 1}/*\r\n", "http 206"),
        ("300 Multiple Choices", "Location: /ok\r\n", "http 300"),
        ("304 Not Modified", "", "http 304"),
        ("404 Not Found", "", "http 404"),
        ("999 Denied", "", "http 999"),
    ],
)
def test_which_answers_count(server, status, headers, reason):
    server.answers["status"] = answer(PICTURE, status, headers)
    assert got(server, "status") == (PICTURE if reason is None else None, reason)


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/ok/\u00fc\u732b?\u00fc", "/ok/%C3%BC%E7%8C%AB?%C3%BC"),
        ("/ok/\udcfc", "/ok/%FC"),
        ("/ok/%C3%BC%20", "/ok/%C3%BC%20"),
        ("/ok/a b?c d", "/ok/a%20b?c%20d"),
        ("\\ok\\a", "/ok/a"),
        ("/x/../ok/./a#b", "/ok/a"),
        ("ok?a", "/ok?a"),
        ("//{host}/ok/a", "/ok/a"),
        ("http:/ok/a", "/ok/a"),
        ("http:///{host}/ok/a", "/ok/a"),
        ("\thttp://{host}/ok/\ta ", "/ok/a"),
        ("http://user:word@{host}/ok", "/ok"),
        ("/ok/a\r\nLocation: /404", "/ok/a"),
        ("/ok/a\r\n  b", "/ok/a%20b"),
    ],
)
def test_where_redirects_lead(server, location, asked):
    head = f"HTTP/1.1 302 Found\r\nLocation: {location.format(host=server.host)}\r\nContent-Length: 0\r\n\r\n"
    server.answers["away"] = head.encode("utf-8", "surrogateescape")
    server.answers["ok?a"] = server.answers["ok"]
    assert got(server, "away") == (PICTURE, None)
    lines = server.requests[-1].split("\r\n")
    assert lines[0] == f"GET {asked} HTTP/1.1"
    assert not [line for line in lines if line.lower().startswith(("authorization:", "cookie:"))]


def test_a_request_says_what_everybodys_says(server):
    got(server, "ok/a b|c?d=\u00fc#e")
    assert server.requests[-1].split("\r\n") == [
        "GET /ok/a%20b|c?d=%C3%BC HTTP/1.1",
        f"Host: {server.host}",
        "User-Agent: Mozilla/5.0 (compatible; sycoca-ds)",
        "Accept: image/*,*/*;q=0.5",
        "Accept-Encoding: identity",
        "Connection: close",
        "",
        "",
    ]


def test_a_lost_connection_is_tried_again(server):
    before = len(server.requests)
    assert got(server, "nothing", retries=1, timeout=5) == (None, "connection failed")
    assert len(server.requests) == before + 2


def test_headers_behind_a_broken_line_may_forbid(server):
    def refuses(headers) -> bool:
        return forbidden(headers, "sycoca-ds", {"noai"})

    assert fetch_image(server.url("noai-behind"), limits(server), refuses) == (None, "forbidden by robots directive")


def test_headers_may_forbid(server):
    with pytest.raises(FetchError, match="forbidden by robots directive"):
        fetch_bytes(server.url("noai"), limits(server), lambda headers: forbidden(headers, "sycoca-ds", {"noai"}))
    assert "sycoca-ds" in server.requests[-1]
    fetch_bytes(server.url("noai"), limits(server), lambda headers: forbidden(headers, "sycoca-ds", {"noindex"})).close()


def test_large_bodies_hold_room_until_closed_whatever_happens(server, monkeypatch):
    room = Room(3 << 20)
    monkeypatch.setattr("data_pipeline.fetch.body._room", lambda: room)
    size = 1 << 20
    server.answers["large"] = answer(PICTURE + bytes(size - len(PICTURE)))
    server.answers["large-chunked"] = answer(
        b"%x\r\n%s\r\n0\r\n\r\n" % (size, PICTURE + bytes(size - len(PICTURE))),
        headers="Transfer-Encoding: chunked\r\n",
        length=None,
    )
    server.answers["large-short"] = answer(PICTURE + bytes(size - 100 - len(PICTURE)), length=size)
    server.answers["large-page"] = answer(b"<html>" + bytes(size))
    server.answers["large-cut"] = answer(PICTURE[:-2] + bytes(size - len(PICTURE)))
    long = {"max_bytes": 2 << 20, "timeout": 10.0}
    bodies = [fetch_image(server.url(name), limits(server, **long))[0] for name in ("large", "ok", "large-chunked")]
    assert [len(body.read()) for body in bodies] == [size, len(PICTURE), size]
    assert room.free == (3 << 20) - 2 * size, "small ones take none; what was not announced takes what it is in the end"
    assert got(server, "large-chunked", max_bytes=2 << 20, timeout=0.5) == (None, "no room for it in time")
    assert got(server, "ok") == (PICTURE, None), "small ones need not wait"
    bodies[0].close()
    bodies[0].close()
    assert room.free == (3 << 20) - size
    assert got(server, "large-chunked", **long)[1] is None
    del bodies
    gc.collect()
    for name, reason in (
        ("large-short", "body shorter than announced"),
        ("large-page", "not an image"),
        ("large-cut", "truncated image"),
        ("endless", "too many bytes"),
        ("404", "http 404"),
    ):
        assert got(server, name, **long) == (None, reason)
        assert room.free == 3 << 20


def test_small_and_large_bodies_of_a_process_fit_its_memory():
    most_in_flight = 2 * 32  # img2dataset's, with the default number of threads
    assert most_in_flight * SMALL_BYTES + ROOM_BYTES * 9 / 8 <= 112 << 20

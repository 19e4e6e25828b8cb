"""The bounded fetch against a hostile server on loopback: each case ends in time, under its own reason."""

import gc
import socket
import threading
import time
from email.message import Message

import pytest

from data_pipeline.download import fetch
from data_pipeline.download.fetch import ROOM_BYTES, SMALL_BYTES, FetchError, Limits, fetch_bytes, fetch_image
from data_pipeline.download.robots import forbidden
from data_pipeline.download.room import Room, Share
from tests.worlds.hostile_server import PICTURE, answer, running

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
    "gzip": "encoded body",
    "404": "http 404",
    "403": "http 403",
    "429": "http 429",
    "500": "http 500",
    "to-file": "scheme refused",
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
    "many-headers": "bad http answer",
    "continues": "bad http answer",
    "drip": "timeout",
    "header-drip": "timeout",
    "silent": "timeout",
}


@pytest.mark.parametrize("name", CASES)
def test_hostile(server, name):
    start = time.monotonic()
    assert got(server, name) == (None, CASES[name])
    assert time.monotonic() - start < 2.5, "the timeout is for everything together"


@pytest.mark.parametrize("name", ["ok", "chunked", "one-byte-chunks", "no-length", "called-html", "to-ok"])
def test_good(server, name):
    assert got(server, name) == (PICTURE, None)


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
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    start = time.monotonic()
    assert fetch_image("http://slow.example/x", limits(server, timeout=0.5))[1] == "timeout"
    assert time.monotonic() - start < 1.5


def test_one_private_address_among_public_ones_is_enough(server, monkeypatch):
    entries = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *args, **kwargs: entries)
    assert fetch_image("http://rebinding.example/x", limits(server))[1] == "private address refused"


def test_passing_failures_are_tried_again_and_lasting_ones_not(server):
    server.count = 0
    assert got(server, "flaky", retries=1, timeout=5) == (PICTURE, None)
    server.count = 0
    assert got(server, "flaky", retries=0, timeout=5) == (None, "http 503")
    before = len(server.requests)
    got(server, "404", retries=3, timeout=5)
    assert len(server.requests) == before + 1


def test_headers_may_forbid(server):
    with pytest.raises(FetchError, match="forbidden by robots directive"):
        fetch_bytes(server.url("noai"), limits(server), lambda headers: forbidden(headers, "sycoca-ds", {"noai"}))
    assert "sycoca-ds" in server.requests[-1]
    fetch_bytes(server.url("noai"), limits(server), lambda headers: forbidden(headers, "sycoca-ds", {"noindex"})).close()


OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "noml"}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], False),
        (["all"], False),
        (["noarchive, nofollow"], False),
        (["noai"], True),
        (["NoAI"], True),
        (["noarchive , noimageai"], True),
        (["noindex"], True),
        (["noimageindex"], True),
        (["noml"], True),
        (["none"], True),
        (["all", "noai"], True),
        (["sycoca-ds: noai"], True),
        (["Sycoca-DS : noai"], True),
        (["*: noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noai", "noarchive"], False),
        (["otherbot: nofollow, noai"], False),
        (["otherbot: noai, sycoca-ds: noarchive"], False),
        (["otherbot: nofollow, sycoca-ds: noarchive, noai"], True),
        (["sycoca-ds: nofollow, otherbot: noai"], False),
        (["max-snippet: 20, noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], True),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], False),
        (["max-image-preview: none"], False),
        (["noaixyz"], False),
        ([""], False),
        ([":,::,"], False),
    ],
)
def test_robots_tags(tags, expected):
    headers = Message()
    for tag in tags:
        headers["X-Robots-Tag"] = tag
    assert forbidden(headers, "sycoca-ds", OPT_OUTS) is expected
    assert forbidden(headers, "sycoca-ds", ()) is False


def test_reserved_rights():
    for values, expected in ((["1"], True), (["0"], False), (["0", " 1 "], True), (["10"], False)):
        headers = Message()
        for value in values:
            headers["tdm-reservation"] = value
        assert forbidden(headers, None, ()) is expected


def test_a_room_is_never_overfull_and_serves_in_turn():
    room, order, most, lock = Room(100), [], [0, 0], threading.Lock()

    def hold(name: int, size: int) -> None:
        share = Share(room)
        assert share.take(size, time.monotonic() + 20)
        with lock:
            order.append(name)
            most[0] += share.taken
            most[1] = max(most)
        time.sleep(0.01)
        with lock:
            most[0] -= share.taken
        share.give_back()

    first = Share(room)
    assert first.take(1000, time.monotonic()), "what is larger than the room takes all of it"
    assert first.taken == 100
    threads = []
    for name in range(12):
        threads.append(threading.Thread(target=hold, args=(name, 60 if name % 3 else 30)))
        threads[-1].start()
        while len(room.queue) <= name:
            time.sleep(0.001)
    first.shrink(95)
    first.give_back()
    for thread in threads:
        thread.join()
    # Two of neighbouring turns may pass each other between taking and noting it.
    assert most[1] <= 100 and all(abs(place - name) <= 1 for place, name in enumerate(order))
    assert room.free == 100 and not room.queue


def test_who_waits_too_long_for_room_leaves_the_queue():
    room = Room(100)
    first, second, third = Share(room), Share(room), Share(room)
    assert first.take(60, time.monotonic())
    start = time.monotonic()
    assert not second.take(60, time.monotonic() + 0.2)
    assert 0.15 < time.monotonic() - start < 2
    assert third.take(40, time.monotonic()), "who gave up is not in the way"
    del first
    gc.collect()
    assert room.free == 60, "what is forgotten is given back"


def test_large_bodies_hold_room_until_closed_whatever_happens(server, monkeypatch):
    room = Room(3 << 20)
    monkeypatch.setattr(fetch, "_room", lambda: room)
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

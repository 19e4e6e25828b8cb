"""Names are looked up beside each other, within their time; dead ones are in nobody's way."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipeline.fetch.limits import Clock, Limits
from data_pipeline.fetch.names import Resolver, addresses_of
from data_pipeline.fetch.urls import parse_url
from data_pipeline.pictures.headers import FetchError

pytestmark = pytest.mark.timeout(60)
ENTRY = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))


def entries(*addresses: str) -> list[tuple]:
    return [(*ENTRY[:4], (address, 80)) for address in addresses]


def outcome(resolver: Resolver, host: str, seconds: float):
    try:
        return resolver.look_up(host, 80, Clock(seconds))
    except FetchError as error:
        return error.reason


@pytest.fixture
def names(monkeypatch):
    """`dead*` answer when the test says so, `missing*` do not exist, all others are fast. Yields the event and what was asked."""
    wake, asked = threading.Event(), []

    def look_up(host, port, *args, **kwargs):
        asked.append(host)
        if host.startswith("dead"):
            wake.wait(30)
        if host.startswith(("dead", "missing")):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [ENTRY]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield wake, asked
    wake.set()


def test_dead_names_are_in_nobodys_way(names):
    resolver = Resolver(100)
    with ThreadPoolExecutor(32) as pool:
        dead = [pool.submit(outcome, resolver, f"dead{number}", 0.3) for number in range(64)]
        assert {job.result() for job in dead} == {"timeout"}
        # they end before the dead ones do, which take 30 s: a busy machine is no reason to fail, waiting for these is
        good = [pool.submit(outcome, resolver, f"good{number}", 20) for number in range(500)]
        assert [job.result() for job in good] == [[ENTRY]] * 500
    assert outcome(resolver, "missing", 1) == "name not found"


def test_waiting_for_a_place_is_not_the_urls_time(names):
    wake, asked = names
    resolver, clock = Resolver(1), Clock(0.5)
    assert outcome(resolver, "dead", 0.05) == "timeout"
    threading.Timer(0.4, wake.set).start()
    assert resolver.look_up("good", 80, clock) == [ENTRY]
    assert 0.4 < clock.left() <= 0.5
    assert asked == ["dead", "good"]


def test_waiting_for_a_place_ends(names):
    resolver, clock = Resolver(1), Clock(0.3)
    assert outcome(resolver, "dead", 0.05) == "timeout"
    start = time.monotonic()
    with pytest.raises(FetchError, match="timeout"):
        resolver.look_up("good", 80, clock)
    assert 0.25 < time.monotonic() - start < 5
    assert clock.left() <= 0.3, "once as long as it has time, it did not count; now it does"
    with clock.stopped() as longest:
        assert longest < 0.01


def test_a_name_is_looked_up_once_at_a_time(names):
    wake, asked = names
    resolver = Resolver(2)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(outcome, resolver, "dead", 0.3) for _ in range(1)]
        time.sleep(0.05)
        jobs += [pool.submit(outcome, resolver, "dead", 5) for _ in range(7)]
        assert jobs[0].result() == "timeout"
        wake.set()
        assert {job.result() for job in jobs[1:]} == {"name not found"}
    assert asked == ["dead"]
    assert outcome(resolver, "dead", 5) == "name not found"
    assert asked == ["dead", "dead"]


def test_threads_are_used_again_and_end(monkeypatch):
    used = []

    def look_up(*args, **kwargs):
        used.append(threading.current_thread())
        return [ENTRY]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr("data_pipeline.fetch.names.IDLE_SECONDS", 1.0)
    resolver = Resolver(4)
    for number in range(50):
        assert outcome(resolver, f"a{number}", 5) == [ENTRY]
        time.sleep(0.001)
    assert len(set(used)) <= 3
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(lambda number: outcome(resolver, f"b{number}", 20), range(500))) == [[ENTRY]] * 500
    assert len(set(used)) <= 12, "as many as there are places, and a few that ended between"
    for thread in set(used):
        thread.join(5)
        assert not thread.is_alive()
    assert outcome(resolver, "c", 5) == [ENTRY]


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (("93.184.216.34", "10.0.0.1"), "private address refused"),
        (("::ffff:127.0.0.1",), "private address refused"),
        (("64:ff9b::7f00:1",), "private address refused"),
        (("fe80::1",), "private address refused"),
        (("93.184.216.34", "2606:2800:21f:cb07:6820:80da:af6b:8b2c"), None),
    ],
)
def test_all_addresses_of_a_name_are_public(monkeypatch, found, reason):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: entries(*found))
    try:
        assert addresses_of(parse_url("http://rebinding.example/"), Limits(), Clock(5)) == entries(*found)
        assert reason is None
    except FetchError as error:
        assert error.reason == reason


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "0x7f.1", "2130706433", "017700000001", "[::1]", "[::ffff:7f00:1]", "0", "127.0.0.1."]
)
def test_private_addresses_are_refused_in_every_notation(host):
    """Also where the usual notation is allowed: that is one server of one's own, not what a stranger's redirect spells so."""
    allowed = frozenset() if host == "127.0.0.1" else frozenset({"127.0.0.1:80"})
    with pytest.raises(FetchError, match="private address refused"):
        addresses_of(parse_url(f"http://{host}/"), Limits(allowed_hosts=allowed), Clock(5))

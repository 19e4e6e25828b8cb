"""A connection to one of a host's checked addresses, within a fetch's time; urllib3 speaks on it."""

from __future__ import annotations

import functools
import http.client
import io
import math
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass_environment

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.exceptions import SSLError as WrappedTlsError
from urllib3.response import HTTPResponse
from urllib3.util import make_headers
from urllib3.util.ssl_match_hostname import CertificateError

from data_pipeline.catalogue.hosts import is_public_host
from data_pipeline.fetch.answer import Answer
from data_pipeline.fetch.limits import Clock, Limits
from data_pipeline.fetch.names import RESOLVER, addresses_of
from data_pipeline.fetch.urls import Url
from data_pipeline.pictures.headers import FetchError

HEADER_BYTES = 256 << 10
"""Most bytes of an answer before its body; http.client alone would take 6 MB."""
NEXT_ADDRESS_SECONDS = 0.25
"""After which the next address is tried beside one that is silent (RFC 8305)."""


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@contextmanager
def failures_named() -> Iterator[None]:
    """What sockets, TLS, http.client and urllib3 raise becomes a `FetchError`."""
    try:
        yield
    except (OSError, http.client.HTTPException, HTTPError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, ProtocolError) and error.__cause__ else error
        if isinstance(cause, http.client.IncompleteRead):
            raise FetchError("body shorter than announced", transient=True) from None
        if isinstance(cause, (TimeoutError, ReadTimeoutError)):
            raise FetchError("timeout") from None
        if isinstance(cause, (ssl.SSLError, WrappedTlsError, CertificateError)):
            raise FetchError("tls failed") from None
        if isinstance(cause, OSError):  # RemoteDisconnected, too
            raise FetchError("connection failed", transient=True) from None
        if isinstance(cause, ValueError) and not isinstance(cause, HTTPError):  # a name that only a proxy or TLS refuses to encode
            raise FetchError("malformed url") from None
        raise FetchError("bad http answer") from None


class _Wire(io.RawIOBase):
    """A socket's bytes within the time of a fetch, with a cap on their number, first on that of headers."""

    def __init__(self, connection: socket.socket, clock: Clock):
        self._connection, self._clock = connection, clock
        self._file = connection.makefile("rb", buffering=0)  # keeps the socket open until this is closed
        self._left, self._excess = HEADER_BYTES, "bad http answer"

    def expect_body(self, max_bytes: int) -> None:
        self._left, self._excess = max_bytes + HEADER_BYTES, "too many bytes"  # chunks are announced between

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._connection.settimeout(self._clock.left())
        count = self._file.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise FetchError(self._excess)
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class _Socket:
    """What http.client and urllib3 need of a socket, reading through `_Wire`."""

    def __init__(self, connection: socket.socket, clock: Clock):
        self._connection, self._clock = connection, clock

    def settimeout(self, seconds: float | None) -> None:
        """urllib3 sets its own; the clock decides."""

    def sendall(self, data: bytes) -> None:
        self._connection.settimeout(self._clock.left())
        self._connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        self.wire = _Wire(self._connection, self._clock)
        return io.BufferedReader(self.wire, 1 << 16)

    def close(self) -> None:
        self._connection.close()


class _Checked:
    """What our connections do in urllib3's place: they go to given addresses, keep to a clock and to a number of bytes, and read
    broken heads."""

    response_class = Answer

    def bind(self, addresses: list[tuple], clock: Clock, max_bytes: int) -> None:
        self._addresses, self._clock, self._max_bytes = addresses, clock, max_bytes

    def _new_conn(self) -> socket.socket:
        return connect_to_one(self._addresses, self._clock)

    def _tunnel(self) -> None:
        connection, self.sock = self.sock, _Socket(self.sock, self._clock)
        try:
            super()._tunnel()
            connection.settimeout(self._clock.left())  # for the whole handshake that follows
        finally:
            self.sock = connection

    def connect(self) -> None:
        super().connect()
        self.sock = _Socket(self.sock, self._clock)

    def getresponse(self) -> HTTPResponse:
        connection = self.sock  # which http.client lets go of when the answer is the last
        response = super().getresponse()
        connection.wire.expect_body(self._max_bytes)
        return response


class _Plain(_Checked, HTTPConnection): ...


class _Secure(_Checked, HTTPSConnection): ...


def connect_to_one(addresses: list[tuple], clock: Clock) -> socket.socket:
    """A connected socket with the clock's time left.

    Addresses (`socket.getaddrinfo`'s entries) are tried in turns of their families, the next one when all before it failed or have
    been silent for a while. Raises `FetchError`: timeout, connection failed."""
    left, next_at = deque(in_turns(addresses)), 0.0
    pending: dict[int, socket.socket] = {}
    poll = select.poll()
    try:
        while left or pending:
            now = time.monotonic()
            if left and (not pending or now >= next_at):
                if (started := _start(left.popleft())) is not None:
                    pending[started.fileno()] = started
                    poll.register(started, select.POLLOUT)
                    next_at = now + NEXT_ADDRESS_SECONDS
                continue
            seconds = min(clock.left(), next_at - now) if left else clock.left()
            for number, _ in poll.poll(math.ceil(1000 * seconds)):
                poll.unregister(number)
                if pending[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    pending[number].settimeout(clock.left())
                    return pending.pop(number)
                pending.pop(number).close()
    finally:
        for other in pending.values():
            other.close()
    raise FetchError("connection failed", transient=True)


def in_turns(addresses: list[tuple]) -> list[tuple]:
    """One of each family after the other, beginning with the first one's: a family without a route costs one wait, not many."""
    families = dict.fromkeys(entry[0] for entry in addresses)
    turns = zip_longest(*([entry for entry in addresses if entry[0] == family] for family in families))
    return [entry for turn in turns for entry in turn if entry is not None]


def _start(entry: tuple) -> socket.socket | None:
    """A socket that is connecting; None: that failed at once."""
    family, kind, protocol, _, address = entry
    connection = None
    try:
        connection = socket.socket(family, kind, protocol)
        connection.setblocking(False)
        connection.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        if connection is not None:
            connection.close()
        return None
    return connection


@contextmanager
def answer_to(url: Url, limits: Limits, clock: Clock) -> Iterator[HTTPResponse]:
    """The answer to a GET: its head is read, its body, as it is sent, is still to be. `FetchError` for what fails, inside too."""
    headers = {
        "User-Agent": limits.user_agent,
        "Accept": "image/*,*/*;q=0.5",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    target, proxy = url.target, proxy_of(url, limits.proxies)
    place = url if proxy is None else proxy
    connection = _Secure(place.host, place.port, ssl_context=_tls()) if url.scheme == "https" else _Plain(place.host, place.port)
    if proxy is None:
        addresses = addresses_of(url, limits, clock)
    else:
        if url.place not in limits.allowed_hosts and not is_public_host(url.host):
            raise FetchError("private address refused")
        addresses = RESOLVER.look_up(proxy.host, proxy.port, clock)
        if url.scheme == "https":
            connection.set_tunnel(url.host.rstrip("."), url.port, headers=proxy.headers)
        else:
            target, headers = f"http://{url.authority}{target}", headers | proxy.headers
    connection.bind(addresses, clock, limits.max_bytes)
    response = None
    with failures_named():
        try:
            connection.request("GET", target, headers=headers, preload_content=False, decode_content=False)
            response = connection.getresponse()
            yield response
        finally:
            if response is not None:
                response.close()
            connection.close()


@dataclass(frozen=True)
class Proxy:
    """Whom requests are sent to instead."""

    host: str
    port: int
    headers: Mapping[str, str]
    """Who we are to it."""


def read_proxy(address: str) -> Proxy:
    """`http://[USER:PASSWORD@]HOST[:PORT]`, `http://` being optional. Otherwise ValueError."""
    parts = urlsplit(address if "://" in address else f"http://{address}")
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("not an http proxy")
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    return Proxy(parts.hostname, parts.port or 80, make_headers(proxy_basic_auth=user))


def proxy_of(url: Url, proxies: Mapping[str, str]) -> Proxy | None:
    """Args: proxies: `Limits.proxies`."""
    address = proxies.get(url.scheme) or proxies.get("all")
    if not address or proxy_bypass_environment(f"{url.host}:{url.port}", proxies):
        return None
    return read_proxy(address)

"""One picture from a stranger's server, within stated bounds of time, bytes, pixels and addresses.

`fetch_image` never raises for what a server does: it returns the picture or a short reason from a closed list (`REASONS` and
picture_headers.REASONS), so that reasons can be counted. Source of the traps closed here: img2dataset reads `file:` URLs, whole
bodies, for ever. What the server calls the body (Content-Type) is not looked at: its bytes decide."""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from data_pipeline.catalogue.hosts import is_public_address
from data_pipeline.download.room import Room, Share
from data_pipeline.pictures.headers import FetchError, Header, read_header, sniff

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (429, 500, 502, 503, 504)
RETRY_PAUSE_SECONDS = 0.5
RESOLVER_THREADS = 32
SAFE_PATH = "/%:;=@!$&'()*+,~"
HEADER_BYTES = 256 << 10
"""Most bytes of an answer before its body; http.client alone would take 6 MB."""
SMALL_BYTES = 512 << 10
"""Bodies up to this size need no room: img2dataset has at most two a thread."""
ROOM_BYTES = 64 << 20
"""What all larger bodies of a process take together, until their pictures are made; others wait, within their time."""
PIECE_BYTES = 64 << 10
REASONS = (
    "timeout",
    "no room for it in time",
    "name not found",
    "private address refused",
    "scheme refused",
    "malformed url",
    "connection failed",
    "tls failed",
    "bad http answer",
    "too many redirects",
    "http STATUS",
    "forbidden by robots directive",
    "encoded body",
    "body shorter than announced",
    "too many bytes",
)
"""Why there is no body."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one fetch. Travels (pickled) into img2dataset's worker processes."""

    timeout: float = 10.0
    """Seconds for everything: names, connections, redirects, retries, the body."""
    max_bytes: int = 32 << 20
    """Most bytes of a body."""
    max_pixels: int = 25_000_000
    """Most pixels by the picture's header, checked before anything is decoded. Decoding takes up to 12 bytes a pixel."""
    retries: int = 1
    """How often a passing failure (connection lost, 429, 5xx) is tried again, within the timeout."""
    allowed_hosts: frozenset[str] = frozenset()
    """host:port that may be fetched from although their address is private."""
    user_agent: str = "Mozilla/5.0 (compatible; sycoca-ds)"
    """Sent with every request; honest about being a robot."""


@functools.cache
def _resolver() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")


@functools.cache
def _room() -> Room:
    return Room(ROOM_BYTES)


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Wire(io.RawIOBase):
    """A socket's bytes with a deadline for all of them together and a cap on their number, first on that of headers."""

    def __init__(self, connection: socket.socket, deadline: float):
        self.connection, self.deadline = connection, deadline
        self.left, self.excess = HEADER_BYTES, "bad http answer"

    def expect_body(self, max_bytes: int) -> None:
        self.left, self.excess = max_bytes, "too many bytes"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.connection.settimeout(_left(self.deadline))
        count = self.connection.recv_into(buffer)
        self.left -= count
        if self.left < 0:
            raise FetchError(self.excess)
        return count


class _Socket:
    """What http.client needs of a socket, reading through `_Wire`."""

    def __init__(self, connection: socket.socket, deadline: float):
        self.connection, self.deadline = connection, deadline
        self.wire = _Wire(connection, deadline)

    def sendall(self, data: bytes) -> None:
        self.connection.settimeout(_left(self.deadline))
        self.connection.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.wire, 1 << 16)

    def close(self) -> None:
        """http.client closes before it reads the body of a last response; `shut` is the real end."""

    def shut(self) -> None:
        self.connection.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise FetchError("timeout")
    return left


def _addresses(host: str, port: int, limits: Limits, deadline: float) -> list[tuple]:
    """Socket addresses of a host that may be connected to. All of them must be public: one private address among public
    ones is how rebinding looks."""
    literal = ":" in host or host.replace(".", "").isdigit()
    try:
        if literal:  # no name to look up, hence nothing to wait for
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        else:
            job = _resolver().submit(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            found = job.result(_left(deadline))
    except FutureTimeout:
        job.cancel()
        raise FetchError("timeout") from None
    except (OSError, UnicodeError):
        raise FetchError("name not found") from None
    if f"{host.lower()}:{port}" not in limits.allowed_hosts and not all(is_public_address(entry[4][0]) for entry in found):
        raise FetchError("private address refused")
    return found


def _connect(url: str, limits: Limits, deadline: float) -> tuple[_Socket, http.client.HTTPConnection, str]:
    """A connection (not yet used) to the checked address itself, as a socket and as HTTP, and the request target."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        host = (parts.hostname or "").encode("idna").decode() if not (parts.hostname or "").isascii() else parts.hostname or ""
    except (ValueError, UnicodeError):
        raise FetchError("malformed url") from None
    if parts.scheme not in ("http", "https"):
        raise FetchError("scheme refused")
    if not host or any(ord(char) < 33 for char in host):
        raise FetchError("malformed url")
    raw = None
    error: Exception = FetchError("connection failed", transient=True)
    for family, kind, protocol, _, address in _addresses(host, port, limits, deadline):
        raw = socket.socket(family, kind, protocol)
        try:
            raw.settimeout(_left(deadline))
            raw.connect(address)
            if parts.scheme == "https":
                raw = _tls().wrap_socket(raw, server_hostname=host)
            break
        except (OSError, FetchError) as failed:
            raw.close()
            raw, error = None, failed
    if raw is None:
        raise error
    connection = _Socket(raw, deadline)
    http_connection = http.client.HTTPConnection(host, port)
    http_connection.sock = connection
    target = quote(parts.path or "/", safe=SAFE_PATH) + (f"?{quote(parts.query, safe=SAFE_PATH + '?')}" if parts.query else "")
    return connection, http_connection, target


class Body:
    """A picture's bytes and what their header says. Holds room until it is closed or forgotten. img2dataset treats it as a stream
    that is only read whole."""

    def __init__(self, data: bytes | bytearray, share: Share):
        self.data, self._share = data, share
        self.header: Header | None = None

    def seek(self, place: int) -> None:
        """For img2dataset, which goes back to the start before it reads."""

    def read(self) -> bytes | bytearray:
        return self.data

    def close(self) -> None:
        self.data = b""
        self._share.give_back()


def fetch_bytes(url: str, limits: Limits, refuses: Callable[[http.client.HTTPMessage], bool] | None = None) -> Body:
    """The body behind a URL; to be closed. Raises FetchError with its reason.

    Args: refuses: given the final response's headers, says whether they forbid the use (robots directives).
    """
    deadline = time.monotonic() + limits.timeout
    for attempt in range(limits.retries + 1):
        try:
            return _follow(url, limits, deadline, refuses)
        except FetchError as error:
            if not error.transient or attempt == limits.retries or deadline - time.monotonic() < 2 * RETRY_PAUSE_SECONDS:
                raise
            time.sleep(RETRY_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _follow(url: str, limits: Limits, deadline: float, refuses: Callable | None) -> Body:
    for _ in range(MAX_REDIRECTS + 1):
        connection = None
        try:
            connection, http_connection, target = _connect(url, limits, deadline)
            http_connection.request(
                "GET",
                target,
                headers={
                    "User-Agent": limits.user_agent,
                    "Accept": "image/*,*/*;q=0.5",
                    "Accept-Encoding": "identity",
                    "Connection": "close",
                },
            )
            response = http_connection.getresponse()
            if response.status in REDIRECTS:
                url = urljoin(url, response.headers.get("Location") or "")
                continue
            if response.status != 200:
                raise FetchError(f"http {response.status}", transient=response.status in TRANSIENT)
            if refuses is not None and refuses(response.headers):
                raise FetchError("forbidden by robots directive")
            if response.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
                raise FetchError("encoded body")
            if response.length is not None and response.length > limits.max_bytes:
                raise FetchError("too many bytes")
            connection.wire.expect_body(limits.max_bytes + HEADER_BYTES)  # chunks are announced between
            return _read_body(response, limits, deadline)
        except http.client.IncompleteRead:
            raise FetchError("body shorter than announced", transient=True) from None
        except TimeoutError:
            raise FetchError("timeout") from None
        except ssl.SSLError:
            raise FetchError("tls failed") from None
        except http.client.HTTPException:
            raise FetchError("bad http answer") from None
        except OSError:
            raise FetchError("connection failed", transient=True) from None
        except (ValueError, UnicodeError):
            raise FetchError("malformed url") from None
        finally:
            if connection is not None:
                connection.shut()
    raise FetchError("too many redirects")


def _read_body(response: http.client.HTTPResponse, limits: Limits, deadline: float) -> Body:
    data, share, announced = bytearray(), Share(_room()), response.length
    try:
        while piece := response.read(PIECE_BYTES):
            data += piece
            if len(data) > limits.max_bytes:
                raise FetchError("too many bytes")
            if not share.taken and len(data) > SMALL_BYTES:
                if sniff(data[:16]) is None:
                    raise FetchError("not an image")
                if not share.take(limits.max_bytes if announced is None else announced, deadline):
                    raise FetchError("no room for it in time")
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
        share.shrink(len(data))
    except BaseException:
        share.give_back()
        raise
    return Body(data, share)


def fetch_image(url: str, limits: Limits, refuses: Callable | None = None) -> tuple[Body | None, str | None]:
    """(body, None) of a picture that may be decoded (pictures.decode), to be closed, or (None, reason)."""
    try:
        body = fetch_bytes(url, limits, refuses)
        try:
            body.header = read_header(body.data, limits.max_pixels)
        except BaseException:
            body.close()
            raise
        return body, None
    except FetchError as error:
        return None, error.reason

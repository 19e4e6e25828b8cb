"""One picture from a stranger's server, within stated bounds of time, bytes, pixels and addresses.

`fetch_image` never raises for what a server does: it returns the bytes or a short reason from a closed list, so that
reasons can be counted. Source of the traps closed here: img2dataset reads `file:` URLs, whole bodies, for ever."""

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

from data_pipeline.hosts import is_public_address

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (429, 500, 502, 503, 504)
RETRY_PAUSE_SECONDS = 0.5
RESOLVER_THREADS = 32
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
SAFE_PATH = "/%:;=@!$&'()*+,~"


class FetchError(Exception):
    """A reason why there is no picture; `transient` ones may be tried again."""

    def __init__(self, reason: str, transient: bool = False):
        super().__init__(reason)
        self.reason, self.transient = reason, transient


@dataclass(frozen=True)
class Limits:
    """Bounds of one fetch. Travels (pickled) into img2dataset's worker processes."""

    timeout: float = 10.0
    """Seconds for everything: names, connections, redirects, retries, the body."""
    max_bytes: int = 32 << 20
    """Most bytes of a body, headers included."""
    max_pixels: int = 50_000_000
    """Most pixels by the picture's header, checked before anything is decoded."""
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
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


class _Wire(io.RawIOBase):
    """A socket's bytes with a deadline for all of them together and a cap on their number."""

    def __init__(self, connection: socket.socket, deadline: float, max_bytes: int):
        self.connection, self.deadline, self.left = connection, deadline, max_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.connection.settimeout(_left(self.deadline))
        count = self.connection.recv_into(buffer)
        self.left -= count
        if self.left < 0:
            raise FetchError("too many bytes")
        return count


class _Socket:
    """What http.client needs of a socket, reading through `_Wire`."""

    def __init__(self, connection: socket.socket, deadline: float, max_bytes: int):
        self.connection, self.deadline = connection, deadline
        self.wire = _Wire(connection, deadline, max_bytes)

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
    connection = _Socket(raw, deadline, limits.max_bytes)
    http_connection = http.client.HTTPConnection(host, port)
    http_connection.sock = connection
    target = quote(parts.path or "/", safe=SAFE_PATH) + (f"?{quote(parts.query, safe=SAFE_PATH + '?')}" if parts.query else "")
    return connection, http_connection, target


def fetch_bytes(url: str, limits: Limits, refuses: Callable[[http.client.HTTPMessage], bool] | None = None) -> bytes:
    """The body behind a URL. Raises FetchError with its reason.

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


def _follow(url: str, limits: Limits, deadline: float, refuses: Callable | None) -> bytes:
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
            return response.read()
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


def check_image(data: bytes, max_pixels: int) -> bytes:
    """The picture's bytes if its header names a known format, an allowed size and its end is there; else FetchError.

    Nothing is decoded, with two exceptions that img2dataset gets wrong: turned pictures (EXIF) are turned and 16-bit
    grey is scaled to 8 bits (it would come out white); both are handed on as PNG.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise FetchError("too many pixels")
            if width < 1 or height < 1:
                raise FetchError("not an image")
            if not _has_end(data, picture.format):
                raise FetchError("truncated image")
            turned = picture.getexif().get(0x0112, 1) in range(2, 9)
            if not turned and not picture.mode.startswith("I;16"):
                return data
            if picture.mode.startswith("I;16"):
                picture = picture.point(lambda value: value / 256).convert("L")
            buffer = io.BytesIO()
            ImageOps.exif_transpose(picture).save(buffer, "PNG", compress_level=1)
            return buffer.getvalue()
    except FetchError:
        raise
    except Image.DecompressionBombError:
        raise FetchError("too many pixels") from None
    except UnidentifiedImageError:
        raise FetchError("not an image") from None
    except Exception:  # a damaged header raises whatever its parser meets
        raise FetchError("damaged image") from None


def _has_end(data: bytes, kind: str | None) -> bool:
    """Whether the end marker is there. A decoder paints the missing part grey and calls it a success."""
    if kind in ("JPEG", "MPO"):
        # Inside the data 0xFF is followed by 0x00, so both markers are real; a thumbnail's lie before the last scan's.
        return data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda") >= 0
    if kind == "PNG":
        return data.rfind(b"IEND") > 0
    if kind == "WEBP":
        return int.from_bytes(data[4:8], "little") + 8 <= len(data) + 1
    return True


def fetch_image(url: str, limits: Limits, refuses: Callable | None = None) -> tuple[bytes | None, str | None]:
    """(bytes, None) of a picture that may be decoded, or (None, reason)."""
    try:
        return check_image(fetch_bytes(url, limits, refuses), limits.max_pixels), None
    except FetchError as error:
        return None, error.reason

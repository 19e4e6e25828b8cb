"""What bounds one fetch, and the names of its failures."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from data_pipeline.pictures.headers import FetchError

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
    """host:port, as URLs spell them, that may be fetched from although their address is private."""
    user_agent: str = "Mozilla/5.0 (compatible; sycoca-ds)"
    """Sent with every request; honest about being a robot."""
    proxies: Mapping[str, str] = field(default_factory=dict)
    """Scheme (or "all") -> http://HOST:PORT that its URLs are asked through; "no" -> hosts asked straight. Behind a proxy no
    address can be checked by us, only hosts that are written as one."""


class Clock:
    """The time of one fetch, for all its parts together."""

    def __init__(self, seconds: float):
        self._spare = seconds
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds, more than none. Raises `FetchError`: timeout."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise FetchError("timeout")
        return left

    @contextmanager
    def stopped(self) -> Iterator[float]:
        """Time inside is not counted. Yields for how long it may be: all in all as long again as was given."""
        start = time.monotonic()
        try:
            yield self._spare
        finally:
            spent = min(self._spare, time.monotonic() - start)
            self._spare -= spent
            self.end += spent

"""One picture from a stranger's server, within stated bounds of time, bytes, pixels and addresses.

`fetch_image` never raises for what a server does: it returns the picture or a short reason from a closed list (`limits.REASONS`
and pictures.headers.REASONS), so that reasons can be counted. Source of the traps closed here: img2dataset reads `file:` URLs,
whole bodies, for ever. What the server calls the body (Content-Type, Content-Encoding) is not believed: its bytes decide."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from urllib3 import HTTPHeaderDict
from urllib3.response import HTTPResponse

from data_pipeline.fetch.body import Body, read_body
from data_pipeline.fetch.connection import answer_to
from data_pipeline.fetch.limits import Clock, Limits
from data_pipeline.fetch.urls import parse_url
from data_pipeline.pictures.headers import FetchError, read_header

MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
WITHOUT_BODY = (204, 205)
TRANSIENT = (429, 500, 502, 503, 504)
RETRY_PAUSE_SECONDS = 0.5
_WHOLE_RANGE = re.compile(r"bytes 0-(\d+)/(\d+)")


def fetch_bytes(url: str, limits: Limits, refuses: Callable[[HTTPHeaderDict], bool] | None = None) -> Body:
    """The body behind a URL; to be closed. Raises FetchError with its reason.

    Args: refuses: given the final response's headers, says whether they forbid the use (robots directives).
    """
    clock = Clock(limits.timeout)
    for attempt in range(limits.retries + 1):
        try:
            return _follow(url, limits, clock, refuses)
        except FetchError as error:
            if not error.transient or attempt == limits.retries or clock.end - time.monotonic() < 2 * RETRY_PAUSE_SECONDS:
                raise
            time.sleep(RETRY_PAUSE_SECONDS)
    raise AssertionError("unreachable")


def _follow(text: str, limits: Limits, clock: Clock, refuses: Callable | None) -> Body:
    url = None
    for _ in range(MAX_REDIRECTS + 1):
        url = parse_url(text, url)
        with answer_to(url, limits, clock) as response:
            if response.status not in REDIRECTS:
                _check(response, refuses)
                return read_body(response, limits, clock)
            where = response.headers.getlist("Location") or [""]
            # http.client has read the bytes as Latin-1; most are UTF-8
            text = re.sub("[\x80-\xff]", lambda found: f"%{ord(found[0]):02X}", where[0])
    raise FetchError("too many redirects")


def _check(response: HTTPResponse, refuses: Callable | None) -> None:
    """Whether the body is the picture: whole, and not forbidden. Every 2xx with a body may be."""
    status = response.status
    if not 200 <= status < 300 or status in WITHOUT_BODY or status == 206 and not _is_whole(response.headers.get("Content-Range")):
        raise FetchError(f"http {status}", transient=status in TRANSIENT)
    if refuses is not None and refuses(response.headers):
        raise FetchError("forbidden by robots directive")


def _is_whole(content_range: str | None) -> bool:
    """Of a 206, for which we did not ask. Without a range the bytes decide."""
    found = _WHOLE_RANGE.fullmatch((content_range or "bytes 0-0/1").strip())
    return found is not None and int(found[1]) + 1 == int(found[2])


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

"""The head of an answer, as strangers' servers write it.

http.client gives a head to email.parser, which takes the first line that is no header for the end of all: what stands behind it is
lost, `Transfer-Encoding: chunked` and refusals included (python/cpython#68551). Browsers leave that line out and read on."""

from __future__ import annotations

import http.client
import re
from collections import deque
from typing import BinaryIO

_INTERIM = re.compile(rb"HTTP/\S+[ \t]+1(?!01)\d\d\b")
_FIELD = re.compile(rb"([!-9;-~]+)[ \t]*:(.*)", re.DOTALL)
USED = frozenset(
    b"connection content-encoding content-length content-range keep-alive location proxy-connection tdm-reservation "
    b"transfer-encoding x-robots-tag".split()
)
"""What http.client, urllib3 and this package read of a head."""


class Head:
    """A file of one head that http.client understands. Interim answers (100, 103) are left out, and fields that nobody asks for:
    http.client takes 100 fields and 64 KiB a line, browsers what `connection.HEADER_BYTES` does. Lines end where browsers end them:
    at LF, CRLF or CR; one that begins with a blank goes on with the line before it."""

    def __init__(self, source: BinaryIO):
        self._source, self._lines = source, deque()

    def readline(self, limit: int = -1) -> bytes:
        """A whole line, longer than `limit` if it is: http.client refuses those."""
        if not self._lines:
            self._lines.extend(self._read())
        return self._lines.popleft()

    def close(self) -> None:
        self._source.close()

    def _read(self) -> list[bytes]:
        status = b"\n"
        while status in (b"\r\n", b"\n") or _INTERIM.match(status):
            if _INTERIM.match(status):
                _fields(self._source)
            status = self._source.readline()
        fields = [(name, values) for name, values in _fields(self._source) if name.lower() in USED]
        return [status, *(name + b": " + b" ".join(values) + b"\r\n" for name, values in fields), b"\r\n"]


def _fields(source: BinaryIO) -> list[tuple[bytes, list[bytes]]]:
    """Names and the lines of their values, up to an empty line or the end."""
    fields, broken = [], True
    while (line := source.readline()) not in (b"\r\n", b"\n", b""):
        for piece in line.splitlines():
            if piece[:1] in (b" ", b"\t"):
                if not broken:
                    fields[-1][1].append(_value(piece))
            elif found := _FIELD.fullmatch(piece):
                fields.append((found[1], [_value(found[2])]))
                broken = False
            elif piece:
                broken = True
    return fields


def _value(text: bytes) -> bytes:
    return text.replace(b"\0", b" ").strip(b" \t")


class Answer(http.client.HTTPResponse):
    """http.client's response behind such a head."""

    def begin(self) -> None:
        if self.headers is not None:
            return
        source, self.fp = self.fp, Head(self.fp)
        try:
            super().begin()
        finally:
            self.fp = None if source.closed else source
        codings = ",".join(self.headers.get_all("Transfer-Encoding", [])).lower().split(",")
        if not self.chunked and "chunked" in map(str.strip, codings):  # http.client takes only that word alone
            self.chunked, self.chunk_left, self.length = True, None, None

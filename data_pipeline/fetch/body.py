"""The body of an answer, in bounded memory, out of the codings that its bytes are really in."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterator
from itertools import chain

from urllib3.response import HTTPResponse

from data_pipeline.fetch.limits import Clock, Limits
from data_pipeline.fetch.room import Room, Share
from data_pipeline.pictures.headers import FetchError, Header, sniff

SMALL_BYTES = 512 << 10
"""Bodies up to this size need no room: img2dataset has at most two a thread."""
ROOM_BYTES = 64 << 20
"""What all larger bodies of a process take together, until their pictures are made; others wait, within their time."""
PIECE_BYTES = 64 << 10
MOST_LAYERS = 2
"""Of compression, one in the other."""
GZIP, ZLIB, BARE = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS, -zlib.MAX_WBITS
GZIP_START = b"\x1f\x8b\x08"
MOST_MEMBERS = 1000
"""Of a gzip; empty ones would cost time without end."""
_CHECKSUM = re.compile("incorrect (data|length) check")
UNREADABLE = frozenset(("br", "zstd", "compress", "x-compress", "dcb", "dcz", "exi", "pack200-gzip"))


@functools.cache
def _room() -> Room:
    return Room(ROOM_BYTES)


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


def read_body(response: HTTPResponse, limits: Limits, clock: Clock) -> Body:
    """Raises `FetchError`, and what urllib3 raises."""
    announced = response.length_remaining
    if announced is not None and announced > limits.max_bytes:
        raise FetchError("too many bytes")
    sent = iter(functools.partial(response.read, PIECE_BYTES), b"")
    codings = {word.strip() for word in response.headers.get("Content-Encoding", "").lower().split(",")}
    data, share = bytearray(), Share(_room())
    try:
        pieces, packed = _unpacked(sent, codings)
        for piece in pieces:
            data += piece
            if len(data) > limits.max_bytes:
                raise FetchError("too many bytes")
            if not share.taken and len(data) > SMALL_BYTES:
                if sniff(data[:16]) is None:
                    raise FetchError("not an image")
                if not share.take(limits.max_bytes if packed or announced is None else announced, clock.end):
                    raise FetchError("no room for it in time")
        share.shrink(len(data))
    except BaseException:
        share.give_back()
        raise
    return Body(data, share)


def _unpacked(pieces: Iterator[bytes], codings: set[str]) -> tuple[Iterator[bytes], bool]:
    """(the pieces of what is in them, whether they were packed at all). The label is asked only where the bytes do not say: servers
    write `gzip` over a bare JPEG, and words that name no coding (`aws-chunked`, `UTF-8`)."""
    for layer in range(MOST_LAYERS + 1):
        first = next(pieces, b"")
        pieces = chain((first,), pieces)
        window = _window(first, codings)
        if window is None:
            return pieces, layer > 0
        pieces, codings = _inflated(pieces, window), set()
    raise FetchError("encoded body")


def _window(start: bytes, codings: set[str]) -> int | None:
    """zlib's number for the packing that begins so; None: there is none. Raises `FetchError`: encoded body (of another kind)."""
    if not start or sniff(start[:16]) is not None:
        return None
    if start.startswith(b"\x1f\x8b"):
        return GZIP
    if "deflate" in codings:  # by the RFC zlib's format; old servers send the bare stream
        return ZLIB if start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0 else BARE
    if codings & UNREADABLE:
        raise FetchError("encoded body")
    return None


def _inflated(pieces: Iterator[bytes], window: int) -> Iterator[bytes]:
    """Never more than a piece at once, however much it is that a few bytes unpack to. Ends where the packing says, with the last of
    gzip's members (RFC 1952, 2.2). Whether all is there is the picture's to say: of a checksum that is wrong or missing browsers
    take no notice either."""
    engine, members, made, rest = zlib.decompressobj(window), 1, False, b""
    for piece in pieces:
        rest += piece
        while rest:
            if engine.eof:
                if window != GZIP or members == MOST_MEMBERS or not GZIP_START.startswith(rest[: len(GZIP_START)]):
                    return
                if len(rest) < len(GZIP_START):
                    break
                engine, members = zlib.decompressobj(window), members + 1
            before = engine.copy()
            try:
                part = engine.decompress(rest, PIECE_BYTES)
            except zlib.error as error:
                if members == 1 and not _CHECKSUM.search(str(error)):
                    raise FetchError("encoded body") from None
                yield _made_before_error(before, rest)
                return
            made = made or bool(part)
            yield part
            rest = engine.unused_data if engine.eof else engine.unconsumed_tail
    if not engine.eof:
        part = engine.flush()
        if not made and not part:
            raise FetchError("encoded body")
        yield part


def _made_before_error(engine, data: bytes) -> bytes:
    """What `data` unpacks to before the byte that zlib refuses: with an error it returns nothing of the same call."""
    made = bytearray()
    for place in range(len(data)):
        try:
            made += engine.decompress(data[place : place + 1])
        except zlib.error:
            break
    return bytes(made)

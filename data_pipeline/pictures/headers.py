"""What a picture's bytes say about it, read without its decoder.

Decoders' own readers unpack texts, colour profiles and lists of EXIF tags on the way to the size: OpenCV makes 6 GB of a PNG of
6 MB that holds compressed texts, Pillow 65 MB of one of 64 kB, in every download thread at once."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

MAX_SCANS = 64
"""Most scans of a JPEG. Encoders write 10 to 20; each costs a pass over the whole picture."""
MAX_SIDE = 65_500
"""Longest side that a JPEG, as which all pictures are stored, can have in libjpeg."""
MAX_PIECES = 1 << 16
"""Most segments, chunks or blocks that are looked at, so that a body of millions of empty ones costs no seconds."""
MAX_EXIF_BYTES = 1 << 16
ORIENTATION = 0x0112
APART = ("BMP", "TIFF", "AVIF", "JPEG2000")
"""Rare kinds, whose headers promise nothing about what their decoders take: decoded by `decode_apart` only."""
REASONS = (
    "not an image",
    "unsupported format",
    "unsupported pixel format",
    "damaged image",
    "truncated image",
    "too many pixels",
    "too many scans",
    "image too small",
    "needs too much memory",
    "decoder took too long",
    "decoder does not start",
)
"""Why a body gives no picture."""
PASSING = ("needs too much memory", "decoder took too long", "decoder does not start")
"""Of these what a loaded machine says, not the body: another time there may be a picture."""
PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")

_JPEG_MARK = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within a scan's data 0xFF is followed by 0 or a restart mark, so all others are real."""
_JPEG_FRAMES = {0xC0 + number for number in range(16)} - {0xC4, 0xC8, 0xCC}


class FetchError(Exception):
    """A reason why there is no picture; `transient` ones may be tried again."""

    def __init__(self, reason: str, transient: bool = False):
        super().__init__(reason)
        self.reason, self.transient = reason, transient


@dataclass(frozen=True)
class Header:
    """What a picture's bytes say about it."""

    kind: str
    """JPEG, PNG, WEBP, GIF or one of `APART`."""
    width: int = 0
    """Pixels as stored, before it is turned; 0: only its decoder knows (`APART`)."""
    height: int = 0
    orientation: int = 1
    """EXIF's 1 to 8: how the stored picture is to be turned."""
    grey: bool = False
    """A JPEG with one component."""


def sniff(start: bytes | bytearray) -> str | None:
    """The kind of picture that begins with these (16 or more) bytes; None: none that we take."""
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "WEBP"
    if start.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1", b"msf1"):
        return "AVIF"
    if start.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return "JPEG2000"
    return "BMP" if start.startswith(b"BM") else None


def read_header(data: bytes | bytearray, max_pixels: int) -> Header:
    """Raises `FetchError` with one of `REASONS`. That it does not means: size within `max_pixels`, end mark there; nothing about
    the data between."""
    kind = sniff(data[:16])
    if kind is None:
        raise FetchError("not an image")
    if kind in APART:
        return Header(kind)
    try:
        header = {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif}[kind](data)
    except (struct.error, IndexError):
        raise FetchError("truncated image") from None
    check_size(header.width, header.height, max_pixels)
    return header


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises `FetchError`: too many pixels, damaged image (none)."""
    if width < 1 or height < 1:
        raise FetchError("damaged image")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise FetchError("too many pixels")


def _jpeg(data: bytes | bytearray) -> Header:
    place, frame, scans, orientation = 2, None, 0, 1
    for _ in range(MAX_PIECES):
        found = _JPEG_MARK.search(data, place)
        if found is None:
            raise FetchError("truncated image")
        mark, place = data[found.end() - 1], found.end()
        if mark == 0xD9:
            break
        if mark in (0x01, 0xD8):
            continue
        length = int.from_bytes(data[place : place + 2], "big")
        if length < 2:
            raise FetchError("damaged image")
        if mark in _JPEG_FRAMES:
            if frame is not None:
                raise FetchError("damaged image")
            frame = struct.unpack_from(">BHHB", data, place + 2)
        elif mark == 0xDA:
            scans += 1
        elif mark == 0xE1 and orientation == 1 and data[place + 2 : place + 8] == b"Exif\0\0":
            orientation = exif_orientation(data[place + 8 : place + length])
        place += length
    else:
        raise FetchError("damaged image")
    if frame is None or not scans:
        raise FetchError("damaged image")
    if scans > MAX_SCANS:
        raise FetchError("too many scans")
    bits, height, width, components = frame
    if bits != 8:
        raise FetchError("unsupported pixel format")
    return Header("JPEG", width, height, orientation, components == 1)


def exif_orientation(exif: bytes | bytearray) -> int:
    """EXIF's orientation, 1 where there is none that makes sense."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(exif[:2]))
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for number in range(count):
            tag, short = struct.unpack_from(f"{order}H6xH", exif, start + 2 + 12 * number)
            if tag == ORIENTATION:
                return short if 1 <= short <= 8 else 1
    except struct.error:
        pass
    return 1


def _chunks(data: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """(kind, first byte, byte behind the last) of a PNG's chunks, to its end mark."""
    place = 8
    for _ in range(MAX_PIECES):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if kind == b"IEND":
            yield kind, place, end
            return
        if end > len(data):
            raise FetchError("truncated image")
        yield kind, place, end
        place = end
    raise FetchError("damaged image")


def _png(data: bytes | bytearray) -> Header:
    orientation, headers = 1, 0
    if data[12:16] != b"IHDR":
        raise FetchError("damaged image")
    for kind, start, end in _chunks(data):
        headers += kind == b"IHDR"
        if kind == b"eXIf":
            orientation = exif_orientation(data[start + 8 : min(end - 4, start + MAX_EXIF_BYTES)])
    if headers != 1:
        raise FetchError("damaged image")
    return Header("PNG", *struct.unpack_from(">II", data, 16), orientation)


def bare_png(data: bytes | bytearray) -> bytes:
    """A PNG without what is not needed for its (first) picture: texts, profiles, further frames."""
    whole = memoryview(data)
    pieces = [whole[start:end] for kind, start, end in _chunks(data) if kind in PNG_NEEDED]
    return b"".join([whole[:8], *pieces])


def _webp(data: bytes | bytearray) -> Header:
    if int.from_bytes(data[4:8], "little") + 8 > len(data) + 1:
        raise FetchError("truncated image")
    kind = bytes(data[12:16])
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        return Header("WEBP", (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    if kind != b"VP8X":
        raise FetchError("damaged image")
    width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
    orientation, place = 1, 30
    for _ in range(MAX_PIECES):
        if place + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, place)
        if kind == b"EXIF":
            exif = data[place + 8 : place + 8 + min(length, MAX_EXIF_BYTES)]
            orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        place += 8 + length + length % 2
    return Header("WEBP", width, height, orientation)


def _gif(data: bytes | bytearray) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    place = 13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    pieces = 0
    while pieces < MAX_PIECES:
        pieces += 1
        kind = data[place]
        if kind == 0x2C:
            left, top, own_width, own_height = struct.unpack_from("<4H", data, place + 1)
            # A frame may be larger than its screen; decoders then make the screen larger.
            return Header("GIF", max(width, left + own_width), max(height, top + own_height))
        if kind != 0x21:
            break
        place += 2
        while data[place] and pieces < MAX_PIECES:
            place += 1 + data[place]
            pieces += 1
        place += 1
    raise FetchError("damaged image")


def check_image(data: bytes | bytearray, max_pixels: int) -> Header:
    """What the picture's header says, if it names a common format and an allowed size and the picture's end is there; else
    FetchError. Nothing is decoded."""
    header = read_header(data, max_pixels)
    if header.kind in APART:
        raise FetchError("unsupported format")
    return header

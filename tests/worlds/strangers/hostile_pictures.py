"""Pictures that a decoder gets wrong, or that cost far more memory or time than their bytes say. All are made here, none is kept.

`scene` is what the awkward but good ones show; `shown` is what must come out for them."""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image


def scene(width: int = 96, height: int = 64) -> np.ndarray:
    """(H, W, 3) uint8, RGB, smooth, so that JPEG keeps it, and unlike itself when turned, mirrored or with channels exchanged."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    x, y = x / (width - 1), y / (height - 1)
    return np.rint(np.stack([40 + 200 * x, 230 - 190 * y, 60 + 150 * x * y], -1)).astype(np.uint8)


def grey_scene(width: int = 96, height: int = 64) -> np.ndarray:
    return scene(width, height)[..., 0]


def alpha_scene(width: int = 96, height: int = 64) -> np.ndarray:
    """(H, W) uint8 opacity: from nothing above to all below."""
    return np.repeat(np.linspace(0, 255, height).astype(np.uint8)[:, None], width, 1)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """What a picture with opacity shows before white."""
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def encoded(picture: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(buffer, kind, **options)
    return buffer.getvalue()


def by_cv2(suffix: str, picture: np.ndarray, *flags: int) -> bytes:
    """Encodes BGR(A); for the depths that Pillow cannot write."""
    return cv2.imencode(suffix, picture, list(flags))[1].tobytes()


def exif(orientation: int) -> bytes:
    record = Image.Exif()
    record[0x0112] = orientation
    return record.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of filtered rows, with chunks before and after its data."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows, 1)) + after + chunk(b"IEND", b"")


def png16(channels: np.ndarray) -> bytes:
    """A PNG with 16 bits a channel: (H, W, 1 to 4) uint16, as grey, grey with opacity, RGB, RGBA."""
    height, width, count = channels.shape
    rows = np.zeros((height, 1 + width * count * 2), np.uint8)
    rows[:, 1:] = channels.astype(">u2").reshape(height, -1).view(np.uint8)
    return png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], rows.tobytes())


def ycck_jpeg(cmyk: np.ndarray) -> bytes:
    """As Photoshop writes CMYK: YCC of the three colours, black inverted, Adobe's mark with transform 2 (YCCK)."""
    ycc = np.asarray(Image.fromarray(cmyk[..., :3], "RGB").convert("YCbCr"))
    stored = np.concatenate([ycc, 255 - cmyk[..., 3:]], -1)
    # Pillow writes four components as they are, inverted; then the mark is changed from "plain" to YCCK.
    data = encoded(Image.frombytes("CMYK", cmyk.shape[1::-1], (255 - stored).tobytes()), "JPEG", quality=97)
    place = data.index(b"Adobe")
    assert data[place + 11] == 0
    return data[: place + 11] + b"\x02" + data[place + 12 :]


# --- Refused -----------------------------------------------------------------------------------------------------------


def wide_jpeg() -> bytes:
    """A JPEG of 64 x 64 whose header says 65,500 x 65,500."""
    data = encoded(scene(64, 64), "JPEG")
    place = data.index(b"\xff\xc0")
    return data[: place + 5] + struct.pack(">HH", 65500, 65500) + data[place + 9 :]


@functools.cache
def many_scans_jpeg(scans: int = 500, side: int = 1600) -> bytes:
    """A progressive JPEG that ends in hundreds of scans that refine nothing: each makes the decoder walk the whole picture."""
    data = encoded(scene(side, side), "JPEG", progressive=True, quality=50)
    # A complete second scan (of one component, AC) taken out of the picture and repeated.
    marks = [place for place in range(len(data) - 1) if data[place : place + 2] == b"\xff\xda"]
    length = struct.unpack(">H", data[marks[-1] + 2 : marks[-1] + 4])[0]
    return data[:-2] + data[marks[-1] : marks[-1] + 2 + length] * scans + b"\xff\xd9"


@functools.cache
def wide_gif() -> bytes:
    """A GIF whose screen is 10 x 10 and whose only frame is 30,000 x 30,000."""
    return b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0x80, 0, 0) + bytes(6) + _gif_frame(30000, 30000) + b";"


def _gif_frame(width: int, height: int) -> bytes:
    # One clear code and the end; the decoder has made room before it meets them.
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x02\x4c\x01\x00"


@functools.cache
def many_frames_gif(frames: int = 20000) -> bytes:
    one = encoded(Image.new("P", (64, 64), 1), "GIF")
    start = one.index(b",")
    return one[:start] + one[start:-1] * frames + b";"


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"WEBP" + b"".join(kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def lying_webp() -> bytes:
    """A WebP whose canvas is 16 x 16 and whose picture is 96 x 64."""
    inner = encoded(scene(), "WEBP", lossless=True)
    return riff((b"VP8X", bytes([0, 0, 0, 0]) + _three(15) + _three(15)), (b"VP8L", inner[20:]))


def wide_webp() -> bytes:
    """A WebP whose canvas is 16,000 x 16,000 round a picture of 96 x 64."""
    inner = encoded(scene(), "WEBP", lossless=True)
    return riff((b"VP8X", bytes([0, 0, 0, 0]) + _three(15999) + _three(15999)), (b"VP8L", inner[20:]))


def lossless_webp_bomb() -> bytes:
    """256 million pixels of one colour."""
    return bytes.fromhex("524946461e000000574542505650384c110000002f7ffe9f0f07508a2ad4a3ff8188e87f0000")


def packed_zeros(size: int) -> bytes:
    """What `zlib.decompress` makes so many zeros of, in a thousandth of the time that packing them takes: a MiB again and again."""
    packer = zlib.compressobj(9, wbits=-15)
    again = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.compress(bytes(size % (1 << 20))) + packer.flush()
    adler = (size % 65521) << 16 | 1
    return b"\x78\xda" + again * (size >> 20) + last + adler.to_bytes(4, "big")


@functools.cache
def text_bomb_png(chunks: int = 200, size: int = 4 << 20) -> bytes:
    """A PNG of 32 x 32 with compressed text: hundreds of MB from under one."""
    packed = zlib.compress(b"a" * size, 9)
    text = b"".join(chunk(b"zTXt", b"key%d\0\0" % number + packed) for number in range(chunks))
    rows = b"".join(b"\0" + row.tobytes() for row in scene(32, 32))
    return png(32, 32, 8, 2, rows, before=text)


@functools.cache
def profile_bomb_png(size: int = 256 << 20) -> bytes:
    """A PNG of 32 x 32 whose colour profile is 256 MB of zeros."""
    rows = b"".join(b"\0" + row.tobytes() for row in scene(32, 32))
    return png(32, 32, 8, 2, rows, before=chunk(b"iCCP", b"x\0\0" + packed_zeros(size)))


@functools.cache
def long_data_png(size: int = 256 << 20) -> bytes:
    """A PNG of 32 x 32 whose data goes on for 256 MB of zeros behind its last row."""
    rows = b"".join(b"\0" + row.tobytes() for row in scene(32, 32))
    return png(32, 32, 8, 2, rows + bytes(size))


@functools.cache
def many_frames_png(frames: int = 3000) -> bytes:
    """An APNG of 3,000 frames."""
    rows = b"".join(b"\0" + row.tobytes() for row in scene(32, 32))
    data = zlib.compress(rows)
    control = struct.pack(">IIIIHHBB", 32, 32, 0, 0, 1, 100, 0, 0)
    later = b"".join(
        chunk(b"fcTL", struct.pack(">I", 2 * number + 1) + control) + chunk(b"fdAT", struct.pack(">I", 2 * number + 2) + data)
        for number in range(frames - 1)
    )
    first = chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", struct.pack(">I", 0) + control)
    return png(32, 32, 8, 2, rows, before=first, after=later)


def directory(entries: list[tuple[int, int, int, int]]) -> bytes:
    """A little-endian TIFF directory of (tag, type, count, value) at offset 8."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def exif_bomb_jpeg(entries: int = 10000) -> bytes:
    """A JPEG whose EXIF lists thousands of values that all lie in the same 120 kB: over a GB if each is read."""
    size = 8 + 2 + 12 * entries + 4
    tags = directory([(300 + number, 7, size - 9, 0) for number in range(entries)])
    segments = b""
    for start in range(0, len(tags), 60000):
        part = b"Exif\0\0" + tags[start : start + 60000]
        segments += b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
    data = encoded(scene(), "JPEG")
    return data[:2] + segments + data[20:]


def wide_tiff(side: int = 40000) -> bytes:
    """A one-bit TIFF of 1.6 billion pixels in one strip that is not there."""
    return directory(
        [
            (256, 4, 1, side),
            (257, 4, 1, side),
            (258, 3, 1, 1),
            (259, 3, 1, 1),
            (262, 3, 1, 1),
            (273, 4, 1, 200),
            (277, 3, 1, 1),
            (278, 4, 1, side),
            (279, 4, 1, 100),
        ]
    ) + bytes(400)


@functools.cache
def tile_bomb_tiff(side: int = 28000) -> bytes:
    """A TIFF of 64 x 64 whose one tile is 28,000 x 28,000: 784 MB of zeros in under one."""
    packed = packed_zeros(side * side)
    fields = [
        (256, 4, 1, 64),
        (257, 4, 1, 64),
        (258, 3, 1, 8),
        (259, 3, 1, 8),
        (262, 3, 1, 1),
        (277, 3, 1, 1),
        (322, 4, 1, side),
        (323, 4, 1, side),
        (324, 4, 1, 512),
        (325, 4, 1, len(packed)),
    ]
    return directory(fields).ljust(512, b"\0") + packed


def lying_avif() -> bytes:
    """An AVIF of one colour whose container says 100 x 100 and whose picture is 16,000 x 16,000; encoding that takes ten seconds,
    so it is kept."""
    packed = (
        "eNpjYGBQSCupLEgsy0xjAAIQnZuZZpibmZjm62joBBR6nZtaksgAAYoZKTlFUDZDQWZyCQMa4CvILMkFsxiBWC4zJz8ZxHEB8RkhoozCDAw8fE"
        "C2RmZmXhpcrRSQk8oE5SWWGRg65+fkg+3KyiwoKgDS3pkFyflAWiSzuCAVal8KFAsUZFZkggSYOTg4gBRPYpmhc6M8D0hIODk/pygvOacCaDIv"
        "A1sDUEg8syAX5iegw1gYmZpZgJrEclMSS4QYuLjlv9fV//y7iEmKl8Poj7iAmvLhQ+9eLpuVmJzAwBB7/pTm8SniofeVnbuq+j4F73h1/X2qwF"
        "OJE5bX1cuPMrrU6cyNWvfCtOLVvYu5YfySF/caxl0K8f78/MmUFxfLzb9MDo8XKD6woelK4TtnJZ6Ox31zA7+0Pndf1HbAK+VJ6r6E+POnXKId"
        "qrUL7wYqFuzQkaqpkXep8uDO0VhYvzzzwp/ItIMvFUWsjxtIzfVWfTTx5jRF3bW79qkfkXhdHGX46lLxVXHPf7alB85Enm765fRm9rLs3frhbz"
        "I4+bkPHb28Qvqc46oDNLcglmQLLrZK/+ufemXtd/FjMyeVF1gzhXsxyi7m/Rb79ORz9UBbwSChjrmvtW38A4/tY1o+9ANoNAZGY2A0BkZjYDQG"
        "RmNgNAZGY4D8GAinkfs3DD2DaRPQAgCNZ+d0"
    )
    return zlib.decompress(base64.b64decode(packed))


# --- Within every limit, and as costly as that allows: 25 million pixels ------------------------------------------------

LARGE = 5000


@functools.cache
def _large() -> np.ndarray:
    return scene(LARGE, LARGE)


@functools.cache
def large(kind: str) -> bytes:
    """A picture of 5,000 x 5,000, one of `LARGE_KINDS`."""
    rgb = _large()
    if kind == "baseline":
        return encoded(rgb, "JPEG", quality=90)
    if kind == "progressive":
        return encoded(rgb, "JPEG", quality=90, progressive=True, subsampling=0)
    if kind == "cmyk":
        return encoded(Image.fromarray(rgb).convert("CMYK"), "JPEG", quality=95, progressive=True)
    if kind == "turned":
        return encoded(rgb, "JPEG", quality=90, exif=exif(6))
    if kind in ("tif", "avif"):
        return encoded(rgb, "TIFF", compression="tiff_adobe_deflate") if kind == "tif" else encoded(rgb, "AVIF", speed=10)
    if kind == "gif":
        return encoded(Image.fromarray(rgb).quantize(256, Image.Quantize.FASTOCTREE), "GIF")
    if kind == "grey16.png":
        return by_cv2(".png", rgb[..., 0].astype(np.uint16) * 257, cv2.IMWRITE_PNG_COMPRESSION, 1)
    rgba = np.concatenate([rgb, alpha_scene(LARGE, LARGE)[..., None]], -1)
    if kind == "rgba.png":
        return encoded(rgba, "PNG", compress_level=1)
    if kind == "rgba16.png":
        return by_cv2(".png", rgba[..., [2, 1, 0, 3]].astype(np.uint16) * 257, cv2.IMWRITE_PNG_COMPRESSION, 1)
    if kind == "alpha.webp":
        return encoded(rgba, "WEBP", lossless=True, quality=0, method=0)
    if kind == "animated.webp":
        later = [Image.new("RGBA", (LARGE, LARGE), (9, 9, 9, 255))]
        return encoded(rgba, "WEBP", lossless=True, quality=0, method=0, save_all=True, append_images=later)
    raise ValueError(kind)


LARGE_KINDS = (
    "baseline",
    "progressive",
    "cmyk",
    "turned",
    "gif",
    "grey16.png",
    "rgba.png",
    "rgba16.png",
    "alpha.webp",
    "animated.webp",
    "tif",
    "avif",
)


def shown_small(kind: str, side: int) -> np.ndarray:
    """What `large(kind)` shows, reduced to `side`."""
    rgb = _large()
    if kind == "gif":
        rgb = np.asarray(Image.open(io.BytesIO(large(kind))).convert("RGB"))
    small = cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA)
    if kind == "turned":
        return np.ascontiguousarray(small[::-1].transpose(1, 0, 2))
    if kind == "grey16.png":
        return np.repeat(small[..., :1], 3, -1)
    if kind in ("rgba.png", "rgba16.png", "alpha.webp", "animated.webp"):
        return on_white(small, cv2.resize(alpha_scene(LARGE, LARGE), (side, side), interpolation=cv2.INTER_AREA))
    return small

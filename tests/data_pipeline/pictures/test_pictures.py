"""Strangers' pictures to stored JPEGs: what they look like, what is refused, what it costs."""

import io
import os
import signal
import struct
import time
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data_pipeline.pictures import decode_apart as apart
from data_pipeline.pictures.decoding import as_shown, decode, turn
from data_pipeline.pictures.flatten import on_white
from data_pipeline.pictures.headers import APART, MAX_SCANS, REASONS, FetchError, check_image, read_header, sniff
from data_pipeline.pictures.maker import PictureMaker
from data_pipeline.world.server import bomb_png
from tests.worlds.processes.watching import memory
from tests.worlds.strangers import hostile_pictures as made
from tests.worlds.strangers.awkward_pictures import awkward, turned

pytestmark = pytest.mark.timeout(120)

MOST_PIXELS = made.LARGE**2
MAKE = PictureMaker(image_size=64, min_image_size=16, quality=95, max_pixels=MOST_PIXELS)


def reason(data: bytes, make: PictureMaker = MAKE) -> str | None:
    try:
        make(data, read_header(data, make.max_pixels))
    except FetchError as error:
        return error.reason
    return None


@pytest.mark.parametrize("name", awkward())
def test_awkward_pictures_look_as_they_should(name):
    data, shown = awkward()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stored = MAKE(data, read_header(data, MOST_PIXELS))
    picture = np.asarray(Image.open(io.BytesIO(stored.jpeg)).convert("RGB"), np.float64)
    assert picture.shape == shown.shape
    assert np.abs(picture - shown).mean() < 2
    assert (stored.height, stored.width) == (stored.original_height, stored.original_width) == shown.shape[:2]


BY_DAY = ("progressive", "rgba16.png", "animated.webp")
"""The costliest of each decoder; the others arrive every day, too, in the hostile download, where memory is bounded as well."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in BY_DAY else pytest.mark.full) for kind in made.LARGE_KINDS]
)
def test_the_largest_pictures_look_as_they_should_and_take_bounded_memory(kind):
    data, shown = made.large(kind), made.shown_small(kind, 64)
    reset_peak()
    before = memory(os.getpid())[0]
    stored = MAKE(data, read_header(data, MOST_PIXELS))
    assert memory(os.getpid())[1] - before < 330
    picture = np.asarray(Image.open(io.BytesIO(stored.jpeg)).convert("RGB"), np.float64)
    assert np.abs(picture - shown).mean() < 2
    assert (stored.original_width, stored.original_height) == (made.LARGE, made.LARGE)


def reset_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (bomb_png, "too many pixels"),
        (made.wide_jpeg, "too many pixels"),
        (made.wide_gif, "too many pixels"),
        (made.wide_webp, "too many pixels"),
        (made.lossless_webp_bomb, "too many pixels"),
        (made.wide_tiff, "too many pixels"),
        (made.many_scans_jpeg, "too many scans"),
        (made.lying_webp, "damaged image"),
        (made.tile_bomb_tiff, "damaged image"),
        (made.lying_avif, "damaged image"),
        (lambda: made.encoded(made.grey_scene().astype(np.float32), "TIFF"), "unsupported pixel format"),
        (lambda: made.encoded(made.grey_scene().astype(np.int32), "TIFF"), "unsupported pixel format"),
        (
            lambda: made.encoded(made.scene(), "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
            "unsupported pixel format",
        ),
        (lambda: made.encoded(made.scene(60, 8), "PNG"), "image too small"),
        (lambda: made.encoded(made.scene(16, 16)[:, :1].repeat(70_000, 1), "PNG"), "too many pixels"),
        (lambda: made.encoded(made.scene(), "ICO"), "not an image"),
        (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (lambda: b"\xff\xd8\xff" + b"\xff\xfe\0\2" * 100_000, "damaged image"),
        (lambda: made.encoded(made.scene(), "JPEG")[:-2] + made.encoded(made.scene(), "JPEG")[2:], "damaged image"),
        (
            lambda: made.png(32, 32, 8, 2, b"", before=made.chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))),
            "damaged image",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_refused(make, expected):
    data = make()
    reset_peak()
    before, start = memory(os.getpid())[0], time.monotonic()
    assert reason(data) == expected
    assert memory(os.getpid())[1] - before < 32
    assert time.monotonic() - start < 5
    assert expected in REASONS


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", *APART])
def test_cut_pictures_are_refused(kind):
    picture = Image.effect_noise((64, 48), 90)
    data = made.encoded(picture if kind == "GIF" else picture.convert("RGB"), kind)
    assert sniff(data[:16]) == kind and reason(data) is None
    for cut in (len(data) - 20, len(data) // 2, len(data) // 8, 20):
        assert reason(data[:cut]) in ("truncated image", "damaged image")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_size_is_checked_before_decoding(kind):
    data = made.encoded(Image.fromarray(made.scene()), kind)
    header = check_image(data, 96 * 64)
    assert (header.kind, header.width, header.height, header.orientation) == (kind, 96, 64, 1)
    with pytest.raises(FetchError, match="too many pixels"):
        check_image(data, 96 * 64 - 1)


@pytest.mark.parametrize("kind", APART)
def test_rare_kinds_are_not_for_whom_decodes_in_its_own_process(kind):
    with pytest.raises(FetchError, match="unsupported format"):
        check_image(made.encoded(made.scene(), kind), MOST_PIXELS)


def test_thumbnail_does_not_hide_a_cut():
    """A JPEG whose EXIF holds a whole little JPEG, cut after it: the little one's end mark is not the picture's."""
    thumbnail = made.encoded(made.scene(8, 8), "JPEG")
    whole = made.encoded(made.scene(), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Thumb\0" + thumbnail
    with_thumbnail = whole[:2] + segment + whole[2:]
    assert check_image(with_thumbnail, 10_000).width == 96
    with pytest.raises(FetchError, match="truncated image"):
        check_image(with_thumbnail[:-100], 10_000)


def test_common_numbers_of_scans_pass():
    for scans in (0, MAX_SCANS - 10):
        assert reason(made.many_scans_jpeg(scans, 64)) is None
    assert reason(made.many_scans_jpeg(MAX_SCANS, 64)) == "too many scans"


def test_ordinary_pictures_come_out_as_img2dataset_makes_them(monkeypatch):
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")
    from img2dataset.resizer import Resizer

    theirs = Resizer(64, "keep_ratio", True, min_image_size=16)
    random = np.random.default_rng(0)
    for number in range(80):
        height, width = random.integers(8, 256, 2)  # beyond 4 times 64 ours is reduced while it is decoded
        picture = cv2.resize(random.integers(0, 256, (9, 9, 4), np.uint8), (int(width), int(height)))
        data = made.by_cv2((".jpg", ".png", ".webp")[number % 3], picture[..., : 3 + number % 2] if number % 5 else picture[..., 0])
        expected = theirs(io.BytesIO(data))
        if min(height, width) < 16:
            assert expected[5] == reason(data) == "image too small"
            continue
        stored = MAKE(data, read_header(data, MOST_PIXELS))
        numbers = stored.width, stored.height, stored.original_width, stored.original_height
        assert (stored.jpeg, *numbers) == expected[:5]


def natural(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 with the spectrum of photographs: amplitudes fall as one over the frequency."""
    random = np.random.default_rng(height)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf

    def waves() -> np.ndarray:
        return (random.normal(size=frequency.shape) + 1j * random.normal(size=frequency.shape)) / frequency

    common = waves()
    channels = [np.fft.irfft2(common + 0.3 * waves(), (height, width)) for _ in range(3)]
    return np.clip(np.stack([125 + 55 * channel / channel.std() for channel in channels], -1), 0, 255).astype(np.uint8)


def loss(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.sqrt(((first.astype(np.float64) - second) ** 2).mean()))


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize(("times", "reduction"), [(7.5, 1), (9, 2), (17, 4), (33, 8)])
def test_reducing_while_decoding_shows_the_same(times, reduction, grey):
    """Against decoding whole and reducing then: less than what storing loses, and by 1.5 of 255 at most."""
    side = int(64 * times)
    picture = natural(side, side)
    data = made.by_cv2(".jpg", picture[..., 0] if grey else picture, cv2.IMWRITE_JPEG_QUALITY, 90)
    pixels, size, orientation = decode(data, read_header(data, MOST_PIXELS), MOST_PIXELS, wanted=64)
    assert pixels.shape[:2] == (side // reduction, side // reduction) and size == (side, side) and orientation == 1
    assert pixels.ndim == (2 if grey else 3)
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    whole, ours = (cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA) for picture in (whole, pixels))
    stored = cv2.imdecode(cv2.imencode(".jpg", whole, [cv2.IMWRITE_JPEG_QUALITY, 95])[1], cv2.IMREAD_UNCHANGED)
    assert loss(ours, whole) < (min(1.5, loss(stored, whole)) if reduction > 1 else 1e-9)


def test_large_turned_picture_keeps_its_proportions():
    data = made.encoded(made.scene(1500, 900), "JPEG", quality=95, exif=made.exif(6))
    stored = MAKE(data, read_header(data, MOST_PIXELS))
    assert (stored.original_width, stored.original_height) == (900, 1500)
    assert (stored.width, stored.height) == (64, 107)
    shown = cv2.resize(turned(made.scene(1500, 900), 6), (64, 107), interpolation=cv2.INTER_AREA)
    assert np.abs(np.asarray(Image.open(io.BytesIO(stored.jpeg)), np.float64) - shown).mean() < 2


def test_turning_is_that_of_the_standard():
    picture = made.scene()
    for orientation in range(1, 9):
        assert np.array_equal(turn(picture, orientation), turned(picture, orientation))


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "expected"),
    [
        (1, 0, b"\x40", [0], [255, 255]),
        (1, 0, b"\x40", [1], [0, 255]),
        (2, 0, b"\x60", [1], [255, 170]),
        (4, 0, b"\x35", [3], [255, 85]),
        (4, 0, b"\x35", [0xF3], [255, 85]),  # only the lowest bits count
        (8, 0, b"\x03\x05", [3], [255, 5]),
        (16, 0, b"\0\0\x05\0", [0], [255, 5]),
        (16, 0, b"\x30\1\x30\2", [0x3001], [255, 0x30]),
        (8, 2, b"\1\2\3\4\4\4", [1, 2, 3], [255, 4]),
        (16, 2, b"\0\1\0\2\0\3" + b"\5\0" * 3, [1, 2, 3], [255, 5]),
        (16, 2, b"\x30\1" * 3 + b"\5\0" * 3, [0x3001] * 3, [255, 5]),
    ],
)
def test_the_clear_colour_of_a_png_is_white(depth, colour, row, clear, expected):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, 0))
    data += (
        chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)) + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")
    )
    assert as_shown(data, 100).tolist() == [[[value] * 3 for value in expected]]


def test_matting_is_exact():
    """Every colour under every opacity, against img2dataset's own formula."""
    colour, opacity = np.mgrid[0:256, 0:256].astype(np.uint8)
    bgra = np.stack([colour, colour, colour, opacity], -1)
    share = opacity[..., None] / 255
    assert np.array_equal(on_white(bgra), np.rint(share * bgra[..., :3] + 255 - opacity[..., None]).astype(np.uint8))


def test_damaged_bytes_end_in_a_reason():
    """Whatever is wrong inside, nothing but FetchError comes out of it."""
    random = np.random.default_rng(1)
    seen = set()
    pictures = [data for name, (data, _) in awkward().items() if len(data) < 50_000 and sniff(data[:16]) not in APART]
    apart_pictures = [data for data, _ in awkward().values() if sniff(data[:16]) in APART]
    for number in range(1500):
        source = pictures if number % 10 else apart_pictures
        data = bytearray(source[random.integers(len(source))])
        for _ in range(random.integers(1, 8)):
            data[random.integers(min(len(data), 400) if random.random() < 0.7 else len(data))] = random.integers(256)
        seen.add(reason(bytes(data)))
    assert {"damaged image", "truncated image", "too many pixels", None} <= seen <= {None, *REASONS}


def test_a_decoder_that_is_killed_costs_one_picture(monkeypatch):
    data = made.encoded(made.scene(), "BMP")
    assert reason(data) is None
    process = apart._decoder._process
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(apart, "SECONDS", 0.5)
    start = time.monotonic()
    assert reason(data) == "decoder took too long"
    assert time.monotonic() - start < 3
    assert process.poll() is not None
    monkeypatch.setattr(apart, "SECONDS", 10.0)
    assert reason(data) is None and apart._decoder._process.pid != process.pid
    apart._decoder._process.kill()
    apart._decoder._process.wait()
    assert reason(data) is None, "one that died between two pictures is started again"


def test_a_decoder_that_crashes_over_a_picture_costs_that_picture():
    assert reason(made.encoded(made.scene(), "BMP")) is None
    process = apart._decoder._process
    process.send_signal(signal.SIGSTOP)
    os.kill(process.pid, signal.SIGSEGV)
    process.send_signal(signal.SIGCONT)
    assert reason(made.encoded(made.scene(), "BMP")) in (None, "damaged image")  # dead before or after it was asked
    assert reason(made.encoded(made.scene(), "BMP")) is None


def test_the_decoder_s_memory_is_bounded(monkeypatch):
    side = 9000
    data = made.encoded(np.full((side, side, 3), 7, np.uint8), "TIFF", compression="tiff_adobe_deflate")
    assert reason(data) == "too many pixels"
    with pytest.raises(FetchError, match="needs too much memory"):
        decode(data, read_header(data, side * side), side * side)
    pid = apart._decoder._process.pid
    assert memory(pid)[1] < 512
    assert reason(made.encoded(made.scene(), "BMP")) is None and apart._decoder._process.pid == pid


def test_the_decoder_ends_with_its_parent():
    import subprocess
    import sys

    code = (
        "from data_pipeline.pictures import decode_apart as apart; import os\n"
        "from tests.worlds.strangers import hostile_pictures as made\n"
        "apart.decode_apart(made.encoded(made.scene(), 'BMP'), 10**6)\n"
        "print(apart._decoder._process.pid, flush=True); os._exit(0)"
    )
    root = Path(__file__).resolve().parents[3]
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True).stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not os.path.exists(f"/proc/{pid}")

"""Bodies out of the codings that their bytes are in, never more than was allowed."""

import functools
import gzip
import tracemalloc
import zlib

import pytest

from data_pipeline.fetch.body import PIECE_BYTES
from data_pipeline.fetch.image import fetch_image
from data_pipeline.fetch.limits import Limits
from tests.worlds.strangers.hostile_server import PAGE, PICTURE, answer, chunked, labelled, running

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def got(server, data: bytes, max_bytes: int = 1 << 20):
    """The body of this answer, or the reason."""
    server.answers["it"] = data
    limits = Limits(timeout=10, max_bytes=max_bytes, retries=0, allowed_hosts=frozenset({server.host}))
    body, reason = fetch_image(server.url("it"), limits)
    return reason if body is None else bytes(body.read())


def bare(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return engine.compress(data) + engine.flush()


packed = functools.partial(gzip.compress, mtime=0)
"""Without the time, which would stand in the names of tests: two workers must find the same ones."""
WORDS = ("aws-chunked", "UTF-8", "none", "binary", "", "identity", "identity, identity", "gzip", "x-gzip", "deflate", "br", "zstd")


@pytest.mark.parametrize("word", WORDS)
def test_a_picture_is_one_under_every_label(server, word):
    assert got(server, labelled(word)) == PICTURE


@pytest.mark.parametrize("word", WORDS)
def test_gzip_is_unpacked_under_every_label(server, word):
    if word == "deflate":
        return  # a contradiction that nobody sends
    assert got(server, labelled(word, packed(PICTURE))) == PICTURE


@pytest.mark.parametrize(
    "data",
    [
        labelled("deflate", zlib.compress(PICTURE)),
        labelled("DEFLATE", zlib.compress(PICTURE, 1)),
        labelled("deflate", bare(PICTURE)),
        labelled("gzip, gzip", packed(packed(PICTURE))),
        labelled("gzip", packed(PICTURE) + b"rest"),
        labelled("gzip", packed(PICTURE) + b"\x1f\x8b\x08\xff" * 9),
        labelled("gzip", packed(PICTURE)[:-8]),
        labelled("gzip", packed(PICTURE)[:-3]),
        labelled("gzip", packed(PICTURE)[:-8] + b"\xff" * 8),
        labelled("gzip", packed(PICTURE)[:-4] + b"\xff" * 4),
        labelled("deflate", zlib.compress(PICTURE)[:-4]),
        labelled("deflate", zlib.compress(PICTURE)[:-4] + b"\xff" * 4),
        labelled("gzip", packed(PICTURE[:99]) + packed(PICTURE[99:])),
        labelled("gzip", b"".join(packed(PICTURE[place : place + 9]) for place in range(0, len(PICTURE), 9)) + b"rest"),
        labelled("gzip, gzip", packed(packed(PICTURE[:99]) + packed(PICTURE[99:]))[:-8]),
        answer(packed(PICTURE), length=None),
        chunked(packed(PICTURE), headers="Content-Encoding: gzip\r\n"),
        chunked(packed(PICTURE), headers="Transfer-Encoding: gzip\r\n"),
    ],
)
def test_what_is_packed_is_unpacked(server, data):
    assert got(server, data) == PICTURE


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (labelled("gzip", packed(PICTURE)[:-99]), "truncated image"),
        (labelled("gzip", packed(PICTURE[:-99])[:-8]), "truncated image"),
        (labelled("gzip", packed(PICTURE)[:12]), "encoded body"),
        (labelled("gzip", packed(PICTURE[:99]) + packed(PICTURE[99:])[:9]), "truncated image"),
        (labelled("gzip", packed(PICTURE[:99]) + packed(b"") * 3000), "truncated image"),
        (labelled("gzip", packed(PICTURE)[:99] + b"\xff" * 99), "encoded body"),
        (labelled("gzip", packed(packed(packed(PICTURE)))), "encoded body"),
        (labelled("deflate", b"\xff" * 99), "encoded body"),
        (labelled("br", b"\x0b\x02\x80" + PAGE), "encoded body"),
        (labelled("zstd", b"\x28\xb5\x2f\xfd" + PAGE), "encoded body"),
        (labelled("gzip", packed(PAGE)), "not an image"),
        (labelled("gzip", PAGE), "not an image"),
        (labelled("UTF-8", PAGE), "not an image"),
        (labelled("gzip", b""), "not an image"),
        (labelled("deflate", b""), "not an image"),
        (labelled("deflate", b"x"), "encoded body"),
        (answer(packed(PICTURE)[:-9], length=1 << 19), "body shorter than announced"),
    ],
)
def test_what_cannot_be_unpacked(server, data, reason):
    assert got(server, data) == reason


def test_the_seam_of_two_members_may_lie_anywhere_in_what_is_read(server):
    second = packed(PICTURE[99:])
    for left in range(-4, 22):
        first = packed(PICTURE[:99], mtime=0)
        name = b"n" * (PIECE_BYTES - len(first) - 1 - left) + b"\0"  # in the header: as many bytes that unpack to nothing
        first = first[:3] + b"\x08" + first[4:10] + name + first[10:]
        assert len(first) == PIECE_BYTES - left
        assert got(server, labelled("gzip", first + second)) == PICTURE


@pytest.mark.parametrize("layers", [1, 2])
def test_a_few_bytes_do_not_become_many(server, layers):
    data = PICTURE + bytes(64 << 20)
    for _ in range(layers):
        data = packed(data)
    assert len(data) < 1 << 20
    tracemalloc.start()
    try:
        assert got(server, labelled("gzip", data)) == "too many bytes"
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_cap_is_one_of_what_was_unpacked(server):
    longest = PICTURE + bytes((1 << 20) - len(PICTURE))
    assert got(server, labelled("gzip", packed(longest))) == longest
    assert got(server, labelled("gzip", packed(longest + b"\0"))) == "too many bytes"

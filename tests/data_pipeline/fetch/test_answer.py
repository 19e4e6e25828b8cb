"""Heads as servers write them: nothing behind a broken line is lost, and nothing else is made of it."""

import http.client
import io

import pytest

from data_pipeline.fetch.answer import Answer


class Wire:
    def __init__(self, data: bytes):
        self.file = io.BufferedReader(io.BytesIO(data))

    def makefile(self, mode: str) -> io.BufferedReader:
        return self.file


def read(data: bytes) -> Answer:
    answer = Answer(Wire(data), method="GET")
    answer.begin()
    return answer


def of_head(*lines: bytes, end: bytes = b"\r\n") -> list[tuple[str, str]]:
    """Fields of a head with these lines between two of its own."""
    head = end.join([b"HTTP/1.1 200 OK", b"Content-Range: 1", *lines, b"TDM-Reservation: 2", b"Content-Length: 4", b"", b"body"])
    answer = read(head)
    assert answer.read() == b"body"
    fields = answer.getheaders()
    assert (fields[0], fields[-2:]) == (("Content-Range", "1"), [("TDM-Reservation", "2"), ("Content-Length", "4")])
    return fields[1:-2]


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        ([b"Location: b"], [("Location", "b")]),
        ([b"Location:b"], [("Location", "b")]),
        ([b"Location:  b \t"], [("Location", "b")]),
        ([b"Location:"], [("Location", "")]),
        ([b"Location: b: c"], [("Location", "b: c")]),
        ([b"Location: b", b"location: c"], [("Location", "b"), ("location", "c")]),
        ([b"Location : b"], [("Location", "b")]),
        ([b"Location\t: b"], [("Location", "b")]),
        ([b"P3P CP=NOI"], []),
        ([b"MIME - Version: 1.1"], []),
        ([b"X-\xfc: b"], []),
        ([b": b"], []),
        ([b"From me: b"], []),
        ([b"HTTP/1.1 200 OK"], []),
        ([b"<html>"], []),
        ([b"Location: b\xfc\x85c"], [("Location", "b\xfc\x85c")]),
        ([b"Location: b\0c"], [("Location", "b c")]),
        ([b"Location\0: b"], []),
        ([b"Location: b\x0bc\x1c"], [("Location", "b\x0bc\x1c")]),
        ([b"Location: b\rX-Robots-Tag: d"], [("Location", "b"), ("X-Robots-Tag", "d")]),
        ([b"Location: b\rc"], [("Location", "b")]),
        ([b"Location: b", b" c", b"\td"], [("Location", "b c d")]),
        ([b"Location:", b" b"], [("Location", "b")]),
        ([b"P3P CP=NOI", b" Location: b"], []),
        ([b"Location: b", b"P3P", b" c"], [("Location", "b")]),
    ],
)
def test_fields(lines, fields, end):
    assert of_head(*lines, end=end) == fields


@pytest.mark.parametrize(
    "lines",
    [
        [b"A: b"],
        [b"Set-Cookie: %d" % number for number in range(3000)],
        [b"Content-Security-Policy: " + b"b" * (200 << 10)],
        [b"Link: b", *[b" " + b"c" * 1000] * 200],
    ],
)
def test_fields_that_nobody_asks_for_may_be_many_and_long(lines):
    assert of_head(*lines) == []


def test_a_fold_before_the_first_field_belongs_to_nobody():
    assert read(b"HTTP/1.1 200 OK\r\n folded\r\nLocation: b\r\n\r\n").getheaders() == [("Location", "b")]


def test_a_head_may_end_with_the_connection():
    answer = read(b"HTTP/1.1 302 Found\r\nLocation: /a")
    assert (answer.status, answer.getheader("Location"), answer.read()) == (302, "/a", b"")


@pytest.mark.parametrize("before", [b"", b"\r\n", b"\n\r\n"])
@pytest.mark.parametrize("status", [b"100 Continue", b"102 Processing", b"103 Early Hints", b"199 Soon"])
def test_what_comes_before_an_answer_is_none(status, before):
    interim, last = b"HTTP/1.1 %s\r\nLocation: b\r\n\r\n" % status, b"HTTP/1.1 200 OK\r\nX-Robots-Tag: d\r\n\r\nbody"
    answer = read(interim * 3000 + before + last)
    assert (answer.status, answer.getheaders(), answer.read()) == (200, [("X-Robots-Tag", "d")], b"body")


def test_switching_protocols_is_an_answer():
    assert read(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n").status == 101


@pytest.mark.parametrize(
    "coding",
    [b"chunked", b"Chunked", b" chunked ", b"gzip, chunked", b"identity,chunked", b"chunked\r\nTransfer-Encoding: chunked"],
)
def test_chunks_are_seen_however_they_are_announced(coding):
    head = b"HTTP/1.1 200 OK\r\nBroken line\r\nTransfer-Encoding: %s\r\nContent-Length: 3\r\n\r\n" % coding
    assert read(head + b"2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n").read() == b"body"


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", http.client.RemoteDisconnected),
        (b"\r\n\r\n", http.client.RemoteDisconnected),
        (b"SMTP ready\r\n\r\n", http.client.BadStatusLine),
        (b"HTTP/1.1 OK\r\n\r\n", http.client.BadStatusLine),
        (b"HTTP/2 200 OK\r\n\r\n", http.client.UnknownProtocol),
        (b"\x89PNG\r\n\x1a\n", http.client.BadStatusLine),
        (b"HTTP/1.1 200 OK\r\n" + b"Location: b\r\n" * 101 + b"\r\n", http.client.HTTPException),
        (b"HTTP/1.1 200 OK\r\nLocation: " + b"b" * (1 << 16) + b"\r\n\r\n", http.client.LineTooLong),
        (b"HTTP/1.1 200 OK\r\nLocation: " + b"b\r\n " * (1 << 15) + b"\r\n\r\n", http.client.LineTooLong),
    ],
)
def test_what_is_no_answer(data, error):
    with pytest.raises(error):
        read(data)

"""Which headers forbid the use of a picture."""

from email.message import Message

import pytest

from data_pipeline.fetch.robots import forbidden

OPT_OUTS = {"noai", "noimageai", "noindex", "noimageindex", "noml"}


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], False),
        (["all"], False),
        (["noarchive, nofollow"], False),
        (["noai"], True),
        (["NoAI"], True),
        (["noarchive , noimageai"], True),
        (["noindex"], True),
        (["noimageindex"], True),
        (["noml"], True),
        (["none"], True),
        (["all", "noai"], True),
        (["sycoca-ds: noai"], True),
        (["Sycoca-DS : noai"], True),
        (["*: noai"], True),
        (["otherbot: noai"], False),
        (["otherbot: noai", "noarchive"], False),
        (["otherbot: nofollow, noai"], False),
        (["otherbot: noai, sycoca-ds: noarchive"], False),
        (["otherbot: nofollow, sycoca-ds: noarchive, noai"], True),
        (["sycoca-ds: nofollow, otherbot: noai"], False),
        (["max-snippet: 20, noai"], True),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], True),
        (["otherbot: unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], False),
        (["max-image-preview: none"], False),
        (["noaixyz"], False),
        ([""], False),
        ([":,::,"], False),
    ],
)
def test_robots_tags(tags, expected):
    headers = Message()
    for tag in tags:
        headers["X-Robots-Tag"] = tag
    assert forbidden(headers, "sycoca-ds", OPT_OUTS) is expected
    assert forbidden(headers, "sycoca-ds", ()) is False


def test_reserved_rights():
    for values, expected in ((["1"], True), (["0"], False), (["0", " 1 "], True), (["10"], False)):
        headers = Message()
        for value in values:
            headers["tdm-reservation"] = value
        assert forbidden(headers, None, ()) is expected

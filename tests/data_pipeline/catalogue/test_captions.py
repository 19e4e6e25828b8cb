"""Cleaning of captions: ordinary ones as CLIP's `basic_clean` and `whitespace_clean`, hostile ones in bounded time."""

from __future__ import annotations

import html
import random
import time

import ftfy
import pytest

from data_pipeline.catalogue.captions import MOST_CHARACTERS, clean, comparable, unescape

BYTES = 64_000
HOSTILE = {
    "nested amp": "a dog &" + "amp;" * (BYTES // 4),
    "nested AMP, a tail": "a dog &" + "AMP;" * (BYTES // 4) + " in a park",
    "nested numbers": "a dog &" + "#38;" * (BYTES // 4),
    "nested in turns": "a dog &" + "amp;#38;#x26;" * (BYTES // 13),
    "semicolons as entities": "a dog " + "&semi" * (BYTES // 5) + ";",
    "behind a full-width ampersand": "a dog \uff06" + "amp;" * (BYTES // 4),
    "in full-width letters": "a dog \uff06" + "\uff41\uff4d\uff50\uff1b" * (BYTES // 12),
    "control characters between": "a dog &" + "\x01amp;" * (BYTES // 5),
    "accents out of order": "a" + "\u0301\u0323" * (BYTES // 4),
    "more accents": "a" + "\u0301" * (BYTES // 4) + "\u0323" * (BYTES // 4),
    "line breaks": "\r\n" * (BYTES // 2),
    "digits": "&#" + "1" * BYTES + ";",
    "escaped digits": "&amp;#" + "1" * BYTES,
    "ampersands": "&" * BYTES,
    "mojibake": "\u00c3\u00a2\u00e2\u201a\u00ac\u00c5\u201c" * (BYTES // 16),
}


def basic_clean(text: str) -> str:
    """open_clip's tokenizer.py: `basic_clean`, then `whitespace_clean`."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.strip().split()).strip()


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_captions_take_a_fraction_of_a_second(kind: str) -> None:
    clean("caf\u00e9")  # imports ftfy
    began = time.process_time()
    clean(HOSTILE[kind])
    comparable(HOSTILE[kind])
    unescape(HOSTILE[kind])
    assert time.process_time() - began < 2, "s; unbounded, most of these take 3 to 30"


def test_what_stands_behind_nested_entities_is_read() -> None:
    assert clean(HOSTILE["nested AMP, a tail"]) == "a dog & in a park"
    assert clean(HOSTILE["digits"]) == "\ufffd" == unescape(HOSTILE["digits"]), "as of every number beyond Unicode"


def test_ordinary_captions_are_cleaned_as_openai_and_open_clip_do() -> None:
    pieces = (
        "caf\u00e9|&amp;|&amp;amp;quot;|dog|\u201cquoted\u201d|\u00c3\u00a9t\u00e9|<b>x</b>|&#39;|&lt;br&gt;|\ufb01sh|\uff21\uff22|"
        "na\u00efve|e\u0301|\n|\r\n|\x07|\u4f8b\u3048|;|&nbsp;|&eacute;|&amp;amp;amp;amp;lt;|&" + "amp;" * 12 + "|red,"
    ).split("|")
    chosen = random.Random(0)
    for _ in range(3000):
        text = " ".join(chosen.choices(pieces, k=chosen.randint(1, 60)))
        assert clean(text) == basic_clean(text)


def test_long_captions_keep_their_beginning() -> None:
    words = " ".join(f"caf\u00e9 {number}" for number in range(5000))
    assert clean(words) == basic_clean(words[:MOST_CHARACTERS])

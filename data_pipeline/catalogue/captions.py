"""Captions: CLIP's cleaning, in front of every tokenizer, and what makes two of them equal."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata

MOST_CHARACTERS = 4096
"""What is looked at of a caption; no model's context holds as many. ftfy's time grows with the square: one level of entities a
round, runs of accents sorted by insertion. 64 kB took it 28 s, each time the caption was read."""
NESTED = re.compile("&((?:(?:amp|#38|#x26);){16})(?:(?:amp|#38|#x26);)+", re.IGNORECASE)
"""More than 16 levels of an escaped `&`, which are taken for 16."""
NO_CHARACTER = re.compile("&#[0-9]{100,};?")
"""A number that Python refuses to read, where it is long enough."""


def unescape(text: str) -> str:
    """Entities resolved, twice: `&amp;quot;` is common."""
    for _ in range(2):
        text = html.unescape(NO_CHARACTER.sub("\ufffd", text))
    return text


def clean(text: str) -> str:
    """Broken encodings, ligatures, full-width letters, curly quotes and control characters mended (ftfy), entities resolved twice
    (`&amp;quot;` is common), every run of white space one space: `basic_clean` and `whitespace_clean` of openai/CLIP and open_clip.

    Of a text of more than MOST_CHARACTERS only these: the time it takes is bounded, too.
    """
    if len(text) > MOST_CHARACTERS:
        text = " ".join(NESTED.sub(r"&\1", text).split())[:MOST_CHARACTERS]  # in one line: ftfy takes each line by itself
    if not (text.isascii() and text.isprintable() and "&" not in text):  # in others there is nothing to mend
        import ftfy

        text = unescape(ftfy.fix_text(text))
    return " ".join(text.split())


def is_blank(text: str) -> bool:
    """Whether nothing of it shows: white space, marks of byte order, joiners, spaces without width, control characters."""
    return all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in text)


def lines_of(text: str) -> list[str]:
    """The captions of a text that holds one a line, as CLIP_benchmark's COCO and Flickr sets do."""
    return [line.strip() for line in text.removeprefix("\ufeff").split("\n") if line.strip()]


def comparable(text: str) -> str:
    """Letters and digits of a cleaned caption in lower case, one space between words: equal for captions that differ in case,
    punctuation and spacing only."""
    return " ".join(re.findall(r"[^\W_]+", clean(text).lower()))


def caption_hash(text: str) -> str:
    """16 hex digits that captions share whose `comparable` forms are equal; empty where nothing is left to compare."""
    words = comparable(text)
    return hashlib.sha256(words.encode()).hexdigest()[:16] if words else ""

"""Captions: CLIP's cleaning, in front of every tokenizer, and what makes two of them equal."""

from __future__ import annotations

import hashlib
import html
import re


def unescape(text: str) -> str:
    """Entities resolved, twice: `&amp;quot;` is common."""
    return html.unescape(html.unescape(text))


def clean(text: str) -> str:
    """Broken encodings, ligatures, full-width letters, curly quotes and control characters mended (ftfy), entities resolved twice
    (`&amp;quot;` is common), every run of white space one space: `basic_clean` and `whitespace_clean` of openai/CLIP and open_clip.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # in others there is nothing to mend
        import ftfy

        text = unescape(ftfy.fix_text(text))
    return " ".join(text.split())


def comparable(text: str) -> str:
    """Letters and digits of a cleaned caption in lower case, one space between words: equal for captions that differ in case,
    punctuation and spacing only."""
    return " ".join(re.findall(r"[^\W_]+", clean(text).lower()))


def caption_hash(text: str) -> str:
    """16 hex digits that captions share whose `comparable` forms are equal; empty where nothing is left to compare."""
    words = comparable(text)
    return hashlib.sha256(words.encode()).hexdigest()[:16] if words else ""

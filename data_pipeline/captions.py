"""CLIP's cleaning of a text, in front of every tokenizer."""

from __future__ import annotations

import html


def clean(text: str) -> str:
    """Broken encodings, ligatures, full-width letters, curly quotes and control characters mended (ftfy), entities resolved twice
    (`&amp;quot;` is common), every run of white space one space: `basic_clean` and `whitespace_clean` of openai/CLIP and open_clip.
    """
    if not (text.isascii() and text.isprintable() and "&" not in text):  # in others there is nothing to mend
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())

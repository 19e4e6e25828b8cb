"""Spans carried from a text to what was made of it."""

from __future__ import annotations

import random

import pytest

from data_pipeline.catalogue.captions import clean
from sycoca_ds.data.alignment import GONE, carry, changed_blocks, price


def span(text: str, part: str) -> tuple[int, int]:
    return text.index(part), text.index(part) + len(part)


@pytest.mark.parametrize(
    ("source", "target", "part", "becomes"),
    [
        ("a red star", "a red star", "red star", "red star"),
        ("a  red \t star ", "a red star", "red \t star", "red star"),
        ("A RED star", "a red star", "RED star", "red star"),
        ("salt &amp; pepper pot", "salt & pepper pot", "&amp; pepper", "& pepper"),
        ("a &lt;red&gt; star", "a <red> star", "red", "red"),
        ("a man 's arm", "a man's arm", "man 's arm", "man's arm"),
        ("\u201cred\u201d star", '"red" star', "red", "red"),
        ("two \ufb01sh", "two fish", "\ufb01sh", "fish"),
        ("caf\u0065\u0301 noir", "caf\u00e9 noir", "noir", "noir"),
        ("caf\u0065\u0301 noir", "caf\u00e9 noir", "caf\u0065\u0301", "caf\u00e9"),
        ("\u0130zmir bay", "i\u0307zmir bay", "bay", "bay"),
        ("\u0130zmir bay", "i\u0307zmir bay", "\u0130zmir", "i\u0307zmir"),
        ("red \x00\x07 star", "red star", "star", "star"),
    ],
)
def test_words_stay_themselves(source: str, target: str, part: str, becomes: str) -> None:
    ((start, end),) = carry([span(source, part)], source, target)
    assert target[start:end] == becomes


def cheapest(source: str, target: str) -> int:
    """The edit distance by the textbook's recursion."""
    if not source or not target:
        return GONE * (len(source) + len(target))
    return min(
        cheapest(source[1:], target) + GONE,
        cheapest(source, target[1:]) + GONE,
        cheapest(source[1:], target[1:]) + price(source[0], target[0]),
    )


def test_the_alignment_covers_both_texts_with_the_least_change() -> None:
    """The changes of its blocks add up to the least that turns one text into the other."""
    draw = random.Random(5)
    for _ in range(200):
        source, target = ("".join(draw.choice("ab AB") for _ in range(draw.randint(0, 6))) for _ in range(2))
        blocks = changed_blocks(source, target)
        assert "".join(source[i1:i2] for i1, i2, _, _ in blocks) == source
        assert "".join(target[j1:j2] for _, _, j1, j2 in blocks) == target
        # of each block the least change again, by the same recursion on it alone: the whole is the sum of its blocks
        least = sum(cheapest(source[i1:i2], target[j1:j2]) for i1, i2, j1, j2 in blocks)
        assert least == cheapest(source, target), (source, target)


def test_what_is_gone_is_empty() -> None:
    assert carry([(0, 2), (2, 5)], "\u200b\u200bred", "red") == [(0, 0), (0, 3)]
    assert carry([], "a", "b") == []


def test_words_of_cleaned_captions_for_many_random_ones() -> None:
    """Each word's span leads to that word, whatever stands between words."""
    draw = random.Random(3)
    words = ["red", "stars", "beside", "a", "blue", "Blue", "caf\u00e9", "12", "o'clock"]
    gaps = [" ", "  ", "\t", "\n", " &amp; ", " \u2013 ", ", ", " \U0001f600 ", " &quot; "]
    for _ in range(300):
        text, places = "", []
        for _ in range(draw.randint(1, 9)):
            word = draw.choice(words)
            places.append((len(text), len(text) + len(word)))
            text += word + draw.choice(gaps)
        cleaned = clean(text)
        found = [cleaned[start:end] for start, end in carry(places, text, cleaned)]
        assert found == [text[start:end] for start, end in places], (text, cleaned)

"""How the official VQA evaluation makes answers comparable, quirks included (GT-Vision-Lab/VQA, vqaEval.py, the 2.0 version).

Three forks of it are in circulation that give other numbers: always normalised (lmms-eval), the prediction always and the answers
by punctuation alone (LAVIS), min(n / 3, 1) over all ten answers (A-OKVQA). This is none of them.
"""

from __future__ import annotations

import functools
import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS = {
    word: str(number)
    for number, words in enumerate("none,zero one two three four five six seven eight nine ten".split())
    for word in words.split(",")
}
ARTICLES = ("a", "an", "the")
PERIOD = re.compile(r"\.(?!\d)")
"""Official: `(?!<=\\d)(\\.)(?!\\d)`. Its first part was meant as a look-behind and holds before every point."""
PERIODS_REMOVED = 32
"""`re.UNICODE`, which is 32, is passed where `sub` takes the number of replacements."""
COMMA_IN_NUMBER = re.compile(r"\d,\d")

PLAIN = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've isn't "
    "it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll "
    "somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll they're "
    "they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll who's who've "
    "why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"
)
"""Found without any of their apostrophes."""
DOUBLE = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've "
    "there'd've they'd've we'd've who'd've wouldn't've you'd've"
)
"""Found without their first apostrophe, and without their second."""
ODD = {
    **dict.fromkeys(("ow's'at", "'ows'at", "'ow'sat"), "'ow's'at"),
    "somebody'd": "somebodyd",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    **dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), "y'all'd've"),
}
"""The rest; the second goes the wrong way there, too."""


def _contractions() -> dict[str, str]:
    found = {right.replace("'", ""): right for right in PLAIN.split()}
    for right in DOUBLE.split():
        first, second, third = right.split("'")
        found |= {f"{first}{second}'{third}": right, f"{first}'{second}{third}": right}
    return found | ODD


CONTRACTIONS = _contractions()
"""As they are written without an apostrophe -> right. Words are in lower case by then: those with a capital I are never found."""


def without_punctuation(text: str) -> str:
    """Each sign goes where it touches a space anywhere in the text, or the text has a comma between digits; else it is a space."""
    found, number = text, COMMA_IN_NUMBER.search(text) is not None
    for sign in PUNCTUATION:
        found = found.replace(sign, "" if number or f"{sign} " in text or f" {sign}" in text else " ")
    return PERIOD.sub("", found, count=PERIODS_REMOVED)


def without_articles(text: str) -> str:
    """Lower case, numbers to ten as digits, no articles, contractions with their apostrophes, single spaces."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def stripped(text: str) -> str:
    """What is done to every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@functools.lru_cache(maxsize=1 << 18)
def normalised(text: str) -> str:
    """A stripped answer as it is compared."""
    return without_articles(without_punctuation(text))

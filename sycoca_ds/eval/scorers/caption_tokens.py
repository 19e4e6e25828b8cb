"""Captions -> tokens for the scorers: Stanford's PTB tokenizer (the official one, Java) or a regex that is nearly
equal.

The official call is pycocoevalcap/tokenizer/ptbtokenizer.py. The jar is run here rather than through that class because
the class writes its input beside the jar (site-packages may be read-only), breaks on U+2028, and decodes in whatever
charset the machine has.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from data_pipeline.errors import UserError, how_to_install

PTB = "ptb"
REGEX = "regex fallback: no java"
# pycocoevalcap's list, verbatim. Its brackets are upper case and never match the lower-cased output, so "-lrb-" stays a
# token, as in every published number.
PUNCTUATIONS = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
JAVA_FLAGS = ["-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
FENCE = "."
"""A line with a word that the punctuation list removes."""
CONTRACTION = re.compile(r"(?<=\w)(n't|'s|'m|'d|'re|'ve|'ll)(?!\w)")
TOKEN = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\.\.\.|--|\w+(?:(?:[-.&/']|(?<=\d),(?=\d))\w+)*|[^\w\s]")


def java_command() -> str | None:
    """Path of `java`, or None."""
    return shutil.which("java")


def java_version() -> str | None:
    """What Java says of itself; None: there is none."""
    command = java_command()
    if command is None:
        return None
    try:
        said = subprocess.run([command, "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line for line in said.splitlines() if " version " in line), None)  # options it picked up may stand before


def package_folder() -> Path:
    """Folder of pycocoevalcap, found without importing it. UserError names the extra to install."""
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"captioning: the package pycocoevalcap is not installed; {how_to_install('eval')} brings it")
    return Path(next(iter(spec.submodule_search_locations)))


def one_line(caption: str) -> str:
    """The caption on one line without `|||`. Line breaks of any kind (U+2028 too) would shift every later caption by
    one in the line protocol of the jars; `|||` separates METEOR's fields."""
    return " ".join(" ".join(caption.replace("|||", " ").splitlines()).replace("\x00", " ").split())


def regex_tokenize(caption: str) -> str:
    """Tokens joined by blanks, close to PTB on captions (99.8 % of Flickr8k's are equal); for machines without Java."""
    text = one_line(caption).lower().replace("cannot", "can not")
    text = CONTRACTION.sub(r" \1", text).replace('"', " ")
    tokens = [BRACKETS.get(token, token) for token in TOKEN.findall(text)]
    return " ".join(token for token in tokens if token not in PUNCTUATIONS)


def ptb_tokenize(captions: list[str]) -> list[str]:
    """The official tokens of each caption, joined by blanks, one entry a caption, whatever characters it holds.

    Raises UserError if pycocoevalcap is missing and RuntimeError if Java fails, takes too long, or the number of lines does not
    match.
    """
    folder = package_folder() / "tokenizer"
    # PTBTokenizer drops empty lines at both ends, also those whose characters it knows no token for: words stand around all
    lines = [FENCE, *map(one_line, captions), FENCE]
    command = [
        java_command() or "java",
        *JAVA_FLAGS,
        "-cp",
        "stanford-corenlp-3.4.1.jar",
        "edu.stanford.nlp.process.PTBTokenizer",
        "-preserveLines",
        "-lowerCase",
        "-encoding",
        "UTF-8",
    ]
    given, timeout = "\n".join(lines).encode("utf-8", "replace"), 60 + len(lines) / 100
    try:
        done = subprocess.run(command, cwd=folder, input=given, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"PTB tokenizer: it was stopped after {timeout:,.0f} seconds") from error
    output = done.stdout.decode("utf-8", "replace").split("\n")
    if output and output[-1] == "":
        output.pop()
    if done.returncode != 0 or len(output) != len(lines):
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise RuntimeError(
            f"PTB tokenizer: {len(output) - 2} lines for {len(captions)} captions, exit status {done.returncode}: "
            f"{said[-1] if said else ''}"
        )
    return [" ".join(token for token in line.rstrip().split(" ") if token not in PUNCTUATIONS) for line in output[1:-1]]


def tokenize(captions: list[str]) -> tuple[list[str], str]:
    """(tokens of each caption joined by blanks, tokenizer kind: `PTB`, or `REGEX` where there is no Java)."""
    if not captions:
        return [], PTB if java_command() else REGEX
    if java_command():
        return ptb_tokenize(captions), PTB
    print(
        "captioning: no java found, using the regex tokenizer (BLEU and CIDEr differ in the fourth place)",
        file=sys.stderr,
    )
    return [regex_tokenize(caption) for caption in captions], REGEX

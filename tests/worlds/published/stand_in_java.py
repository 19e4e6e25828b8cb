"""A program `java` that does what the scorers of captions ask of it, without Java: tokens, and F-scores by shared words.

METEOR ends as after an OutOfMemoryError. What else is to go wrong stands in STAND_IN: "tokens" and "spice" fail, "hangs" and
"no JSON" are SPICE's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

RELEASE = 17
PROGRAM = """#!{python}
import json, os, sys, time

words, wrong = sys.argv[1:], os.environ.get("STAND_IN", "")
with open({log!r}, "a") as log:
    log.write(json.dumps([words, os.environ.get("JDK_JAVA_OPTIONS"), os.getcwd()]) + "\\n")
if "-version" in words:
    sys.exit(print('Picked up something\\nopenjdk version "{version}" 2025', file=sys.stderr))
if "edu.stanford.nlp.process.PTBTokenizer" in words:
    sys.exit("java.lang.OutOfMemoryError: Java heap space" if wrong == "tokens" else print(sys.stdin.read().lower()))
if "edu.anu.spice.SpiceScorer" not in words:
    sys.exit("java.lang.OutOfMemoryError: Java heap space")
if wrong == "spice":
    print("Error: Could not score batched file input:", file=sys.stderr)
    sys.exit("java.lang.NullPointerException: no engine\\n\\tat edu.anu.spice.SpiceScorer.scoreBatch(SpiceScorer.java:70)")
if wrong == "hangs":
    time.sleep(60)
given, out = words[words.index("edu.anu.spice.SpiceScorer") + 1], words[words.index("-out") + 1]
found = []
for row in json.load(open(given)):
    said, meant = set(row["test"].split()), {{word for text in row["refs"] for word in text.split()}}
    f = 2 * len(said & meant) / max(1, len(said) + len(meant))
    every = {{"f": None if "nothing" in said else f, "pr": f, "re": f, "tp": 1, "fp": 1, "fn": 1, "numImages": 1}}
    found.append({{"image_id": row["image_id"], "scores": {{"All": every, "Color": {{**every, "f": None}}}}}})
open(out, "w").write("[{{" if wrong == "no JSON" else json.dumps(found[::-1]))
"""


def stand_in_java(folder: Path, patch: pytest.MonkeyPatch, release: int = RELEASE) -> Path:
    """Puts it first on PATH; the log of its calls: a line [words, JDK_JAVA_OPTIONS, working folder] each."""
    folder.mkdir()
    version = f"1.{release}.0_101" if release < 9 else f"{release}.0.1"
    program = folder / "java"
    program.write_text(PROGRAM.format(python=sys.executable, log=str(folder / "log"), version=version))
    program.chmod(0o755)
    patch.setenv("PATH", str(folder), prepend=":")
    return folder / "log"


NASHORN = "nashorn-core-15.4.jar"


def write_jars(folder: Path, *more: str) -> Path:
    """A folder for `--spice-dir`, of empty files. `more`: beside those of CoreNLP, default a JavaScript engine."""
    folder.mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar", *(more or (NASHORN,))):
        (folder / name).write_bytes(b"")
    return folder

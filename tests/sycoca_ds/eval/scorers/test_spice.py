"""SPICE, by a stand-in for `java`: how it is called, what is read of its answer, and how it fails."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.comparison.numbers import additive_numbers
from sycoca_ds.eval.registry import METRICS
from sycoca_ds.eval.scorers.caption_tokens import package_folder
from sycoca_ds.eval.scorers.captions import NO_SPICE, Meteor, score_groups, score_tables
from sycoca_ds.eval.scorers.spice import Spice, spice_jars
from tests.worlds.published.stand_in_java import NASHORN, stand_in_java, write_jars

REFERENCES = {"a": ["a red circle", "the circle"], "b": ["two dogs"], "c": ["", "a tree"]}
HYPOTHESES = {"a": ["a red circle"], "b": ["a cat"], "c": ["tree"]}
EACH = [6 / 7, 0.0, 2 / 3]
"""Twice the shared words of caption and references by the words of both."""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JDK_JAVA_OPTIONS", "-Dmine=1")
    return stand_in_java(tmp_path / "bin", monkeypatch)


@pytest.fixture
def spice(tmp_path: Path, log: Path) -> Spice:
    made = Spice(write_jars(tmp_path / "jars", NASHORN, "asm-7.3.1.jar"))
    log.unlink()
    return made


def test_it_is_called_as_the_package_does_but_for_cache_and_class_path(spice: Spice, log: Path, tmp_path: Path) -> None:
    found, each = spice.score(REFERENCES, HYPOTHESES)
    assert each.tolist() == pytest.approx(EACH) and found == pytest.approx(sum(EACH) / 3)
    ((words, opened, folder),) = map(json.loads, log.read_text().splitlines())
    package, jars = package_folder() / "spice", tmp_path / "jars"
    path = words[words.index("-cp") + 1].split(os.pathsep)
    assert path[0] == str(package / "spice-1.0.jar") and str(package / "lib/Meteor-1.5.jar") in path
    assert path[-4:] == [
        str(jars / name) for name in ("asm-7.3.1.jar", NASHORN, "stanford-corenlp-3.6.0-models.jar", "stanford-corenlp-3.6.0.jar")
    ]
    assert all(Path(jar).is_file() for jar in path)
    at = words.index("edu.anu.spice.SpiceScorer")
    assert {"-Xmx8G", "-Duser.language=en", "-Dfile.encoding=UTF-8"} < set(words[:at])
    assert words[at + 2 : at + 4 : 2] == ["-out"] and words[at + 4 :] == ["-subset", "-silent"], "no -cache"
    assert opened.split()[0] == "-Dmine=1" and "--add-opens=java.base/java.lang=ALL-UNNAMED" in opened.split()
    assert not any(word.startswith("--add-opens") for word in words), "Java 8 would not start"
    assert not Path(folder).exists(), "what it wrote is gone"


def test_a_picture_is_asked_once_also_by_group(spice: Spice) -> None:
    with Meteor() as meteor:
        whole = score_tables(REFERENCES, HYPOTHESES, "ptb", meteor, spice)
        groups = score_groups(REFERENCES, HYPOTHESES, "ptb", {"a": "x", "b": "y", "c": "x"}, meteor, spice)
    assert spice.starts == 1 and whole.numbers["spice"] == pytest.approx(sum(EACH) / 3) and "spice" not in whole.reasons
    assert groups["x"].numbers["spice"] == pytest.approx((EACH[0] + EACH[2]) / 2) and groups["y"].numbers["spice"] == 0
    assert whole.each["spice"].tolist() == pytest.approx(EACH)
    assert whole.failed and "METEOR failed: METEOR stopped early: java.lang.OutOfMemoryError" in whole.reasons["meteor"]
    compared = additive_numbers("captioning", whole.each, METRICS["captioning"])
    assert compared["spice"].value == whole.numbers["spice"]


def test_null_is_nan_and_so_is_the_mean(spice: Spice) -> None:
    """As in the official `float_convert` and `np.mean`."""
    found, each = spice.score(REFERENCES, HYPOTHESES | {"b": ["nothing"]})
    assert math.isnan(found) and math.isnan(each[1]) and each[0] == pytest.approx(EACH[0])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("spice", "it ended with status 1: java.lang.NullPointerException: no engine"),
        ("no JSON", "it ended with status 0: "),
        ("hangs", "it was stopped after 1 seconds"),
    ],
)
def test_what_fails_is_null_with_the_reason(spice: Spice, monkeypatch: pytest.MonkeyPatch, wrong: str, said: str) -> None:
    monkeypatch.setenv("STAND_IN", wrong)
    with pytest.raises(RuntimeError, match=said):
        spice.score(REFERENCES, HYPOTHESES, timeout=1 if wrong == "hangs" else None)
    if wrong == "spice":
        with Meteor() as meteor:
            found = score_tables(REFERENCES, HYPOTHESES, "ptb", meteor, spice)
        assert found.numbers["spice"] is None and found.failed and found.reasons["spice"] == f"SPICE failed: {said}"
        assert "spice" not in found.each and found.numbers["rouge_l"] > 0
    monkeypatch.delenv("STAND_IN")
    assert spice.score(REFERENCES, HYPOTHESES)[0] == pytest.approx(sum(EACH) / 3), "nothing of a failed run is kept"


def test_without_the_option_it_is_null(log: Path) -> None:
    with Meteor() as meteor:
        found = score_tables(REFERENCES, HYPOTHESES, "ptb", meteor)
    assert found.numbers["spice"] is None and found.reasons["spice"] == NO_SPICE


def test_a_jar_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_java(tmp_path / "bin", monkeypatch)
    with pytest.raises(UserError, match="--spice-dir .*none: no such folder; expected one with stanford-corenlp-3.6.0.jar and"):
        spice_jars(tmp_path / "none")
    jars = write_jars(tmp_path / "jars")
    (jars / NASHORN).unlink()
    with pytest.raises(UserError, match=r"jars: nashorn-core-\*.jar not there, with Java 17; Java has no JavaScript engine"):
        spice_jars(jars)
    stand_in_java(tmp_path / "old", monkeypatch, release=8)
    assert [path.name for path in spice_jars(jars)] == ["stanford-corenlp-3.6.0-models.jar", "stanford-corenlp-3.6.0.jar"]
    (jars / "stanford-corenlp-3.6.0-models.jar").unlink()
    with pytest.raises(UserError, match="jars: stanford-corenlp-3.6.0-models.jar not there; both are in stanford-corenlp-full"):
        spice_jars(jars)

"""The official arithmetic of VQA: normalisation, accuracy, what is the most that can be reached, candidates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.vqa.accuracy import accuracies, accuracy, by_type, ceilings, left_one_out
from sycoca_ds.eval.vqa.candidates import frequent, read_candidates
from sycoca_ds.eval.vqa.normalisation import CONTRACTIONS, normalised

OFFICIAL = {
    "Yes.": "yes",
    "a dog": "dog",
    "The dog": "dog",
    "two": "2",
    "none": "0",
    "NONE of the above": "0 of above",
    "it's": "it's",
    "its": "its",
    "dont know": "don't know",
    "don't know": "don't know",
    "1,000": "1000",
    "1,000 people, or so": "1000 people or so",
    "red,white": "red white",
    "red, white": "red white",
    "red ,white and blue": "red white and blue",
    "u.s.a.": "usa",
    "3.5": "3.5",
    "3.5.": "3.5",
    "v. good": "v good",
    "black/white": "black white",
    "black / white": "black white",
    "black-and-white": "black and white",
    "ski-ing - fast": "skiing fast",
    "t-shirt": "t shirt",
    "hot dog!": "hot dog",
    "hot dog !": "hot dog",
    "what?!": "what",
    "somebody'd": "somebodyd",
    "couldntve": "couldntve",
    "couldn'tve": "couldn't've",
    "Im here": "im here",
    "yall'd've": "y'all'd've",
    "the a an": "",
    "ten o'clock": "10 o'clock",
    "10 oclock": "10 o'clock",
    "a/c": "c",
    "5:30": "5:30",
    "$5": "$5",
    "50%": "50%",
    "(left)": "left",
    "( left": "left",
    "  spaces   inside ": "spaces inside",
    "let's go": "let's go",
    "..": "",
    "." * 40 + "x": "." * 8 + "x",
    "one,two": "1 2",
    "1,2": "12",
    "mother's": "mother's",
    "shes": "shes",
    "wont": "won't",
    "THE": "",
    "no one": "no 1",
    "zero zero": "0 0",
}
"""What processPunctuation and then processDigitArticle of vqaEval.py give (GT-Vision-Lab/VQA, commit a013f00, run on 2026-11-27).
All its contractions and 200,000 random texts were equal, too."""


@pytest.mark.parametrize("text", OFFICIAL)
def test_answers_are_normalised_as_the_official_evaluation_does_it(text: str) -> None:
    assert normalised(text.strip()) == OFFICIAL[text]


def test_contractions_are_those_of_the_official_table() -> None:
    """Of its entries two are equal on both sides."""
    assert len(CONTRACTIONS) == 118
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've" and CONTRACTIONS["somebody'd"] == "somebodyd"
    assert "couldntve" not in CONTRACTIONS and "let's" not in CONTRACTIONS


def slowly(prediction: str, answers: list[str]) -> float:
    """One annotator left out after the other."""
    answers = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in answers]
    prediction = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(answers)) > 1:
        answers, prediction = [normalised(answer) for answer in answers], normalised(prediction)
    shares = []
    for left_out in range(len(answers)):
        others = [answer for number, answer in enumerate(answers) if number != left_out]
        shares.append(min(1.0, sum(answer == prediction for answer in others) / 3))
    return sum(shares) / len(shares)


def test_accuracy_of_so_many_matches_among_ten() -> None:
    assert [round(left_one_out(matches, 10), 9) for matches in range(11)] == [0, 0.3, 0.6, 0.9, 1, 1, 1, 1, 1, 1, 1]


def test_accuracy_is_the_mean_over_annotators_left_out() -> None:
    random = np.random.default_rng(0)
    words = ["yes", "no", "Yes.", "the yes", "two", "2", "a dog", "dog\n", "black/white", "black white"]
    for _ in range(2000):
        answers = random.choice(words, size=10, p=random.dirichlet([0.5] * len(words))).tolist()
        said = str(random.choice(words))
        assert accuracy(said, answers) == pytest.approx(slowly(said, answers), abs=1e-12)


def test_where_all_annotators_agree_nothing_is_normalised() -> None:
    assert accuracy("2", ["two"] * 10) == 0 and accuracy("two", ["two"] * 10) == 1
    assert accuracy("2", ["two"] * 9 + ["three"]) == 1 and accuracy("Two.", ["two"] * 9 + ["2"]) == 1
    assert accuracy("two", ["two\n"] * 9 + ["two"]) == 1, "line ends are taken off before that"


def test_who_knows_everything_gets_the_ceiling_and_shuffled_answers_do_not() -> None:
    """The answer most annotators gave reaches what is possible; with other questions' answers in place of these it is lost."""
    random = np.random.default_rng(1)
    words = [f"word{number}" for number in range(50)]
    answers = [
        random.choice(words[at : at + 4], size=10, p=[0.55, 0.25, 0.15, 0.05]).tolist() for at in random.integers(0, 46, 300)
    ]
    oracle = [max(set(given), key=given.count) for given in answers]
    ceiling = ceilings(answers, words)
    found = accuracies(oracle, answers)
    assert np.array_equal(found, ceiling) and found.mean() > 0.95
    assert accuracies(oracle, answers[1:] + answers[:1]).mean() < 0.15
    assert accuracies(["the " + answer for answer in oracle], answers).mean() == pytest.approx(
        np.mean([best if len(set(given)) > 1 else 0.0 for best, given in zip(ceiling, answers, strict=True)])
    )


@pytest.mark.parametrize(
    ("answers", "candidates", "most"),
    [
        (["2"] * 10, ["two"], 0),  # all agree, so that nothing is normalised
        (["two"] * 10, ["2"], 0),
        (["two"] * 10, ["2", "two"], 1),
        (["2"] * 9 + ["3"], ["two"], 1),
        (["two\n"] * 10, ["two "], 1),
        (["x"] * 10, ["y"], 0),
        (["x"] * 8 + ["y"] * 2, ["y"], 0.6),
        (["x"] * 8 + ["y"] * 2, [], 0),
    ],
)
def test_no_candidate_gets_more_than_the_ceiling(answers: list[str], candidates: list[str], most: float) -> None:
    assert ceilings([answers], candidates)[0] == pytest.approx(most)


def test_the_ceiling_is_what_the_best_candidate_gets() -> None:
    random = np.random.default_rng(2)
    words = ["yes", "Yes.", "the yes", "two", "2", "2\n", "a dog", "dog", "dog!", "black/white", "black white", ""]
    for _ in range(500):
        answers = random.choice(words, size=10, p=random.dirichlet([0.2] * len(words))).tolist()
        candidates = random.choice(words, size=3, replace=False).tolist()
        best = max(slowly(candidate, answers) for candidate in candidates)
        assert ceilings([answers], candidates)[0] == pytest.approx(best, abs=1e-12)


def test_means_by_type() -> None:
    assert by_type(np.array([1.0, 0.0, 0.3, 0.6]), ["yes/no", "other", "other", "yes/no"]) == {"other": 15.0, "yes/no": 80.0}


def test_candidates_are_the_frequent_answers(tmp_path: Path) -> None:
    """Normalised, without commas, without the empty one; of several annotation files together."""
    assert frequent(["Yes", "yes.", "no", "", "", "", "1,000", "1000", "two", "2"], least=2) == ("yes", "1000", "2")
    for number, answers in enumerate((["yes", "no", "yes"], ["no", "no", "cat"])):
        content = {"annotations": [{"multiple_choice_answer": answer} for answer in answers]}
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
    both = [str(tmp_path / "0.json"), str(tmp_path / "1.json")]
    assert read_candidates(both, least=2) == ("no", "yes") and read_candidates(both[:1], least=1) == ("yes", "no")
    (tmp_path / "list.json").write_text('["a", "", "b"]')
    (tmp_path / "labels.json").write_text('{"a": 0, "b": 1}')
    (tmp_path / "lines.txt").write_text("a\nb\n")
    for name in ("list.json", "labels.json", "lines.txt"):
        assert read_candidates([str(tmp_path / name)]) == ("a", "b")


@pytest.mark.parametrize(
    "content, said", [('["a", "a"]', "'a' stands there twice"), ("[]", "found none"), ("{", "not JSON"), ("[1]", "as texts")]
)
def test_lists_that_are_none_are_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(content)
    with pytest.raises(UserError, match=f"--answers .*{said}"):
        read_candidates([str(tmp_path / "answers.json")])

"""Answers to questions on pictures, by VQA's official accuracy, beside what is reached without looking.

Legend: Q questions, I pictures of the data.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from sycoca_ds.eval.runner.bench import Bench, Inputs, digest_of_texts
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.stats.means import Mean, mean_intervals
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording, with_bounds
from sycoca_ds.eval.vqa.accuracy import accuracies, by_type, ceilings
from sycoca_ds.eval.vqa.answering import Answerer
from sycoca_ds.eval.vqa.items import Asked
from sycoca_ds.eval.vqa.submission import entries, fault

OFFICIAL_TYPES = {"accuracy_yes_no": "yes/no", "accuracy_number": "number", "accuracy_other": "other"}
NO_ANSWERS = "the model answers no questions: fine-tune it, train.py --task vqa"
SHOWN = 12
"""Examples in the results."""


def run_vqa(bench: Bench) -> Outcome:
    """All questions; those whose answers are kept back are answered, not scored."""
    asked = bench.inputs.questions
    if asked is None:
        raise NotApplicable("no --questions FILE was given")
    if not bench.config.model.fusion:
        raise NotApplicable(NO_ANSWERS)
    answerer = Answerer(bench, asked)
    said = answerer.answers(asked.picture_Q, "")
    results = entries(asked.table["id"].to_pylist(), said)
    wrong = fault(results, asked.questions)
    request = asked.request
    details: dict[str, Any] = {
        "questions": len(said),
        "pictures": len(np.unique(asked.picture_Q)),
        "left_out": asked.left_out,
        "questions_digest": asked.questions.digest,
        "candidates": len(asked.candidates),
        "candidates_digest": digest_of_texts(asked.candidates),
        "candidates_from": asked.candidates_from,
        "candidates_of_same_tokens": answerer.same_tokens,
        "answering": request.how,
        "ranked_to_the_end": min(request.keep, len(asked.candidates)) if request.how == "rank" else None,
        "beams": bench.options.beams if request.how == "generate" else None,
        "submission": "complete" if wrong is None else wrong,
        "interval": HOW,
        "told": [asked.told()],
    }
    files = {"vqa_results.json": results}
    if not asked.questions.answered:
        return Outcome({}, dict.fromkeys(NUMBERS, "the answers of these questions are kept back"), {}, details, files)
    other = answerer.answers(another_picture(asked.picture_Q), ", another picture")
    blind = answerer.answers(None, ", no picture")
    numbers, chance, more, each = scored(asked, said, other, blind, len(bench.collection), bench.options.seed)
    missing = {name: f"no question has the answer type {kind}" for name, kind in OFFICIAL_TYPES.items() if name not in numbers}
    details["told"].append(told_types(more["by_answer_type"]))
    return Outcome(numbers, missing, chance, details | more, files, each)


def another_picture(picture_Q: np.ndarray) -> np.ndarray:
    """For each question the next one of the pictures that are asked about. Raises `NotApplicable` where there is no other."""
    pictures, place_Q = np.unique(picture_Q, return_inverse=True)
    if len(pictures) < 2:
        raise NotApplicable("all questions are on one picture: nothing to compare with")
    return np.roll(pictures, -1)[place_Q]


def scored(
    asked: Asked, said: list[str], other: list[str], blind: list[str], pictures: int, seed: int
) -> tuple[dict[str, float], dict[str, float], dict[str, Any], dict[str, np.ndarray]]:
    """(numbers, chance, details, numbers of each picture) of answers to the right picture, to another, to none.

    Args:
        pictures: I.
    """
    answers, types = asked.table["answers"].to_pylist(), asked.table["answer_type"].to_pylist()
    forms = asked.table["question_type"].to_pylist()
    right_Q, mean = accuracies(said, answers), lambda values: 100.0 * float(np.mean(values))
    shuffled = [answers[at] for at in np.random.default_rng(seed).permutation(len(said))]
    every = {
        "accuracy": right_Q,
        "accuracy_other_picture": accuracies(other, answers),
        "accuracy_blind": accuracies(blind, answers),
        "accuracy_shuffled": accuracies(said, shuffled),
        "looked": np.array([float(a != b) for a, b in zip(said, other, strict=True)]),
    }
    means = {name: by_picture(value_Q, asked.picture_Q, pictures) for name, value_Q in every.items()}
    for name, kind in OFFICIAL_TYPES.items():
        of_kind_Q = np.array([each == kind for each in types])
        if of_kind_Q.any():
            means[name] = by_picture(right_Q[of_kind_Q], asked.picture_Q[of_kind_Q], pictures)
    asked_I = means["accuracy"].count_I > 0
    each = by_type(right_Q, types)
    majority = Counter(answer for given in answers for answer in given).most_common(1)[0][0]
    usual_Q = accuracies(most_usual(answers, forms), answers)
    numbers = {
        **{name: mean(value_Q) for name, value_Q in every.items()},
        **mean_intervals({"accuracy": Mean(means["accuracy"].sum_I[asked_I], means["accuracy"].count_I[asked_I])}, seed),
        **{name: each[kind] for name, kind in OFFICIAL_TYPES.items() if kind in each},
        "accuracy_usual": mean(usual_Q),
        "accuracy_majority": mean(accuracies([majority] * len(said), answers)),
        "accuracy_ceiling": mean(ceilings(answers, asked.candidates)),
    }
    usual, ids = by_type(usual_Q, types), asked.table["id"].to_pylist()
    shown = np.unique(np.linspace(0, len(said) - 1, num=min(SHOWN, len(said))).round().astype(int)).tolist()
    more = {
        "by_answer_type": {
            kind: {"accuracy": value, "usual": usual[kind], "questions": types.count(kind)} for kind, value in each.items()
        },
        "by_question_type": by_type(right_Q, forms),
        "majority_answer": majority,
        "examples": [
            {
                "question_id": ids[at],
                "picture": int(asked.picture_Q[at]),
                "question": asked.table["question"][at].as_py(),
                "answers": dict(Counter(answers[at]).most_common()),
                "said": said[at],
                "accuracy": float(right_Q[at]),
            }
            for at in shown
        ],
    }
    own = {name: mean.value_I for name, mean in means.items()}
    own |= {f"{name}_count": mean.count_I for name, mean in means.items()}  # of questions
    return numbers, {"accuracy": numbers["accuracy_usual"]}, more, own


def by_picture(value_Q: np.ndarray, picture_Q: np.ndarray, pictures: int) -> Mean:
    """A mean over questions, in percent, as what each of so many pictures adds to it.

    Args:
        value_Q: 0 to 1.
    """
    return Mean(100.0 * np.bincount(picture_Q, value_Q, pictures), np.bincount(picture_Q, minlength=pictures).astype(np.float64))


def told_types(types: dict[str, dict[str, float]]) -> str:
    """One line for people: how right answers of each type are, and the usual ones in brackets."""
    parts = (f"{kind} {of['accuracy']:.1f} % ({of['usual']:.1f})" for kind, of in types.items())
    return f"questions by answer type, the usual answer in brackets: {', '.join(parts)}"


def most_usual(answers: list[list[str]], forms: list[str]) -> list[str]:
    """For each question the most frequent answer to all questions of its type."""
    counts: dict[str, Counter] = {}
    for form, given in zip(forms, answers, strict=True):
        counts.setdefault(form, Counter()).update(given)
    best = {form: own.most_common(1)[0][0] for form, own in counts.items()}
    return [best[form] for form in forms]


def depends(inputs: Inputs) -> dict[str, Any]:
    return {"questions": None if inputs.questions is None else inputs.questions.digest, "beams": inputs.options.beams}


NUMBERS = with_bounds(
    {
        "accuracy": Wording(
            "Accuracy", "%", "VQA's accuracy: the share of 3 other annotators who agree, at most 1, a mean over ten"
        ),
        "accuracy_yes_no": Wording("Accuracy, yes/no", "%", "of VQA v2's answer type yes/no"),
        "accuracy_number": Wording("Accuracy, number", "%", "of answer type number"),
        "accuracy_other": Wording("Accuracy, other", "%", "of answer type other"),
        "accuracy_other_picture": Wording(
            "Accuracy on another picture",
            "%",
            "control: the same questions, each on the next picture. Close to the first line: it does not look",
            control=True,
        ),
        "accuracy_blind": Wording(
            "Accuracy without a picture", "%", "control: the same questions on a picture of the mean colour", control=True
        ),
        "accuracy_usual": Wording(
            "The usual answer",
            "%",
            "control: the most frequent answer to each type of question, known from these very questions",
            control=True,
        ),
        "accuracy_majority": Wording(
            "The most frequent answer", "%", "control: one answer to all questions, the most frequent one", control=True
        ),
        "accuracy_shuffled": Wording(
            "Accuracy, answers shuffled", "%", "control: each answer judged by another question's annotators", control=True
        ),
        "accuracy_ceiling": Wording("The best candidate", "%", "the most that can be reached with these candidates", control=True),
        "looked": Wording("Answers that change with the picture", "%", "answers that are others on another picture"),
    },
    lambda name: name == "accuracy",
)
TASK = Task(
    name="vqa",
    title="Questions",
    meaning="The model answers questions on pictures, always with one of the candidates. Many questions can be guessed without "
    "looking: the controls say how far that goes.",
    numbers=NUMBERS,
    headlines=("accuracy", "accuracy_other_picture", "accuracy_blind", "accuracy_usual", "accuracy_majority", "accuracy_ceiling"),
    run=run_vqa,
    files=("vqa_results.json",),
    each=True,
    depends=depends,
)

"""Which pictures go with a word? WinoGAViL's questions (eval/exports/winogavil.py), asked as by DataComp's eval_utils/wino_eval.py.

The n pictures whose cosine with "A CUE" or "An CUE" is highest are the answer, n as many as people chose; its score is the Jaccard
index with theirs. DataComp's metric is the mean over questions of 10 to 12 pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sycoca_ds.eval.datasets.reading import Question
from sycoca_ds.eval.runner.bench import Bench
from sycoca_ds.eval.stats.cosines import exact_unit_vectors
from sycoca_ds.eval.stats.intervals import HOW
from sycoca_ds.eval.stats.paired import KEY
from sycoca_ds.eval.task import NotApplicable, Outcome, Task, Wording

SIZES = {
    "jaccard": (0, math.inf),
    "jaccard_5": (5, 5),
    "jaccard_6": (6, 6),
    "jaccard_10": (10, 10),
    "jaccard_12": (12, 12),
    "jaccard_5_6": (0, 6),
    "jaccard_10_12": (10, math.inf),
}
"""{number: fewest and most pictures of its questions}."""


def prompt(cue: str) -> str:
    """As wino_eval.get_clip_prompt."""
    said = cue.lower()
    return f"{'An' if said[0] in 'aeiou' else 'A'} {said}"


def jaccard(right: Sequence[int], said: Sequence[int]) -> float:
    return len(set(right) & set(said)) / len(set(right) | set(said))


def chance(question: Question) -> float:
    """What the index comes to on average where as many pictures are drawn."""
    n, m = len(question.right), question.candidates
    drawn = math.comb(m, n)
    return sum(math.comb(n, k) * math.comb(m - n, n - k) / drawn * k / (2 * n - k) for k in range(n + 1))


def run_association(bench: Bench) -> Outcome:
    """Percent by the sizes of questions, null where there are none. Of equal scores the later picture wins."""
    questions = bench.collection.cues
    if not questions:
        raise NotApplicable("these pictures have no cues, as WinoGAViL's have (--data-root ... --sets parquet:winogavil)")
    image_IE = exact_unit_vectors(bench.image_IE)
    text_QE = exact_unit_vectors(bench.encode_texts([prompt(question.cue) for question in questions], "read cues"))
    score_Q = np.zeros(len(questions))
    for place, (question, text_E) in enumerate(zip(questions, text_QE, strict=True)):
        score = (image_IE[question.first : question.first + question.candidates] @ text_E).numpy()
        said = np.argsort(score, kind="stable")[-len(question.right) :].tolist()
        score_Q[place] = 100 * jaccard(question.right, said)
    chance_Q = np.array([100 * chance(question) for question in questions])
    size_Q = np.array([question.candidates for question in questions])
    numbers, chances, each = {}, {}, {}
    for name, (fewest, most) in SIZES.items():
        own_Q = (fewest <= size_Q) & (size_Q <= most)
        numbers[name] = None
        if own_Q.any():
            numbers[name], chances[name] = float(score_Q[own_Q].mean()), float(chance_Q[own_Q].mean())
            each[name] = np.where(own_Q, score_Q, np.nan)
    reasons = {name: "no question has so many pictures" for name, value in numbers.items() if value is None}
    names = np.array([f"question {place}: {question.cue}" for place, question in enumerate(questions)])
    details = {"questions": len(questions), "interval": HOW}
    return Outcome(numbers, reasons, chances, details, each={KEY: names, **each})


TASK = Task(
    name="association",
    title="Pictures that go with a word",
    meaning=(
        "A word that names none of the pictures, and 5 to 12 pictures: which of them did people find to go with it? The answer is "
        "as many of the nearest as they chose; its score is what both have in common, over what either has (Jaccard index)."
    ),
    numbers={
        "jaccard": Wording("Jaccard index", "%", "mean over all questions"),
        "jaccard_5": Wording("Jaccard index, 5 pictures", "%", "... over those of 5 pictures", quiet=True),
        "jaccard_6": Wording("Jaccard index, 6 pictures", "%", "... of 6", quiet=True),
        "jaccard_10": Wording("Jaccard index, 10 pictures", "%", "... of 10", quiet=True),
        "jaccard_12": Wording("Jaccard index, 12 pictures", "%", "... of 12", quiet=True),
        "jaccard_5_6": Wording("Jaccard index, up to 6 pictures", "%", "... of at most 6", quiet=True),
        "jaccard_10_12": Wording("Jaccard index, 10 to 12 pictures", "%", "... of at least 10: DataComp's metric"),
    },
    headlines=("jaccard_10_12", "jaccard"),
    run=run_association,
    each=True,
)

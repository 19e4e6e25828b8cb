"""VQA's accuracy, as the official evaluation computes it, and what no model can exceed. Legend: Q questions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sycoca_ds.eval.vqa.normalisation import normalised, stripped

ENOUGH = 3
"""Other annotators who have to have given an answer for it to count fully."""


def comparable(answers: Sequence[str]) -> tuple[list[str], bool]:
    """(the annotators' answers as they are compared, whether a prediction is normalised for it): where all agree nobody is."""
    answers = [stripped(answer) for answer in answers]
    differ = len(set(answers)) > 1
    return ([normalised(answer) for answer in answers] if differ else answers), differ


def left_one_out(matches: int, annotators: int) -> float:
    """The mean over the annotators of min(1, matches among the others / 3): 0, 0.3, 0.6, 0.9, then 1 of ten."""
    own, rest = min(1.0, (matches - 1) / ENOUGH), min(1.0, matches / ENOUGH)
    return (matches * own + (annotators - matches) * rest) / annotators


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Of one question, 0 to 1. The others are told apart by their place, as VQA v2's `answer_id` does."""
    known, differ = comparable(answers)
    said = stripped(prediction)
    return left_one_out(known.count(normalised(said) if differ else said), len(known))


def accuracies(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """(Q,) float64."""
    return np.array([accuracy(said, given) for said, given in zip(predictions, answers, strict=True)])


def ceilings(answers: Sequence[Sequence[str]], candidates: Sequence[str]) -> np.ndarray:
    """(Q,) float64: the accuracy of the candidate that is best for each question."""
    plain = {stripped(candidate): candidate for candidate in candidates}
    equal = {normalised(text): candidate for text, candidate in plain.items()}

    def best(given: Sequence[str]) -> float:
        known, differ = comparable(given)
        said = equal if differ else plain
        return max((accuracy(said[answer], given) for answer in set(known) & said.keys()), default=0.0)

    return np.array([best(given) for given in answers])


def by_type(accuracy_Q: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """{type: mean, in percent}, by name."""
    types = np.asarray(types)
    return {str(name): 100.0 * float(accuracy_Q[types == name].mean()) for name in sorted(set(types.tolist()))}

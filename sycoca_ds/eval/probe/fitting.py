"""The classifier: scikit-learn's logistic regression, and the search for its C.

Legend: N pictures, D width of the features, K classes.
Protocol: CLIP (Radford et al. 2021), A.3. L-BFGS, at most 1,000 iterations; C from 1e-6 to 1e6, 8 values a decade, by a search that
begins with every second decade and halves the distance around the best.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipeline.errors import UserError, how_to_install

MOST_ITERATIONS = 1000
A_DECADE, DECADES = 8, (-6, 6)
GRID = tuple(10.0 ** (DECADES[0] + place / A_DECADE) for place in range(A_DECADE * (DECADES[1] - DECADES[0]) + 1))
"""Every C that may be tried."""
FIRST_STEP = 2 * A_DECADE
GRADIENT = 1e-4
"""Largest slope of the summed loss at which L-BFGS may stop: scikit-learn's own `tol` when CLIP was measured. Since 1.4 it divides
the loss by the number of pictures and leaves `tol` as it is (scikit-learn #26721): it stops N times as early, before large C are
fitted."""


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier."""

    classifier: Any
    iterations: int
    converged: bool

    def logits(self, feature_ND: np.ndarray, classes: int) -> np.ndarray:
        """(N, K) float64, minus infinity for classes that no training picture had."""
        decided = self.classifier.decision_function(feature_ND)
        if decided.ndim == 1:  # of two classes scikit-learn gives the second's alone
            decided = np.stack([-decided, decided], axis=1)
        logit_NK = np.full((len(feature_ND), classes), -np.inf)
        logit_NK[:, self.classifier.classes_] = decided
        return logit_NK


def needs_sklearn() -> None:
    """UserError names the extra if scikit-learn is missing: before features are computed for hours."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise UserError(f"linear probe: {error}; {how_to_install('eval')} brings it") from error


class Iterations:
    """A callback of scikit-learn 1.9 that counts L-BFGS's iterations aloud."""

    def __init__(self, told: Callable[[int], None]):
        self.told, self.done = told, 0

    def setup(self, estimator: Any, context: Any) -> None:
        self.done = 0

    def teardown(self, estimator: Any, context: Any) -> None:
        pass

    def on_fit_task_begin(self, estimator: Any, context: Any, **_: Any) -> None:
        pass

    def on_fit_task_end(self, estimator: Any, context: Any, **_: Any) -> None:
        if context.task_name == "lbfgs-iter":
            self.done += 1
            self.told(self.done)


def fit(feature_ND: np.ndarray, label_N: np.ndarray, c: float, told: Callable[[int], None] = lambda _: None) -> Fitted:
    """Minimises C times the summed cross entropy plus half the squared weights, biases free. Two classes or more.

    Args:
        told: is given the number of each iteration that has ended, where scikit-learn is 1.9 or newer.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    classifier = LogisticRegression(C=c, max_iter=MOST_ITERATIONS, tol=GRADIENT / len(label_N))
    if hasattr(classifier, "set_callbacks"):
        classifier.set_callbacks(Iterations(told))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(feature_ND, label_N)
    stopped = any(issubclass(warning.category, ConvergenceWarning) for warning in said)
    return Fitted(classifier, int(np.max(classifier.n_iter_)), not stopped)


def search(score: Callable[[int], float], places: int = len(GRID), first_step: int = FIRST_STEP) -> tuple[int, dict[int, float]]:
    """The place with the highest score among those that are tried, and all that were: {place: score}. Of equal ones the lowest, the
    smallest C, wins.

    Every `first_step`-th place is tried, then both neighbours of the best at half the distance, and so on down to 1.
    """
    tried: dict[int, float] = {}

    def best() -> int:
        return max(sorted(tried), key=tried.__getitem__)

    for place in range(0, places, first_step):
        tried[place] = score(place)
    step = first_step // 2
    while step:
        centre = best()
        for place in (centre - step, centre + step):
            if 0 <= place < places and place not in tried:
                tried[place] = score(place)
        step //= 2
    return best(), tried

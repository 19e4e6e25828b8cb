"""The classifier and the search for its C: against scikit-learn as one writes it by hand, and on what must give all or nothing."""

import numpy as np
import pytest

from sycoca_ds.eval.probe import fitting
from sycoca_ds.eval.probe.fitting import GRID, fit, search

CLIP = [1e-6, 1e-4, 1e-2, 1e0, 1e2, 1e4, 1e6]
"""First values of A.3."""


def clouds(count, classes=5, width=12, apart=1.0, seed=0):
    random = np.random.default_rng(seed)
    middle = np.random.default_rng(99).standard_normal((classes, width)) * apart
    label = random.integers(0, classes, count)
    return middle[label] + random.standard_normal((count, width)), label


def test_the_grid_is_that_of_clip():
    assert len(GRID) == 97 and GRID[0] == 1e-6 and GRID[-1] == pytest.approx(1e6)
    assert [GRID[place] for place in range(0, 97, 16)] == pytest.approx(CLIP)
    assert any(abs(c - 0.316) < 5e-4 for c in GRID), "the C of CLIP's README"


def by_hand(score):
    """A.3 in logarithms: every second decade, then both neighbours of the best at 1, 1/2, 1/4, 1/8 decade."""
    tried = {float(power): score(power) for power in (-6, -4, -2, 0, 2, 4, 6)}
    for distance in (1.0, 0.5, 0.25, 0.125):
        top = max(tried.values())
        best = min(power for power in tried if tried[power] == top)
        for power in (best - distance, best + distance):
            if -6 <= power <= 6 and power not in tried:
                tried[power] = score(power)
    top = max(tried.values())
    return min(power for power in tried if tried[power] == top), tried


@pytest.mark.parametrize(
    "score",
    [
        *(lambda power, peak=peak: -((power - peak) ** 2) for peak in (-6, -5.87, -1.4, 0.3, 2.125, 6)),
        lambda power: 50.0,  # all equal: the smallest C
        lambda power: min(power, 1.0),  # a plateau
        lambda power: np.cos(3 * power),  # several peaks
    ],
)
def test_the_search_against_one_by_hand(score):
    best, tried = search(lambda place: score(place / 8 - 6))
    power, expected = by_hand(score)
    assert {place / 8 - 6: value for place, value in tried.items()} == expected
    assert best / 8 - 6 == power and len(tried) <= 15


@pytest.mark.parametrize("classes", [2, 5])
def test_a_fit_is_scikit_learns(classes):
    from sklearn.linear_model import LogisticRegression

    (train, label), (test, _) = clouds(300, classes), clouds(80, classes, seed=1)
    for c in (1e-4, 0.316, 1e4):
        plain = LogisticRegression(C=c, max_iter=1000, tol=1e-4 / 300, solver="lbfgs").fit(train, label)
        fitted = fit(train, label, c)
        assert (fitted.logits(test, classes).argmax(1) == plain.predict(test)).all()
        assert fitted.classifier.coef_ == pytest.approx(plain.coef_, abs=0) and fitted.iterations == plain.n_iter_[0]
        assert fitted.converged == (fitted.iterations < 1000) and (fitted.converged or c > 1)


def test_a_fit_is_at_the_minimum():
    """The loss by hand, and its slopes: those of the sum over pictures are small, which scikit-learn's own `tol` does not give."""
    from sklearn.linear_model import LogisticRegression

    train, label = clouds(400, apart=0.4)
    train /= np.linalg.norm(train, axis=1, keepdims=True)

    def slope(classifier, c):
        logit = train @ classifier.coef_.T + classifier.intercept_
        chance = np.exp(logit - logit.max(1, keepdims=True))
        chance /= chance.sum(1, keepdims=True)
        return np.abs((chance - np.eye(5)[label]).T @ train + classifier.coef_ / c).max()

    for c in (1.0, 1e4):
        assert slope(fit(train, label, c).classifier, c) < 1e-3
        assert slope(LogisticRegression(C=c, max_iter=1000).fit(train, label), c) > 5e-3


def test_what_must_give_all_and_what_must_give_nothing():
    (train, label), (test, truth) = clouds(500, apart=9.0), clouds(2000, apart=9.0, seed=1)
    assert (fit(train, label, 1.0).logits(test, 5).argmax(1) == truth).all()
    # five clouds that lie apart are all right or all wrong: the mean over many shufflings
    many = [
        (fit(train, np.random.default_rng(seed).permutation(label), 1.0).logits(test, 5).argmax(1) == truth).mean()
        for seed in range(30)
    ]
    assert np.mean(many) == pytest.approx(0.2, abs=0.08)


def test_classes_without_training_picture_are_never_chosen():
    train, label = clouds(200, classes=4)
    logits = fit(train, label + (label > 1), 1.0).logits(train, 6)
    assert np.isneginf(logits[:, [2, 5]]).all() and np.isfinite(logits[:, [0, 1, 3, 4]]).all()


def test_a_fit_that_is_cut_off_says_so(monkeypatch):
    train, label = clouds(200)
    monkeypatch.setattr(fitting, "MOST_ITERATIONS", 3)
    cut = fit(train, label, 1e6)
    assert not cut.converged and cut.iterations == 3


def test_iterations_are_counted_aloud(monkeypatch):
    """By scikit-learn 1.9 and newer; what is fitted does not change."""
    train, label = clouds(300)
    told = []
    fitted = fit(train, label, 1.0, told.append)
    if hasattr(fitted.classifier, "set_callbacks"):
        assert told[: fitted.iterations] == list(range(1, fitted.iterations + 1)) and len(told) - fitted.iterations in (0, 1)
    assert (fitted.classifier.coef_ == fit(train, label, 1.0).classifier.coef_).all()

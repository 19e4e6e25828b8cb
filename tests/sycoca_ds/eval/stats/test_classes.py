"""Classifiers made of names, and scores by class and by group, against slow references, scikit-learn and hand-worked cases."""

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from sycoca_ds.eval.stats.classes import class_scores, class_weights, classification_metrics, macro_f1, own_class_ranks, worst_group


def test_class_weights_normalise_each_prompt_before_the_mean():
    table = {
        "a red": [3.0, 4.0, 0.0],
        "the red one": [0.0, 0.0, 10.0],
        "a blue": [1.0, 0.0, 0.0],
        "the blue one": [1.0, 0.0, 0.0],
    }
    asked = []

    def encode(prompts):
        asked.extend(prompts)
        return torch.tensor([table[prompt] for prompt in prompts])

    weights = class_weights(encode, ["red", "blue"], ["a {c}", "the {c} one"])
    assert asked == ["a red", "the red one", "a blue", "the blue one"]
    mean = np.array([0.6, 0.8, 1.0]) / 2
    assert weights[0].tolist() == pytest.approx((mean / np.linalg.norm(mean)).tolist(), abs=1e-6)
    assert weights[1].tolist() == [1.0, 0.0, 0.0]


def test_metrics_against_a_loop():
    rng = np.random.default_rng(0)
    logits = np.round(rng.standard_normal((200, 7)), 1).astype(np.float32)  # rounded: ties occur
    labels = rng.integers(0, 6, 200)  # class 6 has no image
    order = [sorted(range(7), key=lambda k, row=row: (-row[k], k)) for row in logits]
    numbers = classification_metrics(torch.tensor(logits), labels)
    hit = np.array([row[0] == label for row, label in zip(order, labels, strict=True)])
    assert numbers["top1"] == pytest.approx(100 * hit.mean())
    assert numbers["top5"] == pytest.approx(100 * np.mean([label in row[:5] for row, label in zip(order, labels, strict=True)]))
    assert numbers["mean_per_class"] == pytest.approx(100 * np.mean([hit[labels == k].mean() for k in range(6)]))


def test_hand_worked_case_and_no_top5_below_five_classes():
    logits = torch.tensor([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    assert classification_metrics(logits, np.array([0, 0, 1, 1])) == {
        "top1": 75.0,
        "top5": None,
        "mean_per_class": 75.0,
    }
    numbers = classification_metrics(logits[:3], np.array([0, 0, 1]))
    assert numbers["mean_per_class"] == 50.0 and numbers["top1"] == pytest.approx(200 / 3)


def drawn(pictures: int, width: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 features of pictures and classes, of which the last is the first."""
    generator = torch.Generator().manual_seed(0)
    feature_NE, weight_KE = (torch.randn(rows, width, generator=generator) for rows in (pictures, classes))
    weight_KE[-1] = weight_KE[0]
    return (torch.nn.functional.normalize(rows, dim=1) for rows in (feature_NE, weight_KE))


def test_of_two_classes_of_one_name_the_first_is_ahead_for_every_picture():
    """At this shape the float32 product puts the last class ahead of the first for 225 of 500 pictures."""
    score_NK = class_scores(*drawn(500, 512, 10))
    assert torch.equal(score_NK[:, 0], score_NK[:, 9])
    first, last = (own_class_ranks(score_NK, np.full(500, label)) for label in (0, 9))
    assert (last > first).all() and (first == 0).sum() > 20
    assert classification_metrics(score_NK, np.full(500, 9))["top1"] == 0.0


def test_how_many_pictures_there_are_changes_no_rank():
    """In float32 the last class is ahead of the first for 3 of these 8 pictures together, and for 5 of them one by one."""
    feature_NE, weight_KE = drawn(8, 512, 10)
    label_N = np.full(8, 9)
    together = own_class_ranks(class_scores(feature_NE, weight_KE), label_N)
    alone = [own_class_ranks(class_scores(feature_NE[n : n + 1], weight_KE), label_N[n : n + 1]).item() for n in range(8)]
    assert together.tolist() == alone


@pytest.mark.parametrize("seed", range(5))
def test_macro_f1_is_scikit_learns(seed):
    """As WILDS calls it: classes that are only guessed are no part of the mean."""
    random = np.random.default_rng(seed)
    label_N, guess_N = random.integers(0, 7, 60), random.integers(0, 9, 60)
    label_N[label_N == 3] = 2
    expected = f1_score(label_N, guess_N, average="macro", labels=np.unique(label_N))
    assert macro_f1(guess_N, label_N) == pytest.approx(100 * expected)
    assert macro_f1(label_N, label_N) == 100 and macro_f1(np.full(60, 8), label_N) == 0


@pytest.mark.parametrize("seed", range(5))
def test_the_worst_group_is_that_of_a_loop(seed):
    random = np.random.default_rng(seed)
    right_N, group_N = random.random(50) < 0.5, [f"region {number}" for number in random.integers(0, 6, 50)]
    shares = {
        name: np.mean([right for right, group in zip(right_N, group_N, strict=True) if group == name])
        for name in sorted(set(group_N))
    }
    value, worst = worst_group(right_N, group_N)
    assert value == pytest.approx(100 * min(shares.values())) and worst == min(shares, key=shares.get)
    assert worst_group(np.ones(50), group_N)[0] == 100

"""Class weights and accuracies against slow references."""

import numpy as np
import pytest
import torch

from sycoca_ds.eval.tasks.classification import class_weights, classification_metrics


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

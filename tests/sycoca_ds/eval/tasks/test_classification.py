"""Class weights and accuracies against slow references."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sycoca_ds.eval.options import SuiteOptions
from sycoca_ds.eval.runner.bench import Bench, Inputs
from sycoca_ds.eval.tasks.classification import class_scores, class_weights, classification_metrics, own_class_ranks


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


def test_texts_of_the_same_tokens_are_read_once():
    """The model here rounds a text by its place in the batch, as products of matrices may do."""

    def model(task, text_BL):
        asked.append(len(text_BL))
        return text_BL.float() + 1e-6 * torch.rand(text_BL.shape)

    asked, words = [], {"a": 1, "b": 2}
    tokenizer = SimpleNamespace(encode=lambda texts, length: np.array([[words[text.lower()]] * length for text in texts]))
    config = SimpleNamespace(model=SimpleNamespace(text=SimpleNamespace(context_length=4)))
    bench = Bench(model, config, tokenizer, None, torch.device("cpu"), Inputs(SuiteOptions(batch_size=2)))
    feature_TE = bench.encode_texts(["b", "a", "A", "b", "a"])
    assert asked == [2] and feature_TE.round()[:, 0].tolist() == [2, 1, 1, 2, 1]
    assert torch.equal(feature_TE[1:3], feature_TE[[4, 4]]) and torch.equal(feature_TE[0], feature_TE[3])

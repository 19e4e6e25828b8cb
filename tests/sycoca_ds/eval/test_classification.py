"""Class weights and accuracies against slow references; the label file's errors."""

import json

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.classification import class_weights, classification_metrics, load_labels

GOOD = {"name": "s", "classes": ["red", "blue"], "templates": ["a {c}", "the {c} one"], "labels": {"u0": 0, "u1": 1}}


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


def write(tmp_path, **change):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({**GOOD, **change}))
    return path


def test_labels_by_url(tmp_path):
    labels = load_labels(write(tmp_path))
    assert labels.of(["u1", "elsewhere", "u0"]).tolist() == [1, -1, 0]
    with pytest.raises(UserError, match="none of the data set's 2 urls"):
        labels.of(["x", "y"])


def test_two_classes_of_one_name_are_taken_and_said(tmp_path, caplog):
    """As in CLIP's names of ImageNet's 1,000 classes; at their equal logits the first one wins."""
    labels = load_labels(write(tmp_path, classes=["red", "blue", "red"], labels={"u0": 2, "u1": 0}))
    assert labels.classes == ("red", "blue", "red") and "two classes share the name red" in caplog.text
    found = classification_metrics(torch.tensor([[0.9, 0.1, 0.9], [0.9, 0.1, 0.9]]), labels.of(["u0", "u1"]))
    assert found["top1"] == 50.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"u0": 2}}, "u0 has class index 2, expected a whole number from 0 to 1"),
        ({"labels": {"u0": -1}}, "class index -1"),
        ({"labels": {"u0": "red"}}, "class index 'red'"),
        ({"labels": {"u0": True}}, "class index True"),
        ({"labels": {}}, "field 'labels'"),
        ({"classes": []}, "field 'classes'"),
        ({"templates": ["a thing"]}, "lacks {c}"),
        ({"templates": "a {c}"}, "field 'templates'"),
    ],
)
def test_bad_label_files_name_the_field(tmp_path, change, message):
    with pytest.raises(UserError) as error:
        load_labels(write(tmp_path, **change))
    assert message in str(error.value) and "labels.json" in str(error.value)


def test_missing_and_broken_label_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        load_labels(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"classes": [')
    with pytest.raises(UserError, match="not readable as JSON"):
        load_labels(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="found a list"):
        load_labels(tmp_path / "list.json")

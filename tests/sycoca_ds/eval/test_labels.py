"""The label file: what it gives each url, and its errors."""

import json

import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.labels import load_labels
from sycoca_ds.eval.stats.classes import classification_metrics

GOOD = {"name": "s", "classes": ["red", "blue"], "templates": ["a {c}", "the {c} one"], "labels": {"u0": 0, "u1": 1}}


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
    with pytest.raises(UserError, match="not readable as JSON.*expected an object with name, classes, templates, labels"):
        load_labels(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(UserError, match="found a list"):
        load_labels(tmp_path / "list.json")

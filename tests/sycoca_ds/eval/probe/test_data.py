"""Which training pictures are held out to choose C, and labels that do not fit."""

import json

import numpy as np
import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.labels import load_labels
from sycoca_ds.eval.probe.data import held_out, own_probe_data
from tests.worlds.trainings.eval_world import make_data, make_labels


def test_one_in_five_of_each_class_is_held_out():
    label = np.repeat([0, 1, 2, 3, 4, 7], [1, 2, 4, 5, 10, 34])
    label = np.random.default_rng(0).permutation(label)
    away = held_out(label, seed=0)
    assert [int(away[label == k].sum()) for k in (0, 1, 2, 3, 4, 7)] == [0, 1, 1, 1, 2, 6]
    assert (away == held_out(label, seed=0)).all() and (away != held_out(label, seed=1)).any()
    often = np.mean([held_out(np.zeros(10, int), seed) for seed in range(2000)], axis=0)
    assert often == pytest.approx(0.2, abs=0.04), "every picture as often as the others"


def test_labels_of_other_classes_are_told(tmp_path):
    make_data(tmp_path / "train", images=6, shards=1)
    make_labels(tmp_path / "labels.json", images=6)
    tested = load_labels(tmp_path / "labels.json")
    data = own_probe_data(tmp_path / "train", None, tested, 48)
    assert data.validation is None and data.train.label_I.tolist() == list(tested.labels.values())
    other = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(other | {"classes": other["classes"][::-1]}))
    with pytest.raises(UserError, match="--probe-labels .*other.json: 24 classes that are not the 24 of --labels"):
        own_probe_data(tmp_path / "train", tmp_path / "other.json", tested, 48)
    with pytest.raises(UserError, match="--probe-train goes with --labels"):
        own_probe_data(tmp_path / "train", None, None, 48)

"""The linear probe from pictures on disk to its numbers: against a plain scikit-learn script on its features, value by value."""

import json
import sys

import numpy as np
import pytest
import torch

from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.datasets.registry import SETS
from sycoca_ds.eval.runner.cache import entries
from sycoca_ds.eval.tasks import linear_probe
from sycoca_ds.eval.tasks.linear_probe import TASK
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.listed import write_cub, write_dogs, write_dtd, write_flowers, write_food, write_pets, write_textures
from tests.worlds.published.packed import write_digits, write_mnist
from tests.worlds.trainings.eval_world import made_of_pictures, make_data, make_labels, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("probed") / "run")


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def probed(run, out, **options):
    """Exit status, record of the task, sets.json's record or None."""
    config = EvaluateConfig(str(run), out=str(out), device="cpu", precision="fp32", gallery=2, **options)
    status = evaluate(config)
    place = out / options["sets"][0] if "sets" in options else out
    sets = json.loads((out / "sets.json").read_text())["sets"] if "sets" in options else None
    return status, json.loads((place / "results.json").read_text())["tasks"]["linear_probe"], sets


def outputs(run, pictures, task="image_outputs"):
    """(N, D) float64 of uint8 pictures (3, S, S), one at a time, by the model itself."""
    from sycoca_ds.engine.checkpoint.weights import load_for_inference
    from sycoca_ds.model.pixels import normalise

    model = load_for_inference(run).model.eval()
    with torch.inference_mode():
        return torch.cat([model(task, image_BCHW=normalise(picture[None])) for picture in pictures]).double().numpy()


def script(train, train_label, val, val_label, test, test_label, mean_per_class=False):
    """What one would write with scikit-learn alone: the sweep of A.3, the last fit, and its numbers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, balanced_accuracy_score

    measure = balanced_accuracy_score if mean_per_class else accuracy_score

    def classifier(power, x, y):
        return LogisticRegression(C=10.0**power, max_iter=1000, tol=1e-4 / len(y)).fit(x, y)

    tried = {}
    for powers in ((-6, -4, -2, 0, 2, 4, 6), 1.0, 0.5, 0.25, 0.125):
        if isinstance(powers, float):
            top = min(p for p in tried if tried[p] == max(tried.values()))
            powers = [p for p in (top - powers, top + powers) if -6 <= p <= 6]
        for power in powers:
            tried.setdefault(power, 100 * measure(val_label, classifier(power, train, train_label).predict(val)))
    power = min(p for p in tried if tried[p] == max(tried.values()))
    both, both_label = np.concatenate([train, val]), np.concatenate([train_label, val_label])
    last = classifier(power, both, both_label)
    guess = last.predict(test)
    return {
        "c": 10.0**power,
        "tried": {10.0**p: value for p, value in tried.items()},
        "top1": 100 * accuracy_score(test_label, guess),
        "mean_per_class": 100 * balanced_accuracy_score(test_label, guess),
        "train_top1": 100 * accuracy_score(both_label, last.predict(both)),
        "guess": guess,
        "logit": last.decision_function(test),
    }


@pytest.mark.parametrize("features", ["output", "embedding"])
def test_digits_against_a_plain_script(run, tmp_path, features):
    root, out = tmp_path / "sets", tmp_path / "out"
    write_digits(root)
    status, record, sets = probed(run, out, data_root=str(root), sets=("mnist",), probe_features=features)
    assert status == 0 and record["status"] == "done" and sets["mnist"]["primary"] == "top1"
    assert "split train: 300 pictures, officially 60,000" in sets["mnist"]["not_as_published"]
    details, numbers = record["details"], record["metrics"]

    task = {"output": "image_outputs", "embedding": "image_features"}[features]
    data = {split: OfficialCollection(SETS["mnist"], root, 48, split) for split in ("train", "test")}
    kept = {key["split"]: found for key, found in entries(out / "cache", what="features of labelled images")}
    for split, part in data.items():
        assert kept[split]["feature"] == pytest.approx(outputs(run, map(part.image, range(len(part))), task), abs=1e-5)
        assert kept[split]["label"].tolist() == part.read.label_N.tolist() and kept[split]["feature"].dtype == np.float32
    x = {split: found["feature"].astype(np.float64) for split, found in kept.items()}
    y = {split: part.read.label_N for split, part in data.items()}
    random, away = np.random.default_rng(0), np.zeros(300, bool)
    for digit in range(10):  # one in five of each digit
        places = random.permutation(np.flatnonzero(y["train"] == digit))
        away[places[: len(places) // 5]] = True
    expected = script(x["train"][~away], y["train"][~away], x["train"][away], y["train"][away], x["test"], y["test"])

    assert details["c"] == pytest.approx(expected["c"]) and details["features"] == features
    assert {round(row["c"], 9): row["validation"] for row in details["sweep"]} == {
        round(c, 9): pytest.approx(value) for c, value in expected["tried"].items()
    }
    assert {name: numbers[name] for name in ("top1", "mean_per_class", "train_top1")} == {
        name: pytest.approx(expected[name]) for name in ("top1", "mean_per_class", "train_top1")
    }
    samples = np.load(out / "mnist/samples/linear_probe.npz")
    assert samples["guess"].tolist() == expected["guess"].tolist() and samples["label"].tolist() == y["test"].tolist()
    assert samples["logit"] == pytest.approx(expected["logit"], rel=1e-5)
    each = np.load(out / "mnist/each/linear_probe.npz")
    assert each["top1"].tolist() == (100.0 * (expected["guess"] == y["test"])).tolist()
    assert each["class"].tolist() == y["test"].tolist()
    assert made_of_pictures(out / "mnist", "linear_probe") == {"top1", "top5", "mean_per_class"}
    for row in details["each_class"]:
        digit = int(row["class"])
        assert row["right"] == pytest.approx(100 * np.mean(expected["guess"][y["test"] == digit] == digit))
        assert row["train"] == (y["train"] == digit).sum() and row["test"] == (y["test"] == digit).sum()
    assert numbers["top1_low"] < numbers["top1"] < numbers["top1_high"] and record["chance"]["top1"] == pytest.approx(10, abs=2)
    assert numbers["top1"] > 35 > 20 > numbers["top1_shuffled"], "digits are told apart; with their labels mixed they are not"
    assert details["train_images"] == 300 - away.sum() and details["validation_images"] == away.sum()
    page = (out / "mnist/report.html").read_text()
    assert "Linear probe" in page and details["told"][0].split(",")[0] in page


def test_classes_of_one_colour_are_all_right(run, tmp_path, capsys):
    """DTD's layout: its own validation split, both splits in the last fit."""
    root, out = tmp_path / "sets", tmp_path / "out"
    write_textures(root)
    status, record, _ = probed(run, out, data_root=str(root), sets=("dtd",))
    assert (
        status == 0 and record["metrics"]["top1"] == record["metrics"]["mean_per_class"] == record["metrics"]["validation"] == 100
    )
    assert (record["metrics"]["top1_low"], record["metrics"]["top1_high"]) == (100, 100)
    assert record["details"]["validated_on"] == "the set's val split" and record["details"]["train_images"] == 15
    assert record["details"]["validation_images"] == 10 and record["chance"]["top1"] == 20
    assert [row["train"] for row in record["details"]["each_class"]] == [5] * 5
    assert "linear probe: C = " in capsys.readouterr().out
    again = probed(run, out, data_root=str(root), sets=("dtd",))[1]
    assert again["reused"] and not probed(run, out, data_root=str(root), sets=("dtd",), probe_features="embedding")[1]["reused"]
    path = root / "dtd/labels/val1.txt"
    path.write_text("\n".join(path.read_text().split("\n")[1:]))
    assert probed(run, out, data_root=str(root), sets=("dtd",))[1]["details"]["validation_images"] == 9, (
        "another split, another result"
    )


def test_a_killed_probe_goes_on_where_it_was(run, tmp_path, monkeypatch):
    root, out = tmp_path / "sets", tmp_path / "out"
    write_textures(root)
    whole = probed(run, tmp_path / "whole", data_root=str(root), sets=("dtd",))[1]
    fits, original = [], linear_probe.fit

    def dying(*arguments):
        fits.append(arguments)
        if len(fits) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(linear_probe, "fit", dying)
    with pytest.raises(KeyboardInterrupt):
        probed(run, out, data_root=str(root), sets=("dtd",))
    assert len(entries(out / "cache", what="fits of a linear probe")[0][1]["c"]) == 3
    looked = []
    monkeypatch.setattr(OfficialCollection, "image", lambda *_, old=OfficialCollection.image: looked.append(1) or old(*_))
    found = probed(run, out, data_root=str(root), sets=("dtd",))[1]
    assert found["metrics"] == whole["metrics"] and found["details"]["sweep"] == whole["details"]["sweep"]
    assert len(fits) == 4 + len(whole["details"]["sweep"]) - 3 + 2, "three fits were kept; then the last one and the control"
    assert len(looked) <= 16, "features are not computed again: 16 pictures are looked at to choose threads"


def test_a_folder_of_ours(run, tmp_path):
    """Training pictures and tested ones in two folders with one label file; some have no label, some are in both."""
    make_data(tmp_path / "train", images=20)
    make_data(tmp_path / "test", images=12)
    make_labels(tmp_path / "labels.json", images=20)
    labels = json.loads((tmp_path / "labels.json").read_text())
    del labels["labels"][list(labels["labels"])[3]]
    labels["labels"] = {url: label % 3 for url, label in labels["labels"].items()}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    words = {"data": str(tmp_path / "test"), "labels": str(tmp_path / "labels.json"), "tasks": ("linear_probe",)}
    status, record, _ = probed(run, tmp_path / "out", probe_train=str(tmp_path / "train"), **words)
    details = record["details"]
    assert status == 0 and record["status"] == "done" and details["images"] == 11 and details["images_without_label"] == 1
    assert details["train_images"] + details["validation_images"] == 19
    told = "; ".join(details["told"])
    assert "12 tested pictures are among those to train on: the numbers are too good" in told
    assert "1 training pictures have no label" in told
    each = np.load(tmp_path / "out/each/linear_probe.npz")["top1"]
    assert np.isnan(each).sum() == 1 and np.nanmean(each) == pytest.approx(record["metrics"]["top1"])
    status, record, _ = probed(run, tmp_path / "none", **words)
    assert status == 0 and set(record["null_reasons"].values()) == {"no --probe-train FOLDER was given"}
    with pytest.raises(UserError, match="--probe-labels goes with --probe-train"):
        probed(run, tmp_path / "none", probe_labels="x.json", **words)
    with pytest.raises(UserError, match="--probe-features pooled: expected output or embedding"):
        probed(run, tmp_path / "none", probe_features="pooled", **words)


WRITERS = {  # set: writer, {split: labels} of what is fitted on, in order
    "dtd": (write_dtd, {"train": [1], "val": [0]}),
    "pets": (write_pets, {"trainval": [0, 1]}),
    "dogs": (write_dogs, {"train": [1, 0]}),
    "cub200": (write_cub, {"train": [1, 0]}),
    "flowers102": (write_flowers, {"train": [0], "val": [2]}),
    "mnist": (lambda root: write_mnist(root, True), {"train": [7, 2, 0, 9]}),
    "food101": (write_food, {"train": [0]}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_readers_hand_over_their_training_splits(tmp_path, name):
    writer, expected = WRITERS[name]
    writer(tmp_path)
    tested = OfficialCollection(SETS[name], tmp_path, 16)
    data = tested.probe_data()
    parts = [data.train, *([data.validation] if data.validation else [])]
    assert {part.name: part.label_I.tolist() for part in parts} == expected
    assert [facts["split"] for facts in tested.facts["fitted"]] == list(expected)
    assert [len(part.pictures) for part in parts] == [len(labels) for labels in expected.values()]
    assert SETS[name].tasks == ("linear_probe",) and set(SETS[name].fitted) <= set(SETS[name].counts)
    assert all(f"split {split}: " in "; ".join(tested.facts["not_as_published"]) for split in expected), (
        "told beside official counts"
    )


def test_what_cannot_be_fitted_is_null_with_the_reason(run, tmp_path):
    root, out = tmp_path / "sets", tmp_path / "out"
    root.mkdir()
    write_food(root)  # one training picture
    status, record, _ = probed(run, out, data_root=str(root), sets=("food101",))
    assert set(record["null_reasons"].values()) == {"no picture is left to choose C on: no class has two training pictures"}
    write_textures(root, {"train": 2, "val": 1, "test": 1}, kinds=1)
    status, record, _ = probed(run, out, data_root=str(root), sets=("dtd",))
    assert set(record["null_reasons"].values()) == {"the training pictures show fewer than two classes"}
    (root / "dtd/labels/train1.txt").unlink()
    config = EvaluateConfig(str(run), out=str(out), device="cpu", data_root=str(root), sets=("dtd",))
    assert evaluate(config) == 1
    found = json.loads((out / "sets.json").read_text())["sets"]["dtd"]
    assert found["status"] == "not here" and "dtd, split train: no labels/train1.txt" in found["reason"]


def test_the_edge_of_the_sweep_and_early_ends_are_told(run, tmp_path, monkeypatch):
    root, out = tmp_path / "sets", tmp_path / "out"
    write_textures(root)
    monkeypatch.setattr("sycoca_ds.eval.probe.fitting.MOST_ITERATIONS", 1)
    monkeypatch.setattr(linear_probe, "search", lambda score: (score(96) and 96, {}))
    details = probed(run, out, data_root=str(root), sets=("dtd",))[1]["details"]
    told = "; ".join(details["told"])
    assert "the best C lies at the edge of what is tried, 1e-06 to 1e+06" in told and not details["converged"]
    assert "L-BFGS did not converge" in told and "1 of 1 fits on the way to C did not converge (C = 1e+06)" in told


def test_every_number_has_words():
    assert set(TASK.headlines) <= set(TASK.numbers) and TASK.numbers["top1_low"].label == "Top-1 accuracy, lower bound"

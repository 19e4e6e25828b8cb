"""The same pictures in three layouts, a data set folder, a WebDataset and a parquet folder, give the same numbers: the proof that
they are read alike. Mixed classes and captions are the control: other numbers."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.exports.finding import sets_of
from sycoca_ds.eval.labels import load_labels
from sycoca_ds.eval.scorers import captions as captioning
from sycoca_ds.evaluation.command import evaluate
from sycoca_ds.evaluation.options import EvaluateConfig
from tests.worlds.published.exported import scenes, write_parquet, write_wds
from tests.worlds.trainings.eval_world import make_data, make_labels, make_run

pytestmark = pytest.mark.slow
IMAGES, CAPTIONS = 24, 2
NAMES = ("wds:classes", "wds:captions", "parquet:classes", "parquet:captions")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("layouts")
    make_run(root / "run")
    make_data(root / "folder", images=IMAGES, captions=CAPTIONS)
    make_labels(root / "labels.json")
    labels, samples = load_labels(root / "labels.json"), scenes(IMAGES, CAPTIONS)
    random = np.random.default_rng(0)
    others = [samples[place] for place in random.permutation(IMAGES)]
    mixed = [
        dataclasses.replace(sample, label=other.label, captions=other.captions)
        for sample, other in zip(samples, others, strict=True)
    ]
    for sets, own in (("sets", samples), ("mixed", mixed)):
        write_wds(root / sets / "wds_classes", own, labels.classes, labels.templates, per_shard=9)
        write_wds(root / sets / "wds_captions", own, kind="retrieval", per_shard=7)
        write_parquet(root / sets / "classes", own, labels.classes, files=3, per_group=3)
        write_parquet(root / sets / "captions", own, captioned=True, files=2)
    (root / "prompts.json").write_text(json.dumps({"parquet:classes": {"templates": labels.templates}}))
    return root


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    monkeypatch.setattr(captioning, "java_command", lambda: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_sets(world, sets: str):
    config = EvaluateConfig(
        str(world / "run"),
        data_root=str(world / sets),
        sets=NAMES,
        prompts=str(world / "prompts.json"),
        out=str(world / f"out_{sets}"),
        tasks=("retrieval", "classification"),
        device="cpu",
        precision="fp32",
        gallery=2,
    )
    assert evaluate(config) == 0
    return json.loads((world / f"out_{sets}/sets.json").read_text())["sets"]


def each(out, task):
    return {name: value for name, value in np.load(out / "each" / f"{task}.npz").items() if name != "image_id"}


def test_numbers_are_equal(world):
    config = EvaluateConfig(
        str(world / "run"),
        str(world / "folder"),
        out=str(world / "out_folder"),
        labels=str(world / "labels.json"),
        tasks=("retrieval", "classification"),
        device="cpu",
        precision="fp32",
        gallery=2,
    )
    assert evaluate(config) == 0
    own = json.loads((world / "out_folder/results.json").read_text())["tasks"]
    records, mixed = of_sets(world, "sets"), of_sets(world, "mixed")
    for name in NAMES:
        task = "classification" if "classes" in name else "retrieval"
        assert records[name]["status"] == "done" and list(records[name]["metrics"]) == [task]
        assert records[name]["metrics"][task] == own[task]["metrics"], name
        found, expected = each(world / "out_sets" / name.replace(":", "_"), task), each(world / "out_folder", task)
        for number, values in expected.items():
            if number != "key":
                np.testing.assert_array_equal(found[number], values, err_msg=f"{name} {number}")
        assert records[name]["metrics"][task] != mixed[name]["metrics"][task], "mixed, and not noticed"
        assert mixed[name]["metrics"][task] == mixed[name.replace("parquet", "wds")]["metrics"][task]


def test_pictures_classes_and_captions_are_equal(world):
    expected, labels = Collection(world / "folder", 48), load_labels(world / "labels.json")
    for entry in sets_of(NAMES, world / "sets"):
        found = OfficialCollection(entry, world / "sets", 48)
        assert len(found) == len(expected) == IMAGES
        assert all(torch.equal(found.image(number), expected.image(number)) for number in range(IMAGES))
        if "classes" in entry.name:
            own = found.labels(None)
            assert own.classes == labels.classes
            label_I = own.of([picture.url for picture in found.pictures])
            assert (label_I == labels.of([picture.url for picture in expected.pictures])).all()
            assert own.templates == (labels.templates if "wds" in entry.name else ("a photo of a {c}.",))
        else:
            assert found.captions == expected.captions and (found.image_of_text_T == expected.image_of_text_T).all()


def test_another_file_of_the_same_size_is_another_set(world, tmp_path):
    """Results are kept by what depends on it."""
    folder = write_wds(tmp_path / "wds_a", scenes(4), ("a",) * 24)
    (entry,) = sets_of(("wds:a",), tmp_path)
    digest = OfficialCollection(entry, tmp_path, 16).digest
    assert digest == OfficialCollection(entry, tmp_path, 16).digest
    path = folder / "test/0.tar"
    data = bytearray(path.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 200] ^= 1
    path.write_bytes(data)
    assert digest != OfficialCollection(entry, tmp_path, 16).digest

"""Which exports are found under which names, and that they stand in for the paper's sets."""

import dataclasses
import json
import os

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.commands import DatasetsCommand
from sycoca_ds.eval.datasets import registry
from sycoca_ds.eval.datasets.names import labels_of
from sycoca_ds.eval.datasets.official import OfficialCollection
from sycoca_ds.eval.datasets.reading import Absent
from sycoca_ds.eval.datasets.registry import SETS, Count
from sycoca_ds.eval.exports.finding import all_sets, cleaned, exports_in, sets_of
from sycoca_ds.eval.probe.data import shared
from tests.worlds.published.captioned import write_flickr
from tests.worlds.published.exported import scenes, write_parquet, write_wds

CLASSES = tuple(f"class_{number}" for number in range(24))


def test_names():
    for name in ("wds_vtab-cifar100", "wds_vtab-cifar100_test", "wds/vtab/cifar100", "vtab/cifar100", "vtab-cifar100"):
        assert cleaned(name) == "vtab-cifar100"


def test_folders_and_their_names(tmp_path, monkeypatch):
    for place in ("wds_cifar10_test", "wds/imagenet1k", "wds/vtab/cifar100", "wds/vtab-dtd"):
        write_wds(tmp_path / place, scenes(2), CLASSES)
    write_wds(tmp_path / "wds/vtab-dtd", scenes(3), CLASSES, split="train")
    write_parquet(tmp_path / "my_set", scenes(2), CLASSES, split="validation")
    write_parquet(tmp_path / "parquet/other", scenes(2), captioned=True)
    write_flickr(tmp_path)
    (tmp_path / "wds_empty").mkdir()
    (tmp_path / "lost+found").mkdir()
    scandir = os.scandir

    def forbidden(path):
        if str(path).endswith("lost+found"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    found = exports_in(tmp_path)
    assert {name: (export.path, export.splits, export.evaluated) for name, export in found.items()} == {
        "wds:cifar10": ("wds_cifar10_test", ("test",), "test"),
        "wds:imagenet1k": ("wds/imagenet1k", ("test",), "test"),
        "wds:vtab-cifar100": ("wds/vtab/cifar100", ("test",), "test"),
        "wds:vtab-dtd": ("wds/vtab-dtd", ("test", "train"), "test"),
        "parquet:my_set": ("my_set", ("validation",), "validation"),
        "parquet:other": ("parquet/other", ("test",), "test"),
    }
    one, two, three = sets_of(("wds:vtab/cifar100", "parquet:other", "wds:vtab-dtd"), tmp_path)
    assert one.counts["test"] == Count(10_000, classes=100) and one.title.startswith("CIFAR-100, WebDataset wds/vtab/cifar100")
    assert one.folder == "wds_vtab-cifar100" and one.tasks == ("classification",) and two.tasks == ("retrieval", "captioning")
    assert three.counts == {"test": Count(1_880, classes=47), "train": Count()}
    assert len(one.open(tmp_path, "test")[1]) == 2 and len(three.open(tmp_path, "train")[1]) == 3
    (gone,) = sets_of(("wds:vtab/svhn",), tmp_path)
    with pytest.raises(Absent, match=r"wds:vtab-svhn, split test: .* expected wds_vtab-svhn/ with test/nshards.txt"):
        gone.open(tmp_path, "test")
    with pytest.raises(UserError, match="no such set; did you mean cifar10"):
        sets_of(("cifar11",), tmp_path)


def test_exports_stand_in_for_files_that_are_not_there(tmp_path):
    write_wds(tmp_path / "wds_imagenet1k", scenes(2), CLASSES, ("{c}!",))
    write_wds(tmp_path / "wds_vtab-caltech101", scenes(2), CLASSES)
    write_parquet(tmp_path / "flickr30k", scenes(2), captioned=True)
    write_parquet(tmp_path / "imagenet-1k", scenes(3), CLASSES, split="validation")
    for split in ("train", "val", "test"):
        write_wds(tmp_path / "wds_vtab-dtd", scenes(2 + len(split)), CLASSES, split=split)
    sets = {entry.name: entry for entry in all_sets(tmp_path)}
    entry = sets["imagenet1k"]
    assert entry.title == "ImageNet-1K, validation set, from wds_imagenet1k" and entry.evaluated == "test"
    assert entry.counts == {"test": Count(50_000, classes=1_000)} and entry.tasks == ("classification",)
    root, read = entry.open(tmp_path, "test")
    labels, told = labels_of(entry, root, read, tmp_path, None)
    assert labels.classes == CLASSES and labels.templates == ("{c}!",) and told["names"] == "classnames.txt"
    assert sets["flickr30k"].layout != SETS["flickr30k"].layout and sets["flickr30k"].counts["test"] == Count(1_000, 5_000)
    assert sets["caltech101"] == SETS["caltech101"], "VTAB's is another test split"
    assert list(sets)[len(SETS) :] == ["parquet:imagenet-1k", "wds:vtab-caltech101"], "what stands in for none"
    entry = sets["dtd"]
    assert entry.fitted == ("train", "val") and entry.counts["val"] == Count(1_880, classes=47)
    collection = OfficialCollection(entry, tmp_path, 16)
    probe = collection.probe_data()
    assert (len(collection), len(probe.train.pictures), len(probe.validation.pictures)) == (6, 7, 5)
    assert collection.pictures[0].url == "test/0.tar/s0000000" and probe.train.pictures.pictures[0].url == "train/0.tar/s0000000"
    assert shared([probe.train, probe.validation], collection) == 0, "keys are counted anew in each split"
    for split in ("train", "test"):
        write_parquet(tmp_path / "parquet/pets", scenes(3), CLASSES, split=split, files=1)
        (tmp_path / "parquet/pets" / split).mkdir(exist_ok=True)
        (tmp_path / f"parquet/pets/data/{split}-00000-of-00001.parquet").rename(tmp_path / f"parquet/pets/{split}/0000.parquet")
    (entry,) = sets_of(("parquet:pets",), tmp_path)
    collection = OfficialCollection(dataclasses.replace(entry, fitted=("train",)), tmp_path, 16)
    assert shared([collection.probe_data().train], collection) == 0

    write_parquet(tmp_path / "imagenet-a", scenes(2), CLASSES)
    write_parquet(tmp_path / "imagenetv2", scenes(2), CLASSES)
    write_parquet(tmp_path / "other/imagenet", scenes(2), CLASSES)
    (tmp_path / "other/imagenet/data").rename(tmp_path / "other/imagenet/val")
    for name, place in (("imagenet_a", tmp_path), ("imagenet_v2", tmp_path), ("imagenet1k", tmp_path / "other")):
        (entry,) = sets_of((name,), place)
        assert "from imagenet" in entry.title and len(entry.open(place, entry.evaluated)[1]) == 2

    (tmp_path / "flickr30k").rename(tmp_path / "elsewhere")
    write_flickr(tmp_path)
    assert sets_of(("flickr30k",), tmp_path) == [SETS["flickr30k"]], "the official files come first"


def test_our_own_folders_are_no_parquet_exports(tmp_path, capsys):
    """A data set folder has parquet files, too: the shards' list, the catalogue."""
    write_parquet(tmp_path / "captions", scenes(6, captions=3), captioned=True)
    for name, file in (("built", "manifest/manifest.json"), ("curated", "canonical/curate.json")):
        (tmp_path / name / file).parent.mkdir(parents=True)
        (tmp_path / name / file).write_text("{}")
        (tmp_path / name / file).with_name("shards.parquet").write_bytes(b"PAR1")
    assert list(exports_in(tmp_path)) == ["parquet:captions"]
    assert DatasetsCommand(str(tmp_path)).run() == 0
    said = capsys.readouterr().out
    assert "data set folders of this project, for --data: built, curated\n" in said and "parquet:built" not in said
    with pytest.raises(
        UserError, match=r"^parquet:built: \S+/built is a data set folder of this project: evaluate it with --data "
    ):
        sets_of(("parquet:built",), tmp_path)


def test_the_command_lists_and_checks_them(tmp_path, capsys, monkeypatch):
    write_wds(tmp_path / "wds_cifar10_test", scenes(4), CLASSES[:10] + CLASSES[10:])
    write_wds(tmp_path / "wds_mnist", scenes(4), CLASSES)
    write_wds(tmp_path / "wds_mine", scenes(4), CLASSES)
    write_parquet(tmp_path / "captions", scenes(6, captions=3), captioned=True)
    mnist = dataclasses.replace(SETS["mnist"], counts={"train": Count(9), "test": Count(4, classes=24)})
    monkeypatch.setitem(registry.SETS, "mnist", mnist)
    assert DatasetsCommand(str(tmp_path), decode=True, json=str(tmp_path / "found.json")).run() == 1
    rows = {(row["set"], row["split"]): row for row in json.loads((tmp_path / "found.json").read_text())}
    assert rows["cifar10", "test"]["problems"] == [
        "cifar10, split test: 4 pictures, officially 10,000",
        "cifar10, split test: 24 classes, officially 10",
    ]
    assert rows["mnist", "test"]["state"] == "whole"
    assert rows["wds:mine", "test"]["state"] == "whole" and rows["wds:mine", "test"]["official"]["pictures"] is None
    assert rows["parquet:captions", "test"]["found"] == {"pictures": 6, "captions": 18, "classes": None}
    assert "parquet:captions" in capsys.readouterr().out
    path = next((tmp_path / "wds_mine/test").glob("*.tar"))
    data = bytearray(path.read_bytes())
    place = data.index(b"\xff\xd8\xff")
    data[place : place + 3] = b"no!"
    path.write_bytes(data)
    assert DatasetsCommand(str(tmp_path), sets=("wds:mine",)).run() == 0, "what is in a picture is looked at by --decode only"
    assert DatasetsCommand(str(tmp_path), sets=("wds:mine",), decode=True).run() == 1
    assert "1 of 4 pictures cannot be read (1 not an image): test/0.tar/s0000000" in capsys.readouterr().out
    (tmp_path / "wds_mine/dataset_type.txt").write_text("multilabel")
    assert DatasetsCommand(str(tmp_path), sets=("wds:mine",)).run() == 0, "what no task takes is not broken"
    assert "several classes a picture" in capsys.readouterr().out

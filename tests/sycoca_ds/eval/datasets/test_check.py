"""What the command says of sets that are whole, broken or not there."""

import dataclasses
import json
import subprocess
import sys

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.commands import DatasetsCommand
from sycoca_ds.eval.datasets import registry
from sycoca_ds.eval.datasets.check import look
from sycoca_ds.eval.datasets.registry import SETS, Count
from tests.worlds import REPOSITORY
from tests.worlds.published.captioned import write_flickr, write_mscoco, write_nocaps
from tests.worlds.published.classed import write_imagenet_folders
from tests.worlds.published.listed import write_dtd, write_pets
from tests.worlds.published.pictures import write_picture

FLICKR = {"train": Count(1, 5), "val": Count(1, 5), "test": Count(2, 10)}


def with_counts(monkeypatch, **counts):
    """Sets whose official counts are those of the miniatures."""
    for name, of_splits in counts.items():
        monkeypatch.setitem(registry.SETS, name, dataclasses.replace(SETS[name], counts=of_splits))


def test_official_counts():
    """Of the sets' pages; the paper names eight sets for classification, seven for the linear probe."""
    pictures = {(name, split): count.pictures for name, entry in SETS.items() for split, count in entry.counts.items()}
    assert pictures[("mscoco", "test")] == 5_000 and SETS["mscoco"].counts["test"].captions == 25_010
    both = SETS["mscoco"].counts["train"].captions + SETS["mscoco"].counts["restval"].captions
    assert both == 566_747 and sum(count.captions for count in SETS["mscoco"].counts.values()) == 616_767
    coco = SETS["coco_captions"].counts
    assert sum(coco[f"{split}2014"].captions for split in ("train", "val")) == 616_767
    assert sum(coco[f"{split}2017"].captions for split in ("train", "val")) == 616_767
    assert sum(coco[f"{split}2014"].pictures for split in ("train", "val")) == 123_287
    assert [name for name, entry in SETS.items() if "classification" in entry.tasks] == (
        "imagenet1k imagenet_v2 imagenet_a imagenet_r cifar10 cifar100 stl10 caltech101".split()
    )
    assert [
        name for name, entry in SETS.items() if "linear_probe" in entry.tasks
    ] == "dtd pets dogs cub200 flowers102 mnist food101".split()
    assert all(entry.evaluated in entry.counts for entry in SETS.values())


def test_a_whole_set_and_a_wrong_count(tmp_path, monkeypatch):
    write_flickr(tmp_path)
    with_counts(monkeypatch, flickr30k=FLICKR)
    found = look(registry.SETS["flickr30k"], tmp_path, "test", decode=True)
    assert (found.state, found.found, found.problems) == ("whole", Count(2, 10), ())
    with_counts(monkeypatch, flickr30k={"test": Count(1_000, 5_000)})
    found = look(registry.SETS["flickr30k"], tmp_path, "test")
    assert found.state == "broken" and found.problems == (
        "flickr30k, split test: 2 pictures, officially 1,000",
        "flickr30k, split test: 10 captions, officially 5,000",
    )


def test_missing_and_unreadable_pictures_are_counted(tmp_path, monkeypatch):
    folder = write_flickr(tmp_path) / "flickr30k-images"
    with_counts(monkeypatch, flickr30k=FLICKR)
    entry = registry.SETS["flickr30k"]
    whole = (folder / "998.jpg").read_bytes()
    (folder / "998.jpg").write_bytes(whole[:-20])
    assert look(entry, tmp_path, "test").state == "whole", "what is in a file is looked at by --decode only"
    seen = []
    found = look(entry, tmp_path, "test", decode=True, told=seen.append)
    assert seen == [1, 2] and found.state == "broken"
    assert found.problems == ("flickr30k, split test: 1 of 2 pictures cannot be read (1 truncated image): 998.jpg",)
    (folder / "1000.jpg").write_text("<html>404</html>")
    (problem,) = look(entry, tmp_path, "test", decode=True).problems
    assert "2 of 2 pictures cannot be read" in problem and "1 not an image" in problem and "1 truncated image" in problem
    (folder / "998.jpg").unlink()
    assert look(entry, tmp_path, "test").problems == ("flickr30k, split test: 1 of 2 pictures are not there: 998.jpg",)


def test_pictures_of_other_splits_may_be_elsewhere(tmp_path, monkeypatch):
    """Who evaluates on COCO's test split needs val2014 only; its own pictures are another matter."""
    folder = write_mscoco(tmp_path)
    with_counts(monkeypatch, mscoco={"train": Count(1, 5), "test": Count(3, 17)})
    (folder / "train2014").rename(folder / "elsewhere")
    found = look(registry.SETS["mscoco"], tmp_path, "train")
    assert found.state == "not here" and "no file that it names in train2014/" in found.problems[0]
    (folder / "val2014").rename(folder / "nowhere")
    found = look(registry.SETS["mscoco"], tmp_path, "test")
    assert found.state == "broken" and "3 of 3 pictures are not there" in found.problems[0]


def test_lists_without_their_other_files_are_broken(tmp_path):
    folder = write_pets(tmp_path)
    (folder / "images").rename(folder / "pictures")
    found = look(SETS["pets"], tmp_path, "test")
    assert found.state == "broken" and "oxford-iiit-pet lacks images/; from https://www.robots.ox.ac.uk" in found.problems[0]


def test_a_picture_without_caption_is_broken(tmp_path):
    path = write_flickr(tmp_path) / "dataset_flickr30k.json"
    content = json.loads(path.read_text())
    content["images"][2] |= {"sentences": [], "sentids": []}
    path.write_text(json.dumps(content))
    assert "flickr30k, split test: 1 pictures have no caption: 998.jpg" in look(SETS["flickr30k"], tmp_path, "test").problems


def test_notes_name_empty_classes_namesakes_and_domains(tmp_path):
    write_imagenet_folders(tmp_path)
    write_picture(tmp_path / "imagenet/val/n02012849/x.JPEG", 1)
    notes = look(SETS["imagenet1k"], tmp_path, "val").notes
    assert "1 classes have no picture here: n01484850" in notes and "two classes share the name crane" in notes
    write_nocaps(tmp_path)
    assert look(SETS["nocaps"], tmp_path, "val").notes == ("1 in-domain, 1 near-domain, 2 out-domain",)


def test_what_is_not_there_says_what_belongs_where(tmp_path):
    (problem,) = look(SETS["cifar10"], tmp_path, "test").problems
    assert problem == (
        f"cifar10, split test: not in {tmp_path}; expected cifar10/ with test_batch, batches.meta; from "
        "https://www.cs.toronto.edu/~kriz/cifar.html"
    )
    (tmp_path / "CIFAR-10").mkdir()
    assert f"no test_batch in {tmp_path}/CIFAR-10; expected" in look(SETS["cifar10"], tmp_path, "test").problems[0]


def test_the_command(tmp_path, monkeypatch, capsys):
    write_flickr(tmp_path)
    write_dtd(tmp_path)
    with_counts(monkeypatch, flickr30k=FLICKR, dtd={split: Count(count, classes=3) for split, count in (("train", 1), ("test", 2))})
    assert DatasetsCommand(str(tmp_path), decode=True, json=str(tmp_path / "found.json")).run() == 0
    said = capsys.readouterr().out
    rows = {tuple(line.replace("│", " ").split()) for line in said.splitlines() if "│" in line}
    assert ("flickr30k", "train", "1", "1", "5", "5", "-", "-", "whole") in rows
    assert ("test", "2", "2", "-", "-", "3", "3", "whole") in rows and (
        "mnist",
        "test",
        *"- 10,000 - - - 10 not here".split(),
    ) in rows
    assert said.count("mnist, split test: not in") == 1 and "mnist, split train" not in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) == sum(len(entry.counts) for entry in registry.SETS.values())
    assert found[2] | {"page": ""} == {
        "set": "flickr30k",
        "split": "test",
        "state": "whole",
        "folder": str(tmp_path / "Flickr30K"),
        "found": {"pictures": 2, "captions": 10, "classes": None},
        "official": {"pictures": 2, "captions": 10, "classes": None},
        "problems": [],
        "notes": [],
        "page": "",
    }
    (tmp_path / "dtd/images/dotted/d_3.jpg").unlink()
    assert DatasetsCommand(str(tmp_path), ("dtd",)).run() == 1
    said = capsys.readouterr().out
    assert "dtd, split test: 1 of 2 pictures are not there: images/dotted/d_3.jpg" in said and "flickr30k" not in said
    assert DatasetsCommand(str(tmp_path), ("flickr30k",)).run() == 0
    with pytest.raises(UserError, match="no such set; did you mean imagenet_v2"):
        DatasetsCommand(str(tmp_path), ("imagenetv2",)).run()
    with pytest.raises(UserError, match="no such folder"):
        DatasetsCommand(str(tmp_path / "none")).run()


def test_from_the_command_line_without_torch(tmp_path):
    write_flickr(tmp_path)
    code = (
        "import runpy, sys\ntry:\n    runpy.run_module('sycoca_ds.eval', run_name='__main__')\n"
        "finally:\n    assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", code, "datasets", "--data-root", str(tmp_path), "--sets", "flickr30k", "mnist"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "2 pictures, officially 1,000" in done.stdout and done.stderr == ""
    done = subprocess.run([*words[:3], "dataset"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "no such command; did you mean datasets?" in done.stderr

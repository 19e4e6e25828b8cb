"""Names of classes and templates: from the set, from open_clip, from the user; what is told where there are none."""

import json
import sys
import types

import pytest

from data_pipeline.errors import UserError
from sycoca_ds.eval.datasets.evaluation import Asked
from sycoca_ds.eval.datasets.names import TEMPLATES, labels_of, read_prompts
from sycoca_ds.eval.datasets.registry import SETS
from sycoca_ds.eval.exports.finding import sets_of
from tests.worlds.published.classed import write_caltech, write_imagenet_folders, write_imagenet_v2
from tests.worlds.published.exported import scenes, write_parquet, write_wds
from tests.worlds.published.packed import write_cifar10, write_stl10
from tests.worlds.published.pictures import write_picture

ENTRIES = tuple(SETS.values())


@pytest.fixture
def open_clip(monkeypatch):
    """open_clip's lists, as long as the real ones; the package itself brings torchvision."""
    lists = types.ModuleType("open_clip.zero_shot_metadata")
    lists.IMAGENET_CLASSNAMES = tuple(f"name {number}" for number in range(1000))
    lists.OPENAI_IMAGENET_TEMPLATES = (lambda c: f"a bad photo of a {c}.", lambda c: f"itap of my {c}.")
    package = types.ModuleType("open_clip")
    package.zero_shot_metadata = lists
    monkeypatch.setitem(sys.modules, "open_clip", package)
    monkeypatch.setitem(sys.modules, "open_clip.zero_shot_metadata", lists)


@pytest.fixture
def no_open_clip(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)


def found(root, name, prompts=None):
    entry = SETS[name]
    place, read = entry.open(root, entry.evaluated)
    return labels_of(entry, place, read, root, prompts)


def write_thousand(root):
    """ImageNet's validation folders: every tenth WordNet id from 0 is a class."""
    for number in range(1000):
        (root / f"imagenet/val/n{10 * number:08d}").mkdir(parents=True)


def test_templates_are_clips():
    """Counts and some of the texts of openai/CLIP data/prompts.md."""
    assert {name: len(texts) for name, texts in TEMPLATES.items()} == {"cifar": 18, "stl10": 2, "caltech101": 34}
    assert TEMPLATES["stl10"] == ("a photo of a {c}.", "a photo of the {c}.")
    assert TEMPLATES["cifar"][7:10] == ("a photo of a small {c}.", "a photo of a big {c}.", "a photo of the {c}.")
    assert TEMPLATES["cifar"][2] == "a black and white photo of a {c}." and TEMPLATES["cifar"][17] == "a photo of the big {c}."
    assert TEMPLATES["caltech101"][17:] == (
        "a photo of the {c}.",
        "a painting of the {c}.",
        "the plastic {c}.",
        "a sculpture of the {c}.",
        "a sketch of the {c}.",
        "a tattoo of the {c}.",
        "the toy {c}.",
        "a rendition of the {c}.",
        "the embroidered {c}.",
        "the cartoon {c}.",
        "the {c} in a video game.",
        "the plushie {c}.",
        "the origami {c}.",
        "art of the {c}.",
        "graffiti of the {c}.",
        "a drawing of the {c}.",
        "a doodle of the {c}.",
    )
    assert all(text.count("{c}") == 1 for texts in TEMPLATES.values() for text in texts)


def test_names_of_the_sets_own_files(tmp_path, no_open_clip):
    write_cifar10(tmp_path)
    write_stl10(tmp_path)
    write_caltech(tmp_path)
    labels, told = found(tmp_path, "cifar10")
    assert labels.classes[9] == "truck" and len(labels.templates) == 18 and labels.primary == "top1"
    assert told == {"names": "the set's files", "templates": "openai/CLIP data/prompts.md"}
    assert labels.labels == {"test_batch/00000": 5, "test_batch/00001": 9, "test_batch/00002": 3}
    labels, _ = found(tmp_path, "caltech101")
    assert labels.classes == ("off-center face", "centered face", "leopard", "accordion", "yin and yang symbol")
    assert labels.primary == "mean_per_class"


def test_imagenet_by_open_clips_names(tmp_path, open_clip):
    """By place among the 1,000 sorted ids, also for sets that have some of them; ImageNet-V2's folders are these places."""
    write_thousand(tmp_path)
    for wnid in ("n00000070", "n00000020", "n00009990"):
        (tmp_path / "imagenet-a" / wnid).mkdir(parents=True)
    write_picture(tmp_path / "imagenet-a/n00000070/x.jpg", 3)
    labels, told = found(tmp_path, "imagenet_a")
    assert labels.classes == ("name 2", "name 7", "name 999") and labels.labels == {"n00000070/x.jpg": 1}
    assert labels.templates == ("a bad photo of a {c}.", "itap of my {c}.") and told == {
        "names": "open_clip",
        "templates": "open_clip",
    }
    write_imagenet_v2(tmp_path)
    labels, _ = found(tmp_path, "imagenet_v2")
    assert labels.classes[10] == "name 10" and labels.labels["10/a.jpeg"] == 10


def test_imagenet_without_open_clip(tmp_path, no_open_clip, caplog):
    write_imagenet_folders(tmp_path)
    labels, told = found(tmp_path, "imagenet1k")
    assert labels.classes == ("tench", "goldfish", "great white shark", "crane")
    assert labels.templates == ("a photo of a {c}.",) and "is not installed" in told["templates"]
    write_imagenet_folders(tmp_path, "imagenet-r", listed=None)
    with pytest.raises(UserError, match="imagenet_r: nothing here says what its classes are called; install open_clip_torch"):
        found(tmp_path, "imagenet_r")
    (tmp_path / "imagenet/LOC_synset_mapping.txt").write_text(WORDNET)
    write_imagenet_v2(tmp_path)
    labels, told = found(tmp_path, "imagenet_v2")
    assert labels.classes[100] == "word 100" and told["names"] == "WordNet's first names, from ImageNet's files"


WORDNET = "\n".join(f"n{10 * number:08d} word {number}, other word" for number in range(1000))


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
@pytest.mark.parametrize("names", ["open_clip", "no_open_clip"])
def test_an_export_of_some_classes_has_its_own_names(tmp_path, request, name, names):
    """The number of one of 200 classes is no place among ImageNet's 1,000, neither in open_clip's list nor in WordNet's."""
    request.getfixturevalue(names)
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/LOC_synset_mapping.txt").write_text(WORDNET)
    write_parquet(
        tmp_path / "parquet" / name,
        scenes(4),
        ("stingray", "goldfinch, Carduelis carduelis", *(f"kind {k}" for k in range(2, 200))),
    )
    (entry,) = sets_of((name.replace("-", "_"),), tmp_path)
    labels, told = labels_of(entry, *entry.open(tmp_path, "test"), tmp_path, None)
    assert labels.classes[:3] == ("stingray", "goldfinch", "kind 2") and len(labels.classes) == 200
    assert told["names"] == "the set's files, the first of each class's names"


@pytest.mark.parametrize("names", ["open_clip", "no_open_clip"])
def test_bare_numbers_of_some_classes_are_no_names(tmp_path, request, names):
    request.getfixturevalue(names)
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "imagenet/LOC_synset_mapping.txt").write_text(WORDNET)
    write_wds(tmp_path / "wds_imagenet-a", scenes(4))
    write_parquet(tmp_path / "parquet/imagenet-r", scenes(4), [str(number) for number in range(200)])
    for name, message in (
        ("imagenet_a", "has no classnames.txt; give the classes' names by --prompts"),
        ("imagenet_r", "nothing here"),
    ):
        (entry,) = sets_of((name,), tmp_path)
        with pytest.raises(UserError, match=message):
            labels_of(entry, *entry.open(tmp_path, "test"), tmp_path, None)


def test_all_thousand_classes_are_known_by_number(tmp_path, open_clip):
    """Also where the file calls them by WordNet ids in another order than the sorted one."""
    backwards = [f"n{10 * number:08d}" for number in reversed(range(1000))]
    for place, classes, first in (("numbers", [str(number) for number in range(1000)], 0), ("wnids", backwards, 999)):
        write_parquet(tmp_path / place / "imagenet-1k", scenes(4), classes)
        (entry,) = sets_of(("imagenet1k",), tmp_path / place)
        labels, told = labels_of(entry, *entry.open(tmp_path / place, "test"), tmp_path / place, None)
        assert labels.classes[0] == f"name {first}" and told["names"] == "open_clip"


def test_two_classes_of_one_name_are_told(tmp_path, no_open_clip, caplog):
    write_imagenet_folders(tmp_path)
    (tmp_path / "imagenet/val/n02012849").mkdir()
    assert found(tmp_path, "imagenet1k")[0].classes[3:] == ("crane", "crane")
    assert "two classes share the name crane" in caplog.text


def test_names_and_templates_of_the_user(tmp_path, no_open_clip):
    write_caltech(tmp_path)
    write_cifar10(tmp_path)
    path = tmp_path / "prompts.json"
    keys = ("Faces", "Faces_easy", "Leopards", "accordion", "yin_yang")
    given = {
        "caltech101": {"classes": {key: f"my {key}" for key in reversed(keys)}, "templates": ["{c}!"]},
        "cifar10": {"classes": [f"kind {number}" for number in range(10)]},
    }
    path.write_text(json.dumps(given))
    prompts = read_prompts(path, ENTRIES)
    labels, told = found(tmp_path, "caltech101", prompts["caltech101"])
    assert labels.classes == tuple(f"my {key}" for key in keys) and labels.templates == ("{c}!",)
    assert told == {"names": str(path), "templates": str(path)}
    before, _ = found(tmp_path, "cifar10")
    labels, told = found(tmp_path, "cifar10", prompts["cifar10"])
    assert labels.classes[3] == "kind 3" and len(labels.templates) == 18 and labels.digest != before.digest


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cifar11": {}}, "cifar11 is none of the sets that are evaluated; did you mean cifar10?"),
        ({"wds:no_such_set": {}}, "wds:no_such_set is none of the sets that are evaluated"),
        ([], "found list"),
        ({"cifar10": {}}, "expected classes, templates or both"),
        ({"cifar10": {"templates": ["a thing"]}}, "lacks {c}"),
        ({"cifar10": {"classes": ["a", ""]}}, "field 'classes'"),
        ({"cifar10": {"classes": "abc"}}, "field 'classes'"),
    ],
)
def test_bad_prompts_name_the_field(tmp_path, content, message):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_prompts(path, ENTRIES)
    assert message in str(error.value) and "prompts.json" in str(error.value)


def test_prompts_of_other_classes(tmp_path, no_open_clip):
    write_cifar10(tmp_path)
    path = tmp_path / "prompts.json"
    for classes, message in (
        (["one"], "1 names for 10 classes"),
        ({"bird": "b"}, "no name for 9 of 10 classes, the first airplane"),
    ):
        path.write_text(json.dumps({"cifar10": {"classes": classes}}))
        with pytest.raises(UserError, match=message):
            found(tmp_path, "cifar10", read_prompts(path, ENTRIES)["cifar10"])


def test_prompts_of_exports_go_by_the_names_that_sets_may_have(tmp_path, no_open_clip):
    write_wds(tmp_path / "wds_vtab-cls", scenes(4), [f"kind {k}" for k in range(24)], ("a {c}",))
    path = tmp_path / "prompts.json"
    for key in ("wds:vtab/cls", "wds:vtab-cls", "wds:VTAB_cls"):
        path.write_text(json.dumps({key: {"templates": ["my {c}"]}}))
        asked = Asked.parse(str(tmp_path), ("wds:vtab/cls",), None, str(path))
        (entry,) = asked.entries
        labels, told = labels_of(entry, *entry.open(tmp_path, "test"), tmp_path, asked.prompts.get(entry.name))
        assert labels.templates == ("my {c}",) and told["templates"] == str(path), key
    for content, message in (
        ({"wds:no_such_set": {"templates": ["my {c}"]}}, "wds:no_such_set is none of the sets that are evaluated .wds:vtab-cls"),
        ({"cifar10": {"templates": ["my {c}"]}}, "cifar10 is none of the sets"),
        ({key: {"templates": ["my {c}"]} for key in ("wds:vtab/cls", "wds:vtab-cls")}, "wds:vtab-cls, which stands in it twice"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            Asked.parse(str(tmp_path), ("wds:vtab/cls",), None, str(path))

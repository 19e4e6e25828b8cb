"""`python -m sycoca_ds.eval labels`: classes from folders and from tables, as evaluate.py reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.build import BuildCommand
from data_pipeline.errors import UserError
from sycoca_ds.eval.collection import Collection
from sycoca_ds.eval.labelling import LabelsCommand
from sycoca_ds.eval.labels import load_labels
from tests.worlds.data.data_sets import picture

FILES = ("red_fox/a.jpg", "red_fox/b.jpg", "grey-wolf/c d.jpg", "grey-wolf/a.jpg")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    for name in FILES:
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(picture())
    build = {"source": "folder", "pictures": folder / "photos", "processes": 1, "verify_processes": 1}
    assert BuildCommand(out=folder / "data", **build).run() == 0
    return folder / "data"


def classes_of(data: Path, labels: Path) -> dict[str, str]:
    """Path of the picture -> class, by the evaluation's own reader."""
    label_set, pictures = load_labels(labels), Collection(data, 24).pictures
    numbers = label_set.of([one.url for one in pictures])
    names = [one.url.removeprefix("folder:").split("#")[0].replace("%20", " ") for one in pictures]
    return {name: label_set.classes[number] for name, number in zip(names, numbers, strict=True) if number >= 0}


def test_folders_are_classes(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert LabelsCommand(data=data, out=tmp_path / "l.json", templates=("{c}", "a {c}")).run() == 0
    assert classes_of(data, tmp_path / "l.json") == {name: "red fox" if "fox" in name else "grey wolf" for name in FILES}
    label_set = load_labels(tmp_path / "l.json")
    assert (label_set.classes, label_set.templates, label_set.name) == (("grey wolf", "red fox"), ("{c}", "a {c}"), "data")
    assert "4 of 4 pictures in 2 classes, 2 to 2 each" in capsys.readouterr().out


@pytest.mark.parametrize("by_number", [False, True])
def test_tables_name_pictures_by_path_file_or_url(
    by_number: bool, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    urls = {one.url.removeprefix("folder:").split("#")[0]: one.url for one in Collection(data, 24).pictures}
    fox, wolf = ("1", "0") if by_number else ("fox", "wolf")
    rows = [("red_fox/a.jpg", fox), ("b.jpg", fox), ("./grey-wolf/c d.jpg", wolf), (urls["grey-wolf/a.jpg"], wolf), ("x.jpg", fox)]
    (tmp_path / "t.csv").write_text("image,species\n" + "".join(f'"{file}",{name}\n' for file, name in rows))
    (tmp_path / "classes.txt").write_text("wolf\nfox\n")
    more = {"classes": tmp_path / "classes.txt"} if by_number else {}
    assert LabelsCommand(data=data, out=tmp_path / "l.json", table=tmp_path / "t.csv", class_col="species", **more).run() == 0
    assert classes_of(data, tmp_path / "l.json") == {name: "fox" if "fox" in name else "wolf" for name in FILES}
    assert load_labels(tmp_path / "l.json").classes == (("wolf", "fox") if by_number else ("fox", "wolf"))
    assert "1 rows name no picture" in (said := capsys.readouterr().err) and "x.jpg" in said


def test_what_does_not_fit_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    (tmp_path / "twice.csv").write_text("file,class\nb.jpg,x\nred_fox/b.jpg,y\n")
    (tmp_path / "none.csv").write_text("file,class\na.jpg,x\n")  # two pictures are called so
    (tmp_path / "one.csv").write_text("file,class\nb.jpg,x\n")
    (tmp_path / "classes.txt").write_text("y\n")
    for words, said in (
        ({"table": tmp_path / "twice.csv"}, "red_fox/b.jpg is 'x' and 'y': expected one class a picture"),
        ({"table": tmp_path / "none.csv"}, "none of 1 rows names a picture of .* and its class"),
        ({"table": tmp_path / "one.csv", "classes": tmp_path / "classes.txt"}, "1 classes there, and x is none of them"),
        ({"table": tmp_path / "one.csv", "class_col": "kind"}, "--table .*: no column 'kind' .* name it with --class-col"),
        ({"table": tmp_path / "one.txt"}, "--table .*: expected a file that ends with .csv, .tsv, .jsonl, .ndjson$"),
        ({"class_col": "x"}, "--file-col and --class-col go with --table"),
        ({"templates": ("x",)}, "lacks {c}"),
        ({"data": tmp_path}, "the data set was not verified"),
    ):
        with pytest.raises(UserError, match=said):
            LabelsCommand(**{"data": data, "out": tmp_path / "l.json"} | words).run()

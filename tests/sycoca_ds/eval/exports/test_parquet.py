"""Parquet folders as datasets exports them, against pyarrow's own table, and what strangers put into them."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipeline.pictures import FetchError
from sycoca_ds.eval.datasets.reading import Damaged, Unused
from sycoca_ds.eval.exports import parquet
from sycoca_ds.eval.exports.parquet import Parquets, columns_of, files_of
from tests.worlds.published.exported import scenes, write_parquet

CLASSES = tuple(f"class {number}" for number in range(24))
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table_at(path, features=None, **columns) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def pictures(count: int = 2) -> pa.Array:
    return pa.array([{"bytes": sample.picture, "path": None} for sample in scenes(count)], IMAGE)


@pytest.mark.parametrize("captioned", [False, True])
def test_a_folder_is_what_pyarrow_reads(tmp_path, captioned):
    """By any row groups and files, in any order of asking."""
    folder = write_parquet(tmp_path / "a", scenes(11), CLASSES, captioned=captioned, files=2, per_group=4)
    rows = [row for file in sorted((folder / "data").iterdir()) for row in pq.read_table(file).to_pylist()]
    read = Parquets().read(folder, "test")
    assert len(read) == len(rows) == 11
    for number in (0, 10, 3, 4, 9, 5, 1, 2, 6, 7, 8):
        expected = np.asarray(Image.open(io.BytesIO(rows[number]["image"]["bytes"])).convert("RGB"))
        assert np.abs(read.pictures.pixels(number).astype(int) - expected).max() <= 2
    if captioned:
        assert read.captions == tuple(tuple(row["caption"]) for row in rows) and read.label_N is None
    else:
        assert read.label_N.tolist() == [row["label"] for row in rows] and read.classes == CLASSES
    assert len(read.pictures._held) == parquet.HELD, "no more row groups than that are in memory"
    assert read.pictures.names[6] == "data/test-00001-of-00002.parquet/000000"


@pytest.mark.parametrize(
    "place", ["data/test-00000-of-00001", "test-00000-of-00001", "test/0000", "test", "data/test", "plain_text/test/0000"]
)
def test_places_of_a_split(tmp_path, place):
    table_at(tmp_path / f"{place}.parquet", image=pictures(), label=[1, 0])
    table_at(tmp_path / f"{place}.parquet".replace("test", "train"), image=pictures(), label=[0, 0])
    assert [path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path, "test")] == [f"{place}.parquet"]
    assert Parquets().read(tmp_path, "test").label_N.tolist() == [1, 0]


def test_files_that_do_not_make_a_split(tmp_path):
    for config in ("a", "b"):
        table_at(tmp_path / config / "test-00000-of-00002.parquet", image=pictures(), label=[1, 0])
    with pytest.raises(Damaged, match="split test is in several folders, a, b"):
        files_of(tmp_path, "test")
    with pytest.raises(Damaged, match="1 files of split test, whose names announce 2"):
        files_of(tmp_path / "a", "test")
    with pytest.raises(Damaged, match="no parquet files of split val"):
        files_of(tmp_path, "val")


def test_columns_by_features_and_by_names(tmp_path):
    kinds = {"img": {"_type": "Image"}, "fine": {"_type": "ClassLabel", "names": ["x", "y"]}, "label": {"_type": "Value"}}
    path = tmp_path / "test.parquet"
    table_at(path, kinds, img=pictures(), fine=[1, 0], label=[5, 5])
    assert columns_of(path) == parquet.Columns("img", "fine", ("x", "y"), None)
    table_at(path, {"label": {"_type": "ClassLabel", "names": {"0": "x", "1": "y"}}}, image=pictures(), label=[1, 0])
    assert columns_of(path).classes == ("x", "y")
    table_at(path, image=pictures(), label=[1, 0])
    read = Parquets().read(tmp_path, "test")
    assert read.classes == ("0", "1") and "has no names of classes in its features" in read.nameless
    table_at(path, image=[sample.picture for sample in scenes(2)], text=["one", "two "])
    read = Parquets().read(tmp_path, "test")
    assert read.captions == (("one",), ("two",)) and read.pictures.pixels(1).shape == (64, 64, 3)
    table_at(path, None, image=pictures(), caption=pa.array([["one", "", None], ["two"]], pa.list_(pa.string())))
    read = Parquets().read(tmp_path, "test")
    assert read.captions == (("one",), ("two",)) and read.notes == ("1 blank captions are left out",)
    label = {"_type": "ClassLabel", "names": ["x", "y"]}
    table_at(path, {"fine_label": label, "coarse_label": label}, image=pictures(), fine_label=[1, 0], coarse_label=[0, 0])
    assert columns_of(path).label == "fine_label"
    table_at(path, {"a": label, "b": label}, image=pictures(), a=[1, 0], b=[0, 0])
    with pytest.raises(Damaged, match="several columns could be the class, a, b; call one of them label"):
        columns_of(path)
    table_at(path, image=pictures(), height=[1, 0])
    with pytest.raises(Unused, match="no column with a class .* among image, height"):
        columns_of(path)
    table_at(path, url=["a"], caption=["b"])
    with pytest.raises(Unused, match="no column with a picture .* among url, caption"):
        columns_of(path)


def test_damaged_folders_say_what_is_wrong(tmp_path):
    path = tmp_path / "test.parquet"
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(Damaged, match="not readable as parquet"):
        Parquets().read(tmp_path, "test")
    table_at(path, image=pictures(), label=pa.array([1, None]))
    with pytest.raises(Damaged, match="test.parquet/000001 has class -1, expected 0 to 1"):
        Parquets().read(tmp_path, "test")
    table_at(path, image=pictures(), label=[-1, -1])
    with pytest.raises(Damaged, match="split test keeps its classes back"):
        Parquets().read(tmp_path, "test")
    table_at(path, {"label": {"_type": "ClassLabel", "names": [1, 2]}}, image=pictures(), label=[1, 0])
    with pytest.raises(Damaged, match="the names of label's classes are no list of texts"):
        Parquets().read(tmp_path, "test")
    table_at(path, image=pictures(), label=[0, 2_000_000_000])
    with pytest.raises(Damaged, match="class 2,000,000,000 and no names of classes"):
        Parquets().read(tmp_path, "test")
    folder = write_parquet(tmp_path / "paths", scenes(4), CLASSES, paths_only=True)
    with pytest.raises(Damaged, match="its pictures are paths without bytes"):
        Parquets().read(folder, "test")
    folder = write_parquet(tmp_path / "two", scenes(4), CLASSES)
    table_at(folder / "data/test-00001-of-00002.parquet", image=pictures(), label=[1, 0])
    with pytest.raises(Damaged, match="other columns or classes than test-00000-of-00002.parquet"):
        Parquets().read(folder, "test")


def test_pictures_that_cannot_be_read(tmp_path, monkeypatch):
    rows = [{"bytes": b"no picture", "path": "x"}, {"bytes": None, "path": "/etc/passwd"}, {"bytes": scenes(1)[0].picture}]
    table_at(tmp_path / "test.parquet", image=pa.array(rows, IMAGE), label=[0, 0, 0])
    read = Parquets().read(tmp_path, "test")
    for number in (0, 1):
        with pytest.raises(FetchError, match="not an image"):
            read.pictures.pixels(number)
    assert read.pictures.pixels(2).shape == (64, 64, 3)


def test_a_row_group_of_pictures_that_unpack_to_more_than_memory(tmp_path, monkeypatch):
    """One picture a thousand times is one in the file."""
    same = scenes(1)[0].picture + bytes(100_000)
    table_at(tmp_path / "test.parquet", image=pa.array([{"bytes": same}] * 1_000, IMAGE), label=[0] * 1_000)
    assert (tmp_path / "test.parquet").stat().st_size < 1_000_000
    monkeypatch.setattr(parquet, "MOST_GROUP", 10_000_000)
    with pytest.raises(FetchError, match="needs too much memory"):
        Parquets().read(tmp_path, "test").pictures.pixels(0)
    text = "a" * 100_000
    table_at(tmp_path / "b/test.parquet", image=pictures(), caption=[text, text])
    monkeypatch.setattr(parquet, "MOST_VALUES", 150_000)
    with pytest.raises(Damaged, match="more than 150,000 bytes in caption"):
        Parquets().read(tmp_path / "b", "test")

"""Pixels and labels out of packed files, read a second time by hand."""

import gzip
import os
import pickle

import pytest

from sycoca_ds.eval.datasets.reading import Damaged
from sycoca_ds.eval.datasets.registry import SETS
from tests.worlds.published.packed import noise, write_cifar10, write_cifar100, write_mnist, write_stl10


def test_cifar10(tmp_path):
    write_cifar10(tmp_path)
    _, read = SETS["cifar10"].open(tmp_path, "test")
    assert read.label_N.tolist() == [5, 9, 3] and read.classes[:2] == ("airplane", "automobile") and len(read.classes) == 10
    row = noise(5, 3, 3072)[1]
    pixels = read.pictures.pixels(1)
    for y, x, channel in ((0, 0, 0), (3, 17, 0), (31, 2, 1), (8, 30, 2)):
        assert pixels[y, x, channel] == row[1024 * channel + 32 * y + x]
    assert pixels.shape == (32, 32, 3) and read.pictures.names[1] == "test_batch/00001"
    _, read = SETS["cifar10"].open(tmp_path, "train")
    assert read.label_N.tolist() == [(number + 4 * k) % 10 for number in range(5) for k in range(3)]
    assert read.pictures.pixels(14)[0, 0, 0] == noise(4, 3, 3072)[2, 0] and read.pictures.names[14] == "data_batch_5/00002"


def test_cifar100_has_the_fine_labels(tmp_path):
    write_cifar100(tmp_path)
    _, read = SETS["cifar100"].open(tmp_path, "test")
    assert read.label_N.tolist() == [99, 0, 7] and read.classes[7] == "kind_7"


class Evil:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({b"data": Evil(), b"labels": []}))
    with pytest.raises(Damaged, match="it names posix.system, which no array needs"):
        SETS["cifar10"].open(tmp_path, "test")
    assert not (tmp_path / "it_ran").exists()


def test_pickles_that_do_not_fit(tmp_path):
    folder = write_cifar10(tmp_path)
    path, good = folder / "test_batch", (folder / "test_batch").read_bytes()
    content = pickle.loads(good)
    for change, message in (
        ({b"labels": [1, 2]}, "2 labels for 3 pictures"),
        ({b"labels": [1, 2, 10]}, "has class 10, expected 0 to 9"),
        ({b"data": noise(1, 3, 3071)}, "not as CIFAR's"),
    ):
        path.write_bytes(pickle.dumps(content | change, protocol=2))
        with pytest.raises(Damaged, match=message):
            SETS["cifar10"].open(tmp_path, "test")
    path.write_bytes(good[:-200])
    with pytest.raises(Damaged, match="not readable as one of CIFAR's pickles"):
        SETS["cifar10"].open(tmp_path, "test")


def test_stl10_goes_down_columns_and_counts_from_one(tmp_path):
    folder = write_stl10(tmp_path)
    _, read = SETS["stl10"].open(tmp_path, "test")
    assert read.label_N.tolist() == [9, 0, 4] and read.classes[9] == "truck"
    data, pixels = (folder / "test_X.bin").read_bytes(), read.pictures.pixels(2)
    for y, x, channel in ((0, 0, 0), (5, 80, 0), (95, 1, 1), (33, 60, 2)):
        assert pixels[y, x, channel] == data[2 * 27648 + 9216 * channel + 96 * x + y]
    (folder / "test_X.bin").write_bytes(data[:-1])
    with pytest.raises(Damaged, match="expected a multiple of 27648"):
        SETS["stl10"].open(tmp_path, "test")
    (folder / "test_X.bin").write_bytes(data)
    (folder / "test_y.bin").write_bytes(bytes([1, 0, 1]))  # 0 would be a class -1
    with pytest.raises(Damaged, match="test_X.bin/00001 has class -1"):
        SETS["stl10"].open(tmp_path, "test")


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    folder = write_mnist(tmp_path, packed)
    _, read = SETS["mnist"].open(tmp_path, "test")
    assert read.label_N.tolist() == [7, 2, 1, 9]
    assert (read.pictures.pixels(3) == noise(31, 4, 28, 28)[3][..., None]).all() and read.pictures.pixels(3).shape == (28, 28, 3)
    assert SETS["mnist"].open(tmp_path, "train")[1].label_N.tolist() == [7, 2, 0, 9]
    path = folder / ("t10k-images-idx3-ubyte.gz" if packed else "t10k-images-idx3-ubyte")
    data = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    path.write_bytes(gzip.compress(data[:-1]) if packed else data[:-1])
    with pytest.raises(Damaged, match="kind 2051 with 3135 bytes, expected 2051 with 3136"):
        SETS["mnist"].open(tmp_path, "test")
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(Damaged, match="not readable as idx"):
        SETS["mnist"].open(tmp_path, "test")
